"""What is trained is scored and measured, for each task, on a real, small Ray cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import EvaluateConfig, ScoreConfig, TrainConfig, load_config
from bertray.errors import ConfigError
from bertray.evaluate.evaluation import Evaluation
from bertray.evaluate.run import evaluate
from bertray.model.bundle import open_bundle
from bertray.schema import OK, scored_column_names
from bertray.score.run import score
from bertray.score.summary import Summary
from bertray.train.run import TrainSummary, train

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

WORDS = "film plot the a is was very story actor".split()
NUM_ROWS = 240


def texts(endings: list[str], *, seed: int = 0) -> list[str]:
    """A few words that say nothing, then those that do."""
    random = np.random.default_rng(seed)
    return [" ".join([*random.choice(WORDS, random.integers(1, 5)), end]) for end in endings]


class Job:
    """The three commands, one after the other, in one folder."""

    def __init__(self, base: Path, root: Path, *, pairs: bool = False) -> None:
        self.base, self.root, self.pairs = base, root, pairs

    def train(self, data: Path, *words: str) -> TrainSummary:
        words = (f"model.base={self.base}", f"data.train={data}", *words)
        pair = ["data.text_pair=other"] * self.pairs
        recipe = ["optim.learning_rate=5e-3", "training.per_device_batch_size=8"]
        recipe += ["training.num_epochs=3", "data.validation_fraction=0.2"]
        output = f"output.path={self.root / 'bundle'}"
        return train(load_config(TrainConfig, None, [*recipe, *words, *pair, output]))

    def evaluate(self, data: Path) -> Evaluation:
        words = [f"data.path={data}", f"output.path={self.root / 'report'}"]
        words += ["data.text_pair=other"] * self.pairs
        return evaluate(load_config(EvaluateConfig, None, [*self._model(), *words]))

    def score(self, data: Path) -> Summary:
        words = [f"input.path={data}", f"output.path={self.root / 'scored'}"]
        words += ["input.text_pair=other"] * self.pairs
        return score(load_config(ScoreConfig, None, [*self._model(), *words]))

    def _model(self) -> list[str]:
        return [f"model.path={self.root / 'bundle'}", "pool.max_actors=1"]

    def scored(self) -> pa.Table:
        return pq.read_table(self.root / "scored")


@pytest.fixture
def make_job(base_without_dropout: Path, tmp_path: Path) -> Callable[..., Job]:
    """Of the small random BERT, which learns in no time."""

    def make(**options: bool) -> Job:
        return Job(base_without_dropout, tmp_path, **options)

    return make


def hugging_face(folder: Path, rows: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """Logits of plain transformers, row by row."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for index, text in enumerate(rows):
        inputs = tokenizer(text, pairs[index] if pairs else None, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**inputs).logits[0].numpy())
    return np.stack(found)


def test_rows_of_several_labels_are_learnt_scored_and_measured(
    make_job: Callable[..., Job], write_shards: Write
) -> None:
    job, random = make_job(), np.random.default_rng(0)
    lists = [[name for name in ("awful", "good") if random.random() < 0.4] for _ in range(NUM_ROWS)]
    assert [] in lists
    rows = texts([" ".join(labels) or "film" for labels in lists])
    data = write_shards({"a": pa.table({"text": rows, "label": lists})})
    trained = job.train(data)
    assert trained.metrics["macro_f1"] > 0.8
    bundle = open_bundle(str(job.root / "bundle"))
    assert (bundle.task, bundle.labels) == ("multi_label", ("awful", "good"))
    best = trained.kept
    assert list(bundle.thresholds or ()) == best.thresholds

    nothing = pa.table({"text": pa.array([], pa.string())})
    lake = {"a": pa.table({"text": [*rows, None]}), "b": nothing}
    summary = job.score(write_shards(lake, folder="lake"))
    scored = job.scored()
    assert scored.column_names == ["text", *scored_column_names("", "multi_label")]
    probabilities = np.array(scored["probabilities"].to_pylist()[:-1])
    logits = hugging_face(job.root / "bundle", rows)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)
    expected = [
        [name for name, is_given in zip(bundle.labels, row, strict=True) if is_given]
        for row in probabilities >= np.array(bundle.thresholds)
    ]
    assert scored["predicted_labels"].to_pylist() == [*expected, None]
    assert summary.label_counts == {
        name: sum(name in labels for labels in expected) for name in bundle.labels
    }
    assert summary.status_counts == {OK: NUM_ROWS, "null text": 1}

    measured = job.evaluate(data)
    right = np.mean([found == labels for found, labels in zip(expected, lists, strict=True)])
    assert measured.metrics["subset_accuracy"] == pytest.approx(right)
    assert measured.labels["good"]["rows"] == sum("good" in labels for labels in lists)
    written = json.loads((job.root / "report/metrics.json").read_text())
    assert written["labels"] == measured.labels


def test_pairs_are_learnt_scored_and_measured(
    make_job: Callable[..., Job], write_shards: Write
) -> None:
    job, random = make_job(pairs=True), np.random.default_rng(0)
    ends = [random.choice(["good", "awful"], 2).tolist() for _ in range(NUM_ROWS)]
    # One alone says nothing of the label: a model that lost the second text could not learn it.
    table: dict[str, Any] = {
        "text": [first for first, _ in ends],
        "other": [second for _, second in ends],
        "label": ["same" if first == second else "another" for first, second in ends],
    }
    data = write_shards({"a": pa.table(table)})
    trained = job.train(data, "training.num_epochs=6", "calibration.method=temperature")
    assert trained.metrics["accuracy"] > 0.9
    calibration = open_bundle(str(job.root / "bundle")).calibration
    assert calibration is not None
    assert calibration.ece_after < calibration.ece_before

    lake = {"a": pa.table({**table, "other": [None, *table["other"][1:]]})}
    job.score(write_shards(lake, folder="lake"))
    scored = job.scored()
    assert scored["prediction_status"].to_pylist() == ["null text", *[OK] * (NUM_ROWS - 1)]
    logits = hugging_face(job.root / "bundle", table["text"], table["other"])[1:]
    logits *= calibration.factors[0]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = np.array(scored["probabilities"].to_pylist()[1:])
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)

    job.pairs = False
    for single in (job.score, job.evaluate):
        with pytest.raises(ConfigError, match=r"trained on pairs of texts; set .*\.text_pair"):
            single(data)
    job.pairs = True
    measured = job.evaluate(data)
    names = np.array(["another", "same"])
    all_logits = hugging_face(job.root / "bundle", table["text"], table["other"])
    right = np.mean(names[all_logits.argmax(axis=1)] == np.array(table["label"]))
    assert measured.metrics["accuracy"] == pytest.approx(right)


def test_numbers_are_learnt_scored_and_measured_in_their_own_unit(
    make_job: Callable[..., Job], write_shards: Write
) -> None:
    job, random = make_job(), np.random.default_rng(0)
    marks = random.integers(0, 4, NUM_ROWS)
    rows = texts(["awful " * (3 - mark) + "good " * mark for mark in marks])
    numbers = (5000 + 100 * marks).astype(np.float32)
    data = write_shards({"a": pa.table({"text": rows, "label": numbers})})
    trained = job.train(data, "training.task=regression")
    assert trained.metrics["pearson"] > 0.8
    assert trained.metrics["rmse"] < numbers.std()
    bundle = open_bundle(str(job.root / "bundle"))
    assert (bundle.task, bundle.labels) == ("regression", ("label",))
    assert bundle.scale is not None

    lake = {"a": pa.table({"text": [*rows, " "]})}
    summary = job.score(write_shards(lake, folder="lake"))
    scored = job.scored()
    assert scored.column_names == ["text", *scored_column_names("", "regression")]
    *scores, nothing = scored["predicted_score"].to_pylist()
    logits = hugging_face(job.root / "bundle", rows)[:, 0]
    expected = bundle.scale.mean + bundle.scale.std * logits
    np.testing.assert_allclose(scores, expected, atol=1e-5 * bundle.scale.std, rtol=1e-7)
    assert nothing is None
    assert (summary.label_counts, summary.status_counts) == ({}, {OK: NUM_ROWS, "empty text": 1})
    before = (job.root / "scored/a.parquet").read_bytes()
    assert job.score(job.root / "lake").num_rows_scored == 0
    assert (job.root / "scored/a.parquet").read_bytes() == before

    measured = job.evaluate(data)
    assert measured.metrics["mae"] == pytest.approx(np.abs(expected - numbers).mean(), rel=1e-4)
