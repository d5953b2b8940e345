"""The Ray cluster a job runs on: reach it, and ask it what it has."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from bertray.errors import BertrayError, ClusterError

if TYPE_CHECKING:
    from ray.data import DataContext

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S = 10.0
NODE_PATIENCE_S = 180.0  # for another node to come for a lost one when nothing else goes on
# Likewise for one that was announced to go, if other actors could do its work.
DRAINED_PATIENCE_S = 10.0
HANG_S = 6 * 3600.0  # no single split takes that long
NODE_POLL_S = 5.0
HEAD_POLL_S = 2.0
HEAD_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Node:
    """What a live node offers: logical CPUs, and GPUs."""

    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Resources:
    """What the cluster's live nodes offer, each by itself and together."""

    nodes: tuple[Node, ...]

    @property
    def num_cpus(self) -> float:
        """Logical CPUs."""
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        """GPUs."""
        return sum(node.num_gpus for node in self.nodes)

    @property
    def num_nodes(self) -> int:
        """Live nodes."""
        return len(self.nodes)

    @property
    def largest_node_cpus(self) -> float:
        """The most CPUs that one node has."""
        return max((node.num_cpus for node in self.nodes), default=0.0)


def connect(*, dashboard: bool = False) -> Resources:
    """Join the cluster that ``RAY_ADDRESS`` or ``ray start`` names, else start one in this process.

    Under ``ray job submit`` that is the cluster the job was submitted to.

    Args:
        dashboard: start one with a private cluster. Ray Train asks its API whether a run lives.

    Raises:
        ClusterError: none answers there, or it refuses our token.
    """
    debug = logger.isEnabledFor(logging.DEBUG)
    if not debug:
        # Ray's own core reports harmless things as errors on the driver's stderr
        # (https://github.com/ray-project/ray/issues/53727). Workers' logs stay in Ray's log folder;
        # what a user must know comes back with the results.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not ray.is_initialized():
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            with nullcontext() if debug else _silent_stderr():
                ray.init(
                    include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=debug
                )
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS", "auto")
            reason = str(error.__cause__ or error).strip().splitlines()[-1]
            raise ClusterError(
                f"RAY_ADDRESS={address}: no cluster to be reached: {reason}"
            ) from error
        address = ray.get_runtime_context().gcs_address
        threading.Thread(target=_watch_head, args=(address,), daemon=True).start()
    if not debug:
        # Set up anew by `import ray.data`; its plans and bars are for debugging Ray.
        for name in ("ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
    offers = [node["Resources"] for node in _live_nodes()]
    return Resources(tuple(Node(it.get("CPU", 0.0), it.get("GPU", 0.0)) for it in offers))


def _watch_head(address: str) -> None:
    """Say what to do when the head is gone: Ray ends the process within a minute, and does not."""
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while ray.is_initialized():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered >= HEAD_PATIENCE_S:
                logger.error(
                    "the cluster's head at %s does not answer: Ray will end this job. What is done "
                    "is safe; run the same command again once there is a head",
                    address,
                )
                return
        time.sleep(HEAD_POLL_S)


def own_node() -> dict[str, float]:
    """Resources of the node that this worker runs on, by name."""
    here = ray.get_runtime_context().get_node_id()
    return next((node["Resources"] for node in _live_nodes() if node["NodeID"] == here), {})


def own_gpus() -> float:
    """GPUs, or the share of one, that this worker was given."""
    given = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return float(given.get("GPU", 0.0))


def _check_address(address: str) -> None:
    """Find out in seconds what Ray tries for ten minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # a word that Ray knows, or a URL
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}"
        ) from error


def _live_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _draining_nodes() -> set[str]:
    """Ids of live nodes that will go: their machine's end was announced."""
    return set(ray._private.state.state.get_draining_nodes())


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what Ray's core greets with off the terminal; a failure to start is an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class PipelineGuard:
    """Ends a Ray Data pipeline that a lost node holds up for good, and one that failed at once.

    Ray starts an actor of a lost node again as soon as there is room for it. If there is none, all
    actors that are left come to wait for it: Ray notices after `HANG_S`.

    Ray gives nothing more to actors of a node that drains, and lets them end with it. Here each is
    started again as soon as it has done what it had in hand: the model is loaded elsewhere, or an
    autoscaler asked for another node, while this one is still there.

    To be given to ``DataContext.custom_execution_callback_classes``: Ray's executor calls it.

    Args:
        num_nodes: that the cluster had when the pipeline was planned.
    """

    def __init__(self, num_nodes: int) -> None:
        self._most_nodes = num_nodes
        self._was_one_lost = False
        self._seen: set[str] = set()
        self._drained: set[str] = set()
        self._looked = time.monotonic()
        self._held_up_since: float | None = None

    def before_execution_starts(self, executor: Any) -> None:
        """See to it that a pipeline that fails lets go of its actors.

        Ray lets them finish what they have in hand, which may take an hour, and some live on for as
        long as anything refers to the exception: whatever runs next waits for their CPUs.
        """
        shutdown = executor.shutdown

        def at_once(force: bool, exception: Exception | None = None) -> None:
            shutdown(force=force or exception is not None, exception=exception)

        executor.shutdown = at_once

    def on_execution_step(self, executor: Any) -> None:
        """Look from time to time.

        Raises:
            ClusterError: a node was lost, and for `NODE_PATIENCE_S`, or `DRAINED_PATIENCE_S`, no
                actor did any work, but some waited for a place.
        """
        now = time.monotonic()
        if now - self._looked < NODE_POLL_S:
            return
        self._looked = now
        nodes, draining = {node["NodeID"] for node in _live_nodes()}, _draining_nodes()
        num_nodes = len(nodes)
        self._seen |= nodes
        self._drained |= draining
        pools = [pool for op in executor._topology for pool in op.get_autoscaling_actor_pools()]
        _leave(draining, pools)
        self._was_one_lost |= num_nodes < self._most_nodes
        self._most_nodes = max(self._most_nodes, num_nodes)
        if not (self._was_one_lost and _is_held_up(pools)):
            self._held_up_since = None
        elif self._held_up_since is None:
            self._held_up_since = now
        else:
            lost = self._seen - nodes
            was_announced = bool(lost) and lost <= self._drained and num_nodes < self._most_nodes
            others_could = was_announced and all(map(_has_one_at_rest, filter(_waits, pools)))
            patience = DRAINED_PATIENCE_S if others_could else NODE_PATIENCE_S
            if now - self._held_up_since > patience:
                raise ClusterError(
                    f"a node was lost, {num_nodes} of {self._most_nodes} are there, and actors "
                    f"waited {patience:.0f} s for a place"
                )

    def after_execution_succeeds(self, executor: Any) -> None:
        """Ray asks for this method."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Ray asks for this method."""


def pipeline_context(watch: PipelineGuard) -> "DataContext":
    """How Ray Data is to run a pipeline; the process's own settings are left as they are."""
    from ray.data import DataContext  # takes a second, and not all who connect run pipelines

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # Ray counts blocks in flight; we count what is done
    context.custom_execution_callback_classes = [lambda: watch]  # type: ignore[list-item]
    context.raise_original_map_exception = True  # in its place Ray sends one without the cause
    # Ray takes a pipeline for hung whose blocks did not move for half an hour. Long texts or a
    # large model may keep a CPU busy for longer, and all of them at once.
    context.execution_no_progress_timeout_s = HANG_S
    return context


def _leave(draining: set[str], pools: list[Any]) -> None:
    """Start actors on nodes that drain anew, elsewhere, once they have nothing in hand."""
    for pool in pools:
        for actor, state in pool._running_actors.items():
            rests = not state.num_tasks_in_flight and not state.is_restarting
            if rests and state.actor_location in draining:
                ray.kill(actor, no_restart=False)


def _is_held_up(pools: list[Any]) -> bool:
    """Whether actors of a pipeline wait for a place, and none that has one has work in hand."""
    actors = [actor for pool in pools for actor in pool._running_actors.values()]
    works = any(actor.num_tasks_in_flight and not actor.is_restarting for actor in actors)
    return any(map(_waits, pools)) and not works


def _waits(pool: Any) -> bool:
    """Whether an actor of it waits for a place."""
    return bool(
        pool.num_pending_actors()
        or any(actor.is_restarting for actor in pool._running_actors.values())
    )


def _has_one_at_rest(pool: Any) -> bool:
    """Whether an actor of it could work if it had something to do."""
    return any(not actor.is_restarting for actor in pool._running_actors.values())


def unwrapped(items: Iterator[T]) -> Iterator[T]:
    """Pass items on; of an error that Ray wrapped, raise the one that was raised in the worker.

    Raises:
        BertrayError: a worker raised it.
        ClusterError: Ray lost what it could not bring back, or hung.
    """
    try:
        yield from items
    except Exception as error:
        ours = _own_error(error) or _lost(error)
        if ours is None:
            raise
        raise ours from error


def _lost(error: Exception) -> ClusterError | None:
    """What to say of an error of Ray's own; None if it is of the code that Ray ran."""
    from ray.data.exceptions import ExecutionTimeoutError  # here it has been imported anyway

    lost = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    if not lost and not isinstance(error, ExecutionTimeoutError):
        return None
    first = str(error).strip().splitlines()[:1]
    return ClusterError(f"{type(error).__name__}: {' '.join(first)}")


def _own_error(error: BaseException | None) -> BertrayError | None:
    """The first BertrayError in a chain of causes; Ray keeps some in ``.cause``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        # Ray's stand-in is an instance of both, and its text is a traceback.
        if isinstance(error, BertrayError) and not isinstance(error, RayTaskError):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
