"""Nodes that drain, are lost, or have an object store too small for what passes through it."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import own_cluster
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_cluster import OwnCluster
from scoring import command, contents, driver, texts

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RUN_S = 240
CLASSIFIER = "ray::MapWorker(MapBatches(Classifier))"
IDLE_S = 60.0  # patience for a node that is to end, as the autoscaled one is when idle for fifteen
DRAIN_S = 20.0  # what Ray gives a node to come to rest
# A run whose last third waits until it is told to go on; the first ones take their time, so that no
# actor has one of those in hand when its node is asked to drain.
LASTS = """
import time
from pathlib import Path
from bertray.score import pipeline

class Classifier(pipeline.Classifier):
    def _classify(self, block, split):
        time.sleep(0.1)
        while split.shard >= "part-080" and not Path({go_on!r}).exists():
            time.sleep(0.1)
        return super()._classify(block, split)

pipeline.Classifier = Classifier
"""
IMPATIENT = "import bertray.cluster; bertray.cluster.NODE_PATIENCE_S = 10.0"


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    """Three nodes; each of the tests of lost ones takes one away."""
    drain = {own_cluster.DRAIN_TIMEOUT: f"{DRAIN_S:g}"}
    with own_cluster.running(num_nodes=3, cpus_each=1, **drain) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    for number in range(120):
        pq.write_table(texts(str(number)), folder / f"part-{number:03d}.parquet")
    return folder


@pytest.fixture(scope="module")
def clean(
    cluster: OwnCluster,
    lake: Path,
    tmp_path_factory: pytest.TempPathFactory,
    classifier_folder: Path,
) -> Path:
    """What a run that lost nothing wrote."""
    out = tmp_path_factory.mktemp("clean") / "out"
    with driver(command(classifier_folder, lake, out), cluster.environment) as run:
        assert run.communicate(timeout=RUN_S)[0], run.returncode
    assert run.returncode == 0
    return out


def test_a_node_that_drains_is_left_before_it_goes(
    cluster: OwnCluster, lake: Path, clean: Path, tmp_path: Path, classifier_folder: Path
) -> None:
    out, go_on = tmp_path / "out", tmp_path / "go-on"
    words = command(classifier_folder, lake, out, "pool.max_actors=2")
    with driver(words, cluster.environment, before=LASTS.format(go_on=str(go_on))) as run:
        try:
            node = node_to_lose(cluster, out, run)
            cluster.nodes[node].terminate()  # as Kubernetes does: Ray drains it, then ends it
            others = [number for number in range(3) if number != node]
            while cluster.workers(CLASSIFIER, node=node) or not all(
                cluster.workers(CLASSIFIER, node=number) for number in others
            ):
                assert run.poll() is None, run.communicate()[0]
                time.sleep(0.1)
            # Whatever else Ray has put there may keep it to the end of that time, and goes with it.
            cluster.nodes[node].wait(timeout=DRAIN_S + IDLE_S)
        finally:
            go_on.touch()
        said, _ = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, said
    assert "node was lost" not in said
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()


def test_a_node_lost_in_mid_run_and_never_replaced_costs_nothing(
    cluster: OwnCluster, lake: Path, clean: Path, tmp_path: Path, classifier_folder: Path
) -> None:
    out = tmp_path / "out"
    words = command(classifier_folder, lake, out, "pool.max_actors=2")
    with driver(words, cluster.environment, before=IMPATIENT) as run:
        cluster.kill(node_to_lose(cluster, out, run))
        assert len(contents(out)) < 120
        said, _ = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, said
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()


def node_to_lose(cluster: OwnCluster, out: Path, run: "subprocess.Popen[str]") -> int:
    """One that classifies, besides the head, once some shards are done."""
    while True:
        assert run.poll() is None, run.communicate()[0]
        busy = [number for number in (1, 2) if cluster.workers(CLASSIFIER, node=number)]
        if busy and len(contents(out)) >= 10:
            return busy[0]
        time.sleep(0.1)


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


def test_a_run_on_a_cluster_without_workers_brings_one_that_goes_when_it_is_done(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({f"part-{n}": texts(str(n)) for n in range(20)})
    out = tmp_path / "out"
    words = command(classifier_folder, source, out, "pool.min_actors=1", "pool.max_actors=2")
    with own_cluster.running(cpus_each=0, autoscaled_cpus=2) as cluster:
        most = 0
        with driver(words, cluster.environment) as run:
            while run.poll() is None:
                most = max(most, len(cluster.raylets()))
                time.sleep(0.1)
            said, _ = run.communicate()
        assert run.returncode == 0, said
        assert most > 1  # now and then one that is being started is seen as its parent
        deadline = time.monotonic() + IDLE_S
        while len(cluster.raylets()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert pq.read_table(out).num_rows == 40


def test_training_on_a_cluster_that_rests_has_a_node_come(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    out = tmp_path / "out"
    rows = pa.table({"text": ["good film", "bad plot"] * 20, "label": ["x", "y"] * 20})
    words = ["train", f"model.base={classifier_folder}", f"output.path={out}"]
    words += [f"data.train={write_shards({'part-0': rows})}", "training.num_epochs=1"]
    with (
        own_cluster.running(cpus_each=0, autoscaled_cpus=2) as cluster,
        driver(words, cluster.environment) as run,
    ):
        said, _ = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, said
    assert (out / "bertray.json").exists()
