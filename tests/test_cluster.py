"""What the driver knows of its cluster. Lost nodes for real: `tests/integration/test_nodes.py`."""

import socket
from types import SimpleNamespace

import pytest
import ray

from bertray import cluster
from bertray.errors import ClusterError


class Clock:
    """Time and nodes as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.nodes = 0.0, 2
        monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(cluster, "_num_nodes", lambda: self.nodes)
        self.watch = cluster.NodeWatch()

    def go(self, seconds: float) -> None:
        """Ray's executor goes round once a second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.watch.on_execution_step(None)


def test_a_pipeline_that_waits_with_all_its_nodes_is_let_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    clock.go(100 * cluster.NODE_PATIENCE_S)
    clock.nodes = 3  # one more came
    clock.go(100 * cluster.NODE_PATIENCE_S)


def test_a_lost_node_ends_a_pipeline_once_nothing_came_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    results = clock.watch.passing(iter("ab"))
    clock.go(10 * cluster.NODE_PATIENCE_S)
    clock.nodes = 1
    clock.go(cluster.NODE_PATIENCE_S - 10)
    assert next(results) == "a"
    clock.go(cluster.NODE_PATIENCE_S - 10)
    with pytest.raises(ClusterError, match="1 of 2 nodes were lost"):
        clock.go(20)


def test_another_node_that_comes_for_a_lost_one_gets_the_time_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    clock.go(10)
    clock.nodes = 1
    clock.go(cluster.NODE_PATIENCE_S - 10)
    clock.nodes = 2
    clock.go(10 * cluster.NODE_PATIENCE_S)


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*closed.getsockname())
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address}: no Ray cluster answers"):
        cluster.connect()
