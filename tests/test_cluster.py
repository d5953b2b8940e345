"""What the driver knows of its cluster. Lost nodes for real: `tests/integration/test_nodes.py`."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from bertray import cluster
from bertray.errors import ClusterError


class Pipeline:
    """Time, nodes and actors as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.num_nodes = 0.0, 2
        self.draining: set[str] = set()
        self.left: list[int] = []  # actors that were to start elsewhere
        monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(
            cluster, "_live_nodes", lambda: [{"NodeID": str(n)} for n in range(self.num_nodes)]
        )
        monkeypatch.setattr(cluster, "_draining_nodes", lambda: self.draining)
        monkeypatch.setattr(ray, "kill", lambda actor, no_restart: self.left.append(actor))
        self.watch = cluster.PipelineGuard(num_nodes=2)
        self.waits, self.works, self.rests = (
            SimpleNamespace(num_tasks_in_flight=tasks, is_restarting=restarts, actor_location="1")
            for tasks, restarts in ((1, True), (1, False), (0, False))
        )
        self.actors = [self.works, self.works]
        self.num_pending = 0

    def go(self, seconds: float) -> None:
        """Ray's executor goes round ten times a second; once does here."""
        pool = SimpleNamespace(
            _running_actors=dict(enumerate(self.actors)),
            num_pending_actors=lambda: self.num_pending,
        )
        executor = SimpleNamespace(
            _topology=[SimpleNamespace(get_autoscaling_actor_pools=lambda: [pool])]
        )
        for _ in range(int(seconds)):
            self.now += 1
            self.watch.on_execution_step(executor)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    return Pipeline(monkeypatch)


def test_a_pipeline_that_waits_with_all_its_nodes_is_let_alone(pipeline: Pipeline) -> None:
    pipeline.actors = [pipeline.waits]  # an autoscaler may take its time
    pipeline.go(100 * cluster.NODE_PATIENCE_S)
    pipeline.num_nodes = 3
    pipeline.go(100 * cluster.NODE_PATIENCE_S)


def test_a_lost_node_stops_nobody_who_works_however_long_that_takes(pipeline: Pipeline) -> None:
    pipeline.num_nodes = 1
    pipeline.actors = [pipeline.works, pipeline.waits]
    pipeline.go(100 * cluster.NODE_PATIENCE_S)


@pytest.mark.parametrize("place", ["lost", "never had"])
def test_actors_without_a_place_end_a_pipeline_that_lost_a_node_and_does_nothing_else(
    pipeline: Pipeline, place: str
) -> None:
    pipeline.num_nodes = 1
    pipeline.actors = [pipeline.rests]
    pipeline.go(100 * cluster.NODE_PATIENCE_S)  # nothing is to do
    if place == "lost":
        pipeline.actors = [pipeline.rests, pipeline.waits]
    else:
        pipeline.num_pending = 1
    pipeline.go(cluster.NODE_PATIENCE_S - 10)
    with pytest.raises(ClusterError, match="a node was lost, 1 of 2 are there"):
        pipeline.go(20)


def test_a_node_that_comes_too_late_or_too_small_does_not_reset_the_clock(
    pipeline: Pipeline,
) -> None:
    pipeline.num_nodes = 1
    pipeline.actors = [pipeline.waits]
    pipeline.go(cluster.NODE_PATIENCE_S - 10)
    pipeline.num_nodes = 2
    with pytest.raises(ClusterError, match="2 of 2 are there"):
        pipeline.go(20)


def test_an_actor_that_finds_a_place_goes_on(pipeline: Pipeline) -> None:
    pipeline.num_nodes = 1
    pipeline.actors = [pipeline.waits]
    pipeline.go(cluster.NODE_PATIENCE_S - 10)
    pipeline.actors = [pipeline.works]
    pipeline.go(100 * cluster.NODE_PATIENCE_S)


def test_an_actor_of_a_node_that_will_go_starts_elsewhere_once_it_has_nothing_in_hand(
    pipeline: Pipeline,
) -> None:
    pipeline.draining = {"1"}
    pipeline.actors = [pipeline.works, pipeline.works]
    pipeline.go(100)
    assert pipeline.left == []
    pipeline.actors = [pipeline.works, pipeline.rests]
    pipeline.go(cluster.NODE_POLL_S)
    assert pipeline.left == [1]
    pipeline.actors = [pipeline.works, pipeline.waits]  # for another place
    pipeline.go(100)
    assert pipeline.left == [1]


def test_no_long_wait_for_a_node_that_was_said_to_go_if_other_actors_are_at_rest(
    pipeline: Pipeline,
) -> None:
    pipeline.draining, pipeline.actors = {"1"}, [pipeline.works]
    pipeline.go(10)
    pipeline.draining, pipeline.num_nodes = set(), 1
    pipeline.actors = [pipeline.waits]  # it alone could do its work
    pipeline.go(cluster.NODE_PATIENCE_S - 10)
    pipeline.actors = [pipeline.works]
    pipeline.go(10)
    pipeline.actors = [pipeline.rests, pipeline.waits]
    with pytest.raises(ClusterError, match="waited 10 s for a place"):
        pipeline.go(cluster.DRAINED_PATIENCE_S + 3 * cluster.NODE_POLL_S)


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*closed.getsockname())
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address}: no Ray cluster answers"):
        cluster.connect()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """What stands for a head that Ray is connected to."""
    monkeypatch.setattr(cluster, "HEAD_POLL_S", 0.01)
    monkeypatch.setattr(cluster, "HEAD_PATIENCE_S", 0.05)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return socket.create_server(("127.0.0.1", 0))


def test_a_head_that_is_gone_is_told_of_with_what_to_do(
    head: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    address = "{}:{}".format(*head.getsockname())
    watching = threading.Thread(target=cluster._watch_head, args=(address,))
    watching.start()
    time.sleep(0.2)
    assert not caplog.records
    head.close()
    watching.join(timeout=10)
    (said,) = caplog.messages
    assert address in said
    assert "run the same command again" in said


def test_nobody_misses_the_head_of_a_cluster_that_was_left(
    head: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    head.close()
    cluster._watch_head("127.0.0.1:1")
    assert not caplog.records
