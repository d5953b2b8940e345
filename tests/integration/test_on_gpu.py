"""One CUDA card under a real Ray: trained there, measured there, scored there and on CPUs alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bertray.config import EvaluateConfig, ScoreConfig, TrainConfig, load_config
from bertray.evaluate.run import evaluate
from bertray.score.run import score
from bertray.train.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.integration,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

WORDS = "film plot the a is was very story actor".split()


def reviews(num_rows: int, *, seed: int) -> pa.Table:
    chance = np.random.default_rng(seed)
    labels = chance.choice(["awful", "good"], num_rows).tolist()
    # The label three times: with it once some bases that are random learn a few rows wrong.
    texts = [" ".join([*chance.choice(WORDS, chance.integers(1, 9)), *[w] * 3]) for w in labels]
    return pa.table({"text": texts, "label": labels})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_model_is_trained_measured_and_used_on_the_card(
    strategy: str,
    base_without_dropout: Path,
    write_shards: Callable[..., Path],
    tmp_path: Path,
) -> None:
    bundle, data = tmp_path / "bundle", write_shards({"a": reviews(800, seed=0)}, folder="data")
    lake = write_shards({f"{n}": reviews(500, seed=n + 1) for n in range(4)}, folder="lake")
    words = [f"model.base={base_without_dropout}", f"data.train={data}", f"output.path={bundle}"]
    words += ["optim.learning_rate=5e-3", "training.num_epochs=5", f"scaling.strategy={strategy}"]
    words += ["data.validation_fraction=0.2", "scaling.num_workers=1", "scaling.use_gpu=true"]
    trained = train(load_config(TrainConfig, None, words))
    assert trained.metrics["accuracy"] > 0.95

    measured = [f"model.path={bundle}", f"data.path={data}", f"output.path={tmp_path / 'report'}"]
    assert evaluate(load_config(EvaluateConfig, None, measured)).metrics["accuracy"] > 0.95

    found = {}
    for gpus in (1, 0):
        out = tmp_path / f"scored-{gpus}"
        words = [f"model.path={bundle}", f"input.path={lake}", f"output.path={out}"]
        summary = score(load_config(ScoreConfig, None, [*words, f"pool.num_gpus={gpus}"]))
        assert summary.num_rows == 2_000
        assert summary.pool is not None
        assert summary.pool.device == ("cuda" if gpus else "cpu")
        found[gpus] = pq.read_table(out)
        footer = pq.read_metadata(next(out.rglob("*.parquet"))).metadata
        wanted = "cuda torch float16" if gpus else "cpu"
        assert footer[b"bertray.engine"].decode().startswith(wanted)
    labels = [table["predicted_label"].to_pylist() for table in found.values()]
    assert labels[0] == labels[1] == pq.read_table(lake)["label"].to_pylist()
    apart = np.abs(np.subtract(*(np.array(t["predicted_probability"]) for t in found.values())))
    assert apart.max() < 0.03  # of float16, where logits are larger than a trained base's
