import copy
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MANIFEST, MODELS
from transformers import (
    AlbertConfig,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from bertray import cli
from bertray.errors import ConfigError, DataError
from bertray.model import versions
from bertray.model.bundle import Bundle, load_model, open_bundle
from bertray.model.engine import Engine
from bertray.model.pretrained import load_tokenizer
from bertray.model.settings import resolve_settings
from bertray.report.explain import MOST_STEPS, TOLERANCE, Explainer
from bertray.schema import Calibration, Scale

COMMON = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 72,
    "initializer_range": 0.2,
    "num_labels": 3,
}
ENDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)
FAMILIES = {
    "albert": AlbertConfig(**COMMON, embedding_size=16),
    "bert": BertConfig(**COMMON),
    "deberta-v2": DebertaV2Config(**COMMON),
    "distilbert": DistilBertConfig(**COMMON, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "electra": ElectraConfig(**COMMON, embedding_size=16),
    "modernbert": ModernBertConfig(**COMMON, pad_token_id=0, **ENDS),
    "mpnet": MPNetConfig(**COMMON),
    "roberta": RobertaConfig(**COMMON),
}
TEXT = "The film was very good, a great story!  Not awful."
Make = Callable[..., Bundle]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path) -> Make:
    """A random-weight bundle of a family, with the tests' small tokenizer."""

    def bundle(family: str, *, head: str = "family", **values: Any) -> Bundle:
        folder = tmp_path_factory.mktemp(family)
        config = copy.deepcopy(FAMILIES[family])
        config.num_labels = len(values.get("labels", "abc"))
        torch.manual_seed(0)
        MODELS[head].from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(folder)
        if getattr(config, "type_vocab_size", 0) < 2:
            path = folder / "tokenizer_config.json"
            names = {"model_input_names": ["input_ids", "attention_mask"]}
            path.write_text(json.dumps(json.loads(path.read_text()) | names))
        manifest = replace(MANIFEST, head=head)
        (folder / "bertray.json").write_text(json.dumps(asdict(manifest)))
        return replace(open_bundle(str(folder)), **values)

    return bundle


def logits_of(bundle: Bundle, *texts: str) -> torch.Tensor:
    inputs = load_tokenizer(bundle.folder)(*texts, return_tensors="pt")
    with torch.inference_mode():
        return load_model(bundle)(**inputs).logits[0].double()


def log_odds(logits: torch.Tensor, label: int) -> float:
    rest = [index for index in range(len(logits)) if index != label]
    return float(logits[label] - logits[rest].logsumexp(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_every_family_add_up_to_the_change_of_the_log_odds(
    make: Make, family: str
) -> None:
    bundle = make(family)
    found = Explainer(bundle)(TEXT)
    logits = logits_of(bundle, TEXT)
    best = int(logits.argmax())
    assert found.label == "abc"[best]
    assert found.probability == pytest.approx(float(logits.softmax(0)[best]), abs=1e-5)
    assert found.value == pytest.approx(log_odds(logits, best), abs=1e-4)
    change = found.value - found.baseline
    total = sum(word.attribution for word in found.words)
    assert abs(total - change) <= TOLERANCE * max(1, abs(change))
    assert found.complete
    assert abs(change) > 0.05  # else there was nothing to add up to


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_linear_head_is_explained(make: Make, family: str) -> None:
    found = Explainer(make(family, head="linear"))(TEXT, label="b")
    assert found.complete
    assert found.label == "b"


def test_words_are_put_together_of_their_pieces_and_stand_where_they_do(make: Make) -> None:
    found = Explainer(make("bert"))("  awfully\tgood!")
    assert [(word.text, word.start, word.end) for word in found.words] == [
        ("awfully", 2, 9),
        ("good", 10, 14),
        ("!", 14, 15),
    ]


def test_both_texts_of_a_pair_are_explained(make: Make) -> None:
    found = Explainer(make("bert"))("good film", "bad plot")
    assert [(word.text, word.start, word.of_pair) for word in found.words] == [
        ("good", 0, False),
        ("film", 5, False),
        ("bad", 0, True),
        ("plot", 4, True),
    ]
    assert found.complete


@pytest.mark.parametrize("takes_pairs", [True, False])
def test_a_pair_is_for_models_of_pairs(make: Make, takes_pairs: bool) -> None:
    explainer = Explainer(make("bert", takes_pairs=takes_pairs))
    with pytest.raises(DataError, match="was trained on"):
        explainer("good", None if takes_pairs else "bad")


def test_an_independent_label_is_explained_by_itself(make: Make) -> None:
    bundle = make("bert", task="multi_label")
    found = Explainer(bundle)(TEXT, label="c")
    assert found.value == pytest.approx(float(logits_of(bundle, TEXT)[2]), abs=1e-4)
    assert found.probability == pytest.approx(1 / (1 + 2.718281828**-found.value))
    assert found.complete


def test_a_score_is_explained_in_its_own_unit(make: Make) -> None:
    bundle = make("bert", task="regression", labels=("score",), scale=Scale(mean=1_000.0, std=50.0))
    found = Explainer(bundle)(TEXT)
    wanted = 1_000 + 50 * float(logits_of(bundle, TEXT)[0])
    assert found.value == found.probability == pytest.approx(wanted, abs=1e-2)
    assert found.complete


def test_only_what_the_model_reads_is_explained_and_said_so(make: Make) -> None:
    explainer = Explainer(make("bert"))
    assert explainer(TEXT).whole
    long = explainer("good film " * 200)
    assert not long.whole
    assert len(long.words) == 62


def test_a_text_that_is_cut_at_its_beginning_is_explained_at_its_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertray.report.explain.MOST_CHARACTERS", 20)
    explainer = Explainer(make("bert"))
    monkeypatch.setattr(explainer._tokenizer, "truncation_side", "left")
    text = "good film " * 10 + "bad plot"
    found = explainer(text)
    assert [text[word.start : word.end] for word in found.words] == [w.text for w in found.words]
    assert (found.words[-1].text, found.words[-1].end, found.whole) == ("plot", len(text), False)


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("temperature", (0.5,), (0.0,), 0.2, 0.1),
        Calibration("vector", (1.0, 1.0, 1.0), (0.0, 9.0, 0.0), 0.2, 0.1),  # "b" whatever comes
    ],
)
def test_what_is_explained_is_what_scoring_says(make: Make, calibration: Calibration) -> None:
    bundle = make("bert", calibration=calibration)
    found = Explainer(bundle)(TEXT)
    settings = resolve_settings(bundle, device="cpu", backend="torch")
    (scored,) = Engine(bundle, settings, num_threads=1).predict([TEXT]).probabilities
    assert found.label == bundle.labels[scored.argmax()]
    assert found.probability == pytest.approx(scored.max(), abs=1e-5)
    assert found.complete


def test_steps_are_doubled_until_the_words_add_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(make("bert"))
    assert explainer(TEXT).num_steps < MOST_STEPS
    monkeypatch.setattr("bertray.report.explain.FEWEST_STEPS", 1)
    coarse = explainer(TEXT)
    assert 1 < coarse.num_steps < MOST_STEPS
    monkeypatch.setattr("bertray.report.explain.TOLERANCE", 0.0)
    monkeypatch.setattr("bertray.report.explain.MOST_STEPS", 4)
    given_up = explainer(TEXT)
    assert given_up.num_steps == 4
    assert not given_up.complete


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [("", None, "nothing to explain"), ("good", "d", "does not know the label 'd'; it knows a, b")],
)
def test_what_cannot_be_explained_is_said(
    make: Make, text: str, label: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Explainer(make("bert"))(text, label=label)


def test_without_captum_the_package_to_install_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'bertray\[explain\]'"):
        Explainer(make("bert"))


def test_the_command_shows_the_text_and_its_strongest_words(
    classifier_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: Sequence[str] = ("explain", str(classifier_folder), "good film [b]", "--label", "so-so")
    assert cli.main(list(words)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("good film [b]")
    assert "so-so, 0." in shown
    assert "strongest words" in shown
    assert "'['" in shown
    assert (
        "what each adds to the log-odds: above 0 (green) for the label, below (red) against it"
        in shown
    )
    assert re.search(r"[+-]\d\.\d\d log-odds over the same text with every word masked", shown)


@pytest.mark.parametrize("kind", ["store", "mlflow"])
def test_the_command_takes_a_model_in_a_store(
    kind: str,
    classifier_folder: Path,
    empty_mlflow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, model = str(tmp_path / "store"), "store://reviews@champion"
    if kind == "mlflow":
        shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
        root, model = f"sqlite:///{tmp_path / 'mlflow.db'}", "models:/reviews@champion"
    versions.promote(root, versions.add(root, "reviews", classifier_folder), why="the first")
    shown = []
    for words in ([str(classifier_folder)], [model, "--store", root]):
        assert cli.main(["explain", *words, "good film"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert cli.main(["explain", model, "good film"]) == 2
    assert f"MODEL={model}: set --store to the" in capsys.readouterr().err
