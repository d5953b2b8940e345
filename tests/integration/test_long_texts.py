"""Windows all the way: trained, evaluated and scored alike on a real, small Ray cluster."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import EvaluateConfig, ScoreConfig, TrainConfig, load_config
from bertray.errors import ConfigError
from bertray.evaluate.run import evaluate
from bertray.evaluate.run import prepare as prepare_evaluation
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings
from bertray.score.run import prepare, score
from bertray.text.long import LongText
from bertray.train.run import train

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

WORDS = "film plot the a is was very story actor".split()
NUM_ROWS = 60


def test_a_bundle_of_windows_is_evaluated_and_scored_in_windows(
    write_shards: Callable[..., Path], classifier_folder: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    labels = ["neg", "pos"] * (NUM_ROWS // 2)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 50))) for _ in labels]
    table = pa.table({"id": range(NUM_ROWS), "text": texts, "label": labels})
    data = write_shards({"a": table[:25], "b": table[25:]})
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    words = ["text.long=window", "text.stride=2", "model.max_length=10", "training.num_epochs=1"]
    places = [f"model.base={classifier_folder}", f"data.train={data}", f"output.path={bundle}"]
    summary = train(load_config(TrainConfig, None, [*places, *words, "scaling.num_workers=2"]))
    assert summary.epochs[0].num_rows == summary.num_rows == NUM_ROWS - summary.num_validation_rows

    opened = open_bundle(str(bundle))
    assert opened.long_text == LongText("window", 2)
    engine = Engine(opened, resolve_settings(opened, device="cpu"), num_threads=1)
    wanted = engine.predict(texts).probabilities
    places = [f"model.path={bundle}", f"data.path={data}", f"output.path={tmp_path / 'found'}"]
    found = evaluate(load_config(EvaluateConfig, None, [*places, "pool.max_actors=1"]))
    right = (wanted.argmax(axis=1) == [opened.labels.index(label) for label in labels]).mean()
    assert found.metrics["accuracy"] == pytest.approx(right)

    places = [f"model.path={bundle}", f"input.path={data}", f"output.path={out}"]
    score(load_config(ScoreConfig, None, [*places, "pool.max_actors=1"]))
    scored = pq.read_table(out).sort_by("id")
    assert scored["id"].to_pylist() == list(range(NUM_ROWS))
    np.testing.assert_allclose(np.array(scored["probabilities"].to_pylist()), wanted, atol=1e-5)
    assert "text" not in json.loads((out / "_contract.json").read_text())["settings"]

    refused = [*places[:2], f"output.path={tmp_path / 'other'}", "text.long=truncate"]
    with pytest.raises(ConfigError, match=r"text\.stride="):
        prepare(load_config(ScoreConfig, None, [*refused, "text.stride=3"]))
    with pytest.raises(ConfigError, match=r"trained on single texts; leave input\.text_pair"):
        prepare(load_config(ScoreConfig, None, [*refused, "input.text_pair=text"]))
    paired = [f"model.path={classifier_folder}", f"data.path={data}", "output.path=o"]
    paired += ["data.text_pair=text", "text.long=window", "model.max_length=10"]
    with pytest.raises(ConfigError, match=r"text\.long=window takes single texts"):
        prepare_evaluation(load_config(EvaluateConfig, None, paired))
