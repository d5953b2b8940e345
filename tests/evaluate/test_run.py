import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from bertray.config import EvaluateConfig, load_config
from bertray.errors import ConfigError, DataError, SchemaError
from bertray.evaluate.run import evaluate, prepare, rate_of
from bertray.model.bundle import open_bundle

Write = Callable[..., Path]


def config(model: Path, data: Path, output: Path, *words: str) -> EvaluateConfig:
    paths = [f"model.path={model}", f"data.path={data}", f"output.path={output}"]
    paths.append("pool.max_actors=1")
    return load_config(EvaluateConfig, None, [*paths, *words])


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


def test_a_calibration_needs_a_method_and_a_place(tmp_path: Path) -> None:
    for word in ("calibration.method=vector", f"calibration.bundle={tmp_path}"):
        with pytest.raises(ConfigError, match=r"go together; give both or neither"):
            config(tmp_path, tmp_path, tmp_path, word)


def test_the_rate_leaves_out_the_time_in_which_actors_start() -> None:
    two_actors = [(60.0, 8), (61.0, 8), (62.0, 8), (63.0, 8), (64.0, 8), (64.5, 4)]
    assert rate_of(two_actors, start=0.0, num_at_once=2) == 28 / 3.5
    assert rate_of(two_actors[:3], start=0.0, num_at_once=2) == 24 / 62
    assert rate_of(two_actors[:1], start=10.0, num_at_once=1) == 8 / 50


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
            "a": pa.table({"text": texts[:3], "label": labels[:3], "day": [1] * 3}),
            "b": pa.table({"text": texts[3:], "label": labels[3:], "day": [2] * 3}),
        }
    )
    copy = tmp_path / "copy"
    words = ["calibration.method=temperature", f"calibration.bundle={copy}", "data.slices=[day]"]
    result = evaluate(config(classifier_folder, source, tmp_path / "out", *words))
    assert result.metrics["accuracy"] == pytest.approx(4 / 6)
    assert [(one.value, one.num_rows) for one in result.slices["day"]] == [("1", 3), ("2", 3)]
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["metrics"] == result.metrics
    assert written["rows_evaluated"] == 6
    assert written["calibration"]["before"]["accuracy"] == result.metrics["accuracy"]
    assert "| accuracy | 0.6667 |" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/config.yaml").exists()
    calibrated = open_bundle(str(copy))
    assert result.copy is not None
    assert calibrated.digest == result.copy.digest == written["calibration"]["bundle_digest"]
    assert calibrated.calibration == result.copy.calibration
