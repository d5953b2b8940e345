"""A node that is lost, and one whose object store is too small for what passes through it."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import own_cluster
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import command, contents, driver, texts

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RUN_S = 240
CLASSIFIER = "ray::MapWorker(MapBatches(Classifier))"
IMPATIENT = "import bertray.cluster; bertray.cluster.NODE_PATIENCE_S = 10.0"


def test_a_node_lost_in_mid_run_and_never_replaced_costs_nothing(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({f"part-{n:03d}": texts(str(n)) for n in range(120)})
    clean, out = tmp_path / "clean", tmp_path / "out"
    with own_cluster.running(num_nodes=2, cpus_each=1) as cluster:
        words = command(classifier_folder, source, clean)
        with driver(words, cluster.environment) as run:
            assert run.communicate(timeout=RUN_S)[0], run.returncode
        assert run.returncode == 0
        words = command(classifier_folder, source, out, "pool.max_actors=2")
        with driver(words, cluster.environment, before=IMPATIENT) as run:
            while len(contents(out)) < 10 or not cluster.workers(CLASSIFIER, node=1):
                assert run.poll() is None, run.communicate()[0]
                time.sleep(0.1)
            cluster.kill(1)
            assert len(contents(out)) < 120
            said, _ = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, said
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()


def test_an_object_store_smaller_than_what_passes_through_it_only_slows_a_run(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    random = np.random.default_rng(0)
    ballast = {f"part-{n}": random.bytes(30_000_000) for n in range(5)}
    source = write_shards(
        {
            name: texts(name).append_column("ballast", pa.array([data, data[::-1]]))
            for name, data in ballast.items()
        }
    )
    out = tmp_path / "out"
    words = command(classifier_folder, source, out)
    with (
        own_cluster.running(object_store_bytes=100_000_000) as cluster,
        driver(words, cluster.environment) as run,
    ):
        said, _ = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, said
    for name, data in ballast.items():
        scored = pq.read_table(out / f"{name}.parquet")
        assert scored["text"].to_pylist() == texts(name)["text"].to_pylist()
        assert scored["ballast"][0].as_py() == data
        assert set(scored["prediction_status"].to_pylist()) == {"ok"}
