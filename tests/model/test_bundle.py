import json
import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from small_models import add_relative_positions
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
)

from bertray.errors import ConfigError, ModelError
from bertray.model.bundle import check_pairs, load_model, open_bundle, save_bundle
from bertray.model.cache import digest_of
from bertray.model.manifest import Manifest
from bertray.model.pretrained import LONGEST, load_tokenizer, longest_input, num_positions
from bertray.schema import Scale


@pytest.fixture
def folder(classifier_folder: Path, tmp_path: Path) -> Path:
    """A copy of the classifier to meddle with."""
    return Path(shutil.copytree(classifier_folder, tmp_path / "model"))


def pickled(folder: Path) -> Path:
    """The same model with weights as torch pickles them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_folder_that_plain_transformers_saved_is_a_bundle(folder: Path) -> None:
    bundle = open_bundle(str(folder))
    assert bundle.labels == ("bad", "so-so", "good")
    assert (bundle.task, bundle.max_length) == ("single_label", 64)
    assert bundle.digest == digest_of(folder)
    assert bundle.location == str(folder)


def test_a_bare_vocabulary_is_read_as_word_pieces_whatever_the_family(tmp_path: Path) -> None:
    AlbertConfig(vocab_size=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"vocabulary|no tokenizer"):
        load_tokenizer(tmp_path)
    for word in ("c", "C"):
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", word, "##o"]
        (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
        assert load_tokenizer(tmp_path).tokenize("good Co") == ["good", word, "##o"]


def test_a_saved_bundle_reads_back_and_loads_with_plain_transformers(
    folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(open_bundle(str(folder))), load_tokenizer(folder)
    manifest = Manifest(
        labels=["a", "b", "c"],
        task="single_label",
        max_length=48,
        base="somewhere",
        metrics={"accuracy": 0.5},
        lineage={"data": "x"},
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )
    (tmp_path / "bundle").mkdir()
    save_bundle(tmp_path / "bundle", model=model, tokenizer=tokenizer, manifest=manifest)
    bundle = open_bundle(str(tmp_path / "bundle"))
    assert (bundle.labels, bundle.max_length) == (("a", "b", "c"), 48)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bundle")
    assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoTokenizer.from_pretrained(tmp_path / "bundle")("good film")["input_ids"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])


def test_thresholds_and_scale_are_read_back_and_else_there_are_none(
    folder: Path, tmp_path: Path
) -> None:
    edit_config(folder, problem_type="multi_label_classification")
    plain = open_bundle(str(folder))
    assert (plain.task, plain.thresholds, plain.scale) == ("multi_label", None, None)
    manifest = Manifest(
        labels=["a", "b", "c"],
        task="multi_label",
        max_length=48,
        base="somewhere",
        metrics={},
        lineage={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
        thresholds=[0.5, 0.25, 0.125],
        scale={"mean": 3.0, "std": 0.5},
    )
    (tmp_path / "bundle").mkdir()
    tokenizer = load_tokenizer(folder)
    save_bundle(
        tmp_path / "bundle", model=load_model(plain), tokenizer=tokenizer, manifest=manifest
    )
    bundle = open_bundle(str(tmp_path / "bundle"))
    assert (bundle.task, bundle.thresholds) == ("multi_label", (0.5, 0.25, 0.125))
    assert bundle.scale == Scale(mean=3.0, std=0.5)


@pytest.mark.parametrize(
    ("lineage", "refused"),
    [
        ({"data.text_pair": '"other"'}, [None]),
        ({"data.text_pair": "null"}, ["other"]),
        ({}, []),
    ],
)
def test_a_bundle_is_only_given_what_it_was_trained_on(
    folder: Path, lineage: dict[str, str], refused: list[str | None]
) -> None:
    manifest = {"labels": ["a", "b", "c"], "task": "single_label", "max_length": 8, "base": "b"}
    manifest |= {"metrics": {}, "lineage": lineage, "versions": {}, "created": ""}
    (folder / "bertray.json").write_text(json.dumps(manifest))
    bundle = open_bundle(str(folder))
    for text_pair in (None, "other"):
        if text_pair in refused:
            with pytest.raises(ConfigError, match=r"was trained on .*; .*input\.text_pair"):
                check_pairs(bundle, text_pair, section="input")
        else:
            check_pairs(bundle, text_pair, section="input")


def test_a_regression_model_of_several_numbers_is_refused(folder: Path) -> None:
    edit_config(folder, problem_type="regression")
    with pytest.raises(ModelError, match="a regression model of 3 numbers"):
        open_bundle(str(folder))


def test_the_digest_follows_what_decides_predictions_and_nothing_else(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "README.md").write_text("notes")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "_run").mkdir()
    assert digest_of(folder) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert digest_of(folder) != before


def test_pickled_weights_are_converted_once_and_give_the_same_model(folder: Path) -> None:
    original = load_model(open_bundle(str(folder))).state_dict()
    bundle = open_bundle(str(pickled(folder)))
    assert bundle.folder != folder
    assert (bundle.folder / "model.safetensors").is_file()
    converted = load_model(bundle).state_dict()
    assert all(torch.equal(weight, converted[name]) for name, weight in original.items())
    again = open_bundle(str(folder))
    assert (again.folder, again.digest) == (bundle.folder, bundle.digest)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def test_a_pickle_that_could_run_code_is_refused_and_does_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": _Bomb()}))
    with pytest.raises(ModelError, match=r"hold more than tensors.*convert them to safetensors"):
        open_bundle(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_labels_that_the_config_forgot_get_their_numbers(folder: Path) -> None:
    edit_config(folder, id2label={"0": "bad"}, label2id={"bad": 0}, num_labels=3)
    labels = open_bundle(str(folder)).labels
    assert len(labels) == 3
    assert labels[1:] == ("LABEL_1", "LABEL_2")


def test_labels_with_gaps_between_their_numbers_are_refused(folder: Path) -> None:
    edit_config(folder, id2label={"0": "x", "2": "y", "5": "z"})
    with pytest.raises(ModelError, match=r"names outputs \[0, 2, 5\], .* of 3 has 0 to 2"):
        open_bundle(str(folder))


def test_labels_that_are_no_strings_become_strings(folder: Path) -> None:
    edit_config(folder, id2label={"0": 1, "1": True, "2": "good"})
    assert open_bundle(str(folder)).labels == ("1", "True", "good")


def test_weights_without_a_head_are_refused_by_name(folder: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack classifier\.weight"):
        load_model(open_bundle(str(folder)))


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_that_would_be_left_out_are_refused(folder: Path, kind: str) -> None:
    edit_config(folder, position_embedding_type=kind)
    assert load_model(open_bundle(str(folder)))  # saved so, its positions are absolute
    add_relative_positions(folder)
    with pytest.raises(ModelError, match=r"no longer reads bert\..*\.distance_embedding\.weight"):
        load_model(open_bundle(str(folder)))


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    edit_config(folder, hidden_size=16)
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        load_model(open_bundle(str(folder)))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json in there"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be used"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: edit_config(f, architectures=["BertModel"]), "BertModel has no classification"),
        (lambda f: (f / "bertray.json").write_text("{}"), r"bertray\.json: cannot be read"),
    ],
)
def test_a_broken_folder_is_refused_with_what_is_wrong(
    folder: Path, break_it: object, message: str
) -> None:
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        open_bundle(str(folder))


def test_a_model_at_a_uri_is_fetched_and_a_changed_one_anew(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/store/m/", recursive=True)
    bundle = open_bundle("memory://store/m")
    assert bundle.digest == digest_of(folder)
    assert bundle.location == "memory://store/m"
    assert load_model(bundle)
    memory.pipe_file("/store/m/vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    assert open_bundle("memory://store/m").digest != bundle.digest
    with pytest.raises(ModelError, match=r"memory://store: no config\.json"):
        open_bundle("memory://store")


def test_without_a_network_a_model_of_the_hub_is_taken_from_the_hubs_own_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ConnectError(Exception):
        """As the hub's HTTP client has it: no OSError."""

    def unreachable(name: str) -> list[str]:
        raise ConnectError("[Errno -2] Name or service not known")

    cached = tmp_path / "hub/models--them--classifier"
    shutil.copytree(folder, cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.list_repo_files", unreachable)
    assert open_bundle("them/classifier").digest == digest_of(folder)
    with pytest.raises(ModelError, match=r"them/other: no such folder; and the hub .*spelling"):
        open_bundle("them/other")


def test_what_is_no_hub_id_is_not_looked_for_on_the_hub_and_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(name: str) -> list[str]:
        asked.append(name)
        return []

    monkeypatch.setattr("huggingface_hub.list_repo_files", ask)
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "reviews"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for source in ("./models/demoo", f"{tmp_path}/models/demoo"):
        with pytest.raises(ModelError, match=r"no such folder; .*models holds demo, reviews$"):
            open_bundle(source)
    assert asked == []
    with pytest.raises(ModelError, match=r"no such folder; models holds demo, reviews; and the"):
        open_bundle("models/demoo")
    assert asked == ["models/demoo"]  # there may be one of that name


@pytest.mark.parametrize(
    ("config", "positions", "tokenizer_limit", "expected"),
    [
        (BertConfig, 512, 512, 512),
        (BertConfig, 512, 10**30, 512),
        (BertConfig, 512, 128, 128),
        (RobertaConfig, 514, 10**30, 512),
    ],
)
def test_the_longest_input_is_what_config_and_tokenizer_allow(
    folder: Path,
    config: type[BertConfig] | type[RobertaConfig],
    positions: int,
    tokenizer_limit: int,
    expected: int,
) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = tokenizer_limit
    assert longest_input(config(max_position_embeddings=positions), tokenizer) == expected


def test_a_model_without_limits_gets_512(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = 10**30
    assert longest_input(AutoConfig.for_model("t5"), tokenizer) == LONGEST


@pytest.mark.parametrize(
    "family",
    "camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke markuplm mpnet roberta "
    "roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod bert convbert".split(),
)
def test_the_longest_input_is_the_longest_that_the_model_takes(family: str) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    sizes |= {"num_hidden_layers": 1, "max_position_embeddings": 40, "attention_window": 4}
    sizes |= {"coordinate_size": 4, "shape_size": 4, "entity_vocab_size": 9, "pad_token_id": 1}
    languages = {"languages": ["en"], "default_language": "en"}
    config = AutoConfig.for_model(family, **sizes, **languages)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = num_positions(config)
    assert longest
    assert model(torch.full((1, longest), 5)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 5))


def test_positions_without_number_are_no_limit(folder: Path) -> None:
    config = AutoConfig.for_model("xlnet")
    assert config.max_position_embeddings == -1
    assert num_positions(config) is None
    assert longest_input(config, load_tokenizer(folder)) == 64
