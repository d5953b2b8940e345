import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bertray.config import EvaluateConfig, load_config
from bertray.errors import DataError, SchemaError
from bertray.evaluate.metrics import multi_label_metrics, regression_metrics
from bertray.evaluate.run import PREFIX, evaluate, label_ids, measure, prepare, to_markdown
from bertray.model.bundle import Bundle, open_bundle
from bertray.schema import OK, Predictions, Scale, append_predictions

Write = Callable[..., Path]


def config(model: Path, data: Path, output: Path, *words: str) -> EvaluateConfig:
    paths = [f"model.path={model}", f"data.path={data}", f"output.path={output}"]
    paths.append("pool.max_actors=1")
    return load_config(EvaluateConfig, None, [*paths, *words])


@pytest.fixture
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))  # labels: bad, so-so, good


def predicted(labels: list[str | None], best: list[int], status: list[str]) -> pa.Table:
    probabilities = np.eye(3, dtype=np.float32)[best] * 0.7 + 0.1
    probabilities[[reason != OK for reason in status]] = np.nan
    return append_predictions(
        pa.table({"label": pa.array(labels, pa.string())}),
        Predictions(probabilities, tuple(status)),
        labels=("bad", "so-so", "good"),
        prefix=PREFIX,
    )


def test_rows_without_text_or_label_are_left_out_and_counted(bundle: Bundle) -> None:
    table = predicted(
        ["bad", "good", None, "so-so", "good"],
        [0, 2, 1, 0, 2],
        [OK, OK, OK, OK, "null text"],
    )
    result = measure(table, bundle, label="label")
    assert (result.num_rows, result.num_rows_evaluated) == (5, 3)
    assert result.left_out == {"null text": 1, "null label": 1}
    assert result.metrics["accuracy"] == pytest.approx(2 / 3)
    assert result.metrics["loss"] == pytest.approx(-(2 * np.log(0.8) + np.log(0.1)) / 3, rel=1e-5)


def test_independent_labels_are_measured_at_the_bundles_thresholds(
    bundle: Bundle, write_shards: Write, tmp_path: Path
) -> None:
    bundle = replace(bundle, task="multi_label", thresholds=(0.5, 0.5, 0.2))
    probabilities = np.array([[0.9, 0.6, 0.1], [0.1, 0.1, 0.3], [0.1, 0.1, 0.1]], np.float32)
    labels = [["bad"], ["good", "good"], []]
    table = append_predictions(
        pa.table({"label": pa.array([*labels, None, ["bad"]])}),
        Predictions(
            np.concatenate([probabilities, np.full((2, 3), np.nan)]), (OK, OK, OK, OK, "null text")
        ),
        labels=bundle.labels,
        task=bundle.task,
        thresholds=bundle.thresholds,
        prefix=PREFIX,
    )
    result = measure(table, bundle, label="label")
    has_label = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]], bool)
    expected = multi_label_metrics(probabilities, has_label, bundle.thresholds)
    assert result.metrics == expected
    assert result.metrics["subset_accuracy"] == pytest.approx(2 / 3)
    assert (result.num_rows_evaluated, result.left_out) == (3, {"null text": 1, "null label": 1})
    assert result.labels["good"] == {
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "threshold": 0.2,
        "rows": 1,
    }
    report = to_markdown(config(tmp_path, tmp_path, tmp_path), bundle, result)
    assert "| good | 1.0000 | 1.0000 | 1.0000 | 0.2000 | 1 |" in report


def test_numbers_are_compared_where_both_are_there(bundle: Bundle) -> None:
    bundle = replace(bundle, task="regression", labels=("y",), scale=Scale(0.0, 2.0))
    scores = np.array([[1], [2], [3], [np.nan], [5]], np.float32)
    table = append_predictions(
        pa.table({"y": pa.array([2.0, None, float("nan"), 4.0, 5.0])}),
        Predictions(scores, (OK, OK, OK, "null text", OK)),
        labels=bundle.labels,
        task=bundle.task,
        prefix=PREFIX,
    )
    result = measure(table, bundle, label="y")
    assert result.metrics == regression_metrics(np.array([1, 5]), np.array([2, 5]), std=2.0)
    assert (result.num_rows_evaluated, result.left_out) == (2, {"null text": 1, "null label": 2})


def test_no_row_to_measure_on_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no row has both"):
        measure(predicted([None], [0], [OK]), bundle, label="label")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (pa.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b"), [1, 0]),
        (pa.array([7, 3]), ("3", "7"), [1, 0]),
        (pa.array([1, 0]), ("LABEL_0", "LABEL_1"), [1, 0]),
        (pa.array([True, False]), ("false", "true"), [1, 0]),
    ],
)
def test_true_labels_are_found_by_name_and_integers_else_by_id(
    labels: pa.Array, names: tuple[str, ...], expected: list[int]
) -> None:
    assert label_ids(pa.chunked_array([labels]), names).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["a", "x"], ("a", "b")), ([0, 2], ("LABEL_0", "LABEL_1")), ([3, 9], ("3", "7"))],
)
def test_a_label_that_the_model_does_not_know_is_named(
    labels: list[object], names: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match=rf"does not know, such as '{labels[1]}'; it knows"):
        label_ids(pa.chunked_array([pa.array(labels)]), names)


def test_bad_data_is_found_before_a_cluster_starts(
    classifier_folder: Path, write_shards: Write, tmp_path: Path
) -> None:
    source = write_shards({"a": pa.table({"text": ["x"], "label": [0.5]})})
    with pytest.raises(SchemaError, match=r"column 'label' is double.*set data\.label"):
        prepare(config(classifier_folder, source, tmp_path / "out"))
    with pytest.raises(SchemaError, match=r"no column 'stars'.*set data\.label"):
        prepare(config(classifier_folder, source, tmp_path / "out", "data.label=stars"))
    (source / "b.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 shards cannot be read; the first, b\.parquet"):
        prepare(config(classifier_folder, source, tmp_path / "out", "data.label=text"))


@pytest.mark.integration
def test_evaluation_gives_the_accuracy_of_the_models_own_predictions(
    ray_cluster: None, classifier_folder: Path, write_shards: Write, tmp_path: Path
) -> None:
    texts = ["good film", "awful plot", "not great", "very bad actor", "a story", "the film was"]
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    with torch.inference_mode():
        best = [model(**tokenizer(t, return_tensors="pt")).logits.argmax().item() for t in texts]
    names = ["bad", "so-so", "good"]
    labels = [names[index] for index in best[:4]] + [names[index - 1] for index in best[4:]]
    source = write_shards(
        {
            "a": pa.table({"text": texts[:3], "label": labels[:3]}),
            "b": pa.table({"text": texts[3:], "label": labels[3:]}),
        }
    )
    result = evaluate(config(classifier_folder, source, tmp_path / "out"))
    assert result.metrics["accuracy"] == pytest.approx(4 / 6)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["metrics"] == result.metrics
    assert written["rows_evaluated"] == 6
    assert "| accuracy | 0.6667 |" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/config.yaml").exists()
