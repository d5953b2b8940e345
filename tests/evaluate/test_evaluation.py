"""What is said of labelled rows, and how it is put down."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bertray.config import EvaluateConfig, Intervals, load_config
from bertray.evaluate.evaluation import Evaluation, measure
from bertray.evaluate.metrics import multi_label_metrics, regression_metrics
from bertray.evaluate.report import to_document, to_markdown, write
from bertray.evaluate.rows import PREFIX, join_rows, take_rows
from bertray.model.bundle import Bundle, open_bundle
from bertray.schema import OK, Predictions, Scale, append_predictions

FEW = Intervals(num_resamples=20)


@pytest.fixture
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))  # labels: bad, so-so, good


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    words = ["model.path=m", "data.path=d", f"output.path={tmp_path}/out", "data.slices=[source]"]
    return load_config(EvaluateConfig, None, words)


def measured(
    columns: dict[str, pa.Array],
    probabilities: np.ndarray,
    status: list[str],
    bundle: Bundle,
    *,
    slices: tuple[str, ...] = (),
    every_slice: bool = False,
) -> Evaluation:
    block = append_predictions(
        pa.table(columns),
        Predictions(probabilities, tuple(status)),
        labels=bundle.labels,
        task=bundle.task,
        thresholds=bundle.thresholds,
        prefix=PREFIX,
    )
    part = take_rows(block, bundle, label="label", slices=slices)
    return measure(join_rows([part], bundle), bundle, FEW, every_slice=every_slice)


def sure(best: list[int], missing: tuple[int, ...] = ()) -> np.ndarray:
    probabilities = np.eye(3, dtype=np.float32)[best] * 0.7 + 0.1
    probabilities[list(missing)] = np.nan
    return probabilities


def test_rows_without_text_or_label_are_left_out_and_counted(bundle: Bundle) -> None:
    labels = pa.array(["bad", "good", None, "so-so", "good"])
    status = [OK, OK, OK, OK, "null text"]
    result = measured({"label": labels}, sure([0, 2, 1, 0, 2], (4,)), status, bundle)
    assert (result.num_rows, result.num_rows_evaluated) == (5, 3)
    assert result.left_out == {"null text": 1, "null label": 1}
    assert result.metrics["accuracy"] == pytest.approx(2 / 3)
    assert result.metrics["loss"] == pytest.approx(-(2 * np.log(0.8) + np.log(0.1)) / 3, rel=1e-5)
    assert result.confusion is not None
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert set(result.intervals) < set(result.metrics)


def test_independent_labels_are_measured_at_the_bundles_thresholds(
    bundle: Bundle, config: EvaluateConfig
) -> None:
    bundle = replace(bundle, task="multi_label", thresholds=(0.5, 0.5, 0.2))
    probabilities = np.array([[0.9, 0.6, 0.1], [0.1, 0.1, 0.3], [0.1, 0.1, 0.1]], np.float32)
    labels = pa.array([["bad"], ["good", "good"], [], None, ["bad"]])
    padded = np.concatenate([probabilities, np.full((2, 3), np.nan)])
    result = measured({"label": labels}, padded, [OK, OK, OK, OK, "null text"], bundle)
    has_label = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]], bool)
    expected = multi_label_metrics(probabilities, has_label, bundle.thresholds)
    assert expected.items() <= result.metrics.items()
    assert result.metrics["subset_accuracy"] == pytest.approx(2 / 3)
    assert (result.num_rows_evaluated, result.left_out) == (3, {"null text": 1, "null label": 1})
    assert result.labels["good"] == {
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "threshold": 0.2,
        "rows": 1,
        "roc_auc": 1,
        "pr_auc": 1,
    }
    report = to_markdown(config, bundle, result)
    assert "| good | 1.0000 | 1.0000 | 1.0000 | 0.2000 | 1 |" in report


def test_numbers_are_compared_where_both_are_there(bundle: Bundle) -> None:
    bundle = replace(bundle, task="regression", labels=("y",), scale=Scale(0.0, 2.0))
    scores = np.array([[1], [2], [3], [np.nan], [5]], np.float32)
    labels = pa.array([2.0, None, float("nan"), 4.0, 5.0])
    result = measured({"label": labels}, scores, [OK, OK, OK, "null text", OK], bundle)
    assert result.metrics == regression_metrics(np.array([1, 5]), np.array([2, 5]), std=2.0)
    assert (result.num_rows_evaluated, result.left_out) == (2, {"null text": 1, "null label": 2})


def test_slices_add_up_to_all_rows_the_most_frequent_first_and_small_ones_marked(
    bundle: Bundle, config: EvaluateConfig
) -> None:
    sources = ["web"] * 40 + ["a | b\n"] * 3 + [None] * 7
    columns = {"label": pa.array(["bad"] * 50), "source": pa.array(sources)}
    best = [0] * 30 + [1] * 10 + [0] * 10
    result = measured(columns, sure(best), [OK] * 50, bundle, slices=("source",))
    web, null, other = result.slices["source"]
    assert (web.value, web.num_rows, web.is_small) == ("web", 40, False)
    assert (null.value, null.num_rows, null.is_small) == (None, 7, True)
    assert other.value == "a | b\n"
    assert web.metrics["accuracy"] == pytest.approx(0.75)
    assert other.metrics["accuracy"] == null.metrics["accuracy"] == 1
    report = to_markdown(config, bundle, result)
    assert "| a &#124; b | 3 (few) | 1.0000 |" in report


def test_where_the_gate_looks_all_values_that_enough_rows_have_are_measured_and_few_shown(
    bundle: Bundle, config: EvaluateConfig
) -> None:
    sources = np.repeat([f"source {number:03}" for number in range(60)], 30).tolist()
    sources += [f"rare {number}" for number in range(9)]
    columns = {"label": pa.array(["bad"] * len(sources)), "source": pa.array(sources)}
    best = [0] * 59 * 30 + [1] * 30 + [0] * 9
    parts = (columns, sure(best), [OK] * len(best), bundle)
    few = measured(*parts, slices=("source",)).slices["source"]
    assert [one.value for one in few] == [f"source {number:03}" for number in range(50)]
    result = measured(*parts, slices=("source",), every_slice=True)
    found = result.slices["source"]
    assert [one.value for one in found] == [f"source {number:03}" for number in range(60)]
    assert [one.metrics["accuracy"] for one in found] == [1] * 59 + [0]
    report = to_markdown(config, bundle, result)
    assert "| source 049 | 30 |" in report
    assert "source 050" not in report
    assert "10 more in metrics.json." in report


def test_the_report_shows_what_the_document_says(
    bundle: Bundle, config: EvaluateConfig, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    best = random.integers(0, 2, 600)  # nobody is so-so, so that some figures do not exist
    labels = pa.array(np.array(["bad", "good"])[best])
    probabilities = sure(list(2 * best))
    result = measured({"label": labels}, probabilities, [OK] * 600, bundle)
    write(config, bundle, result)
    text = (tmp_path / "out/metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == json.loads(json.dumps(to_document(config, bundle, result)))
    contract = ["model", "model_digest", "data", "rows", "rows_evaluated", "left_out", "metrics"]
    assert list(found)[:7] == contract
    assert found["metrics"]["accuracy"] == 1
    assert found["intervals"]["metrics"]["accuracy"] == [1, 1]
    assert found["intervals"]["seed"] == 0
    assert found["labels"]["so-so"]["roc_auc"] is None
    assert sum(one["rows"] for one in found["reliability"]) == 600
    assert found["cutoffs"][0] == {
        "precision": 0.8,
        "threshold": 0.0,
        "coverage": 1.0,
        "found": 1.0,
    }
    assert "slices" not in found
    report = (tmp_path / "out/report.md").read_text()
    assert "| accuracy | 1.0000 | 1.0000 to 1.0000 |" in report
    assert "| so-so | 0 | 0 | 0 |" in report
    assert (tmp_path / "out/reliability.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_labels_the_pairs_that_are_confused_most_are_shown(
    bundle: Bundle, config: EvaluateConfig
) -> None:
    names = tuple(f"label {number}" for number in range(20))
    bundle = replace(bundle, labels=names)
    true = [0] * 5 + [7] * 5
    best = [0, 0, 3, 3, 3, 7, 7, 7, 7, 9]
    probabilities = np.eye(20, dtype=np.float32)[best]
    labels = pa.array([names[one] for one in true])
    result = measured({"label": labels}, probabilities, [OK] * 10, bundle)
    report = to_markdown(config, bundle, result)
    shown = "| label 0 | label 3 | 3 |\n| label 7 | label 9 | 1 |\n\n"
    assert f"| true | predicted | rows |\n| --- | --- | --- |\n{shown}" in report
