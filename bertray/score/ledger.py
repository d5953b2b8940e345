"""How often a split has killed its worker, so that it ends quarantined and not as an endless loop.

Ray restarts a worker that dies and tries its task again, without an end unless told: a text that
crashes a library would be tried for ever, and a bound on Ray's side fails the whole run. So Ray may
retry as it likes, and each stage asks here first. Ray tries a task again in the process that it
starts in place of the dead one, so a process that is nobody's heir need not ask.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ATTEMPTS = 3  # that are counted; the one before, in the first process, is not


class Ledger:
    """Counts the tries of each task that began and of whose end it was not told. A Ray actor."""

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}

    def begin(self, task: str) -> int:
        """How many tries, this one included, have begun and not ended."""
        self._tries[task] = self._tries.get(task, 0) + 1
        return self._tries[task]

    def end(self, task: str) -> None:
        """It came to its end, whatever that was."""
        self._tries.pop(task, None)


class Gate:
    """Lets a process's tasks run side by side, and one that may be deadly run alone.

    Else it would take others with it, and they would be blamed as often as it is.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._wants_alone = False

    def enter(self) -> None:
        """Wait until nothing runs alone, or waits to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wants_alone)
            self._running += 1

    def stay_alone(self) -> None:
        """Wait, after `enter`, until nothing else runs."""
        with self._changed:
            self._running -= 1  # another one may want to be alone
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._wants_alone)
            self._running += 1
            self._wants_alone = True
            self._changed.wait_for(lambda: self._running == 1)

    def leave(self, *, was_alone: bool) -> None:
        """Let others go on."""
        with self._changed:
            self._running -= 1
            if was_alone:
                self._wants_alone = False
            self._changed.notify_all()


class TooManyDeathsError(Exception):
    """A task has killed its worker process as often as it may."""


_gate = Gate()  # of this process


@cache
def _is_heir() -> bool:
    """Whether Ray started this process's actor again after a process of it died."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class Attempts:
    """The workers' way to the `Ledger`; it travels to them by pickling.

    Args:
        ledger: a handle of the actor.
    """

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    @classmethod
    def start(cls) -> "Attempts":
        """Start the ledger in the cluster; it lives as long as this object.

        On the driver's node: on another one it would keep a node that drains from going early.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return cls(ray.remote(Ledger).options(**lasting, scheduling_strategy=here).remote())

    @contextmanager
    def start_of_actor(self) -> Iterator[None]:
        """Start an actor; a restarted one is the same.

        Raises:
            TooManyDeathsError: as `one`.
        """
        with self.one("loading the model for", ray.get_runtime_context().get_actor_id() or ""):
            yield

    @contextmanager
    def one(self, stage: str, what: str) -> Iterator[None]:
        """Run a stage on something, mostly a split's id.

        Raises:
            TooManyDeathsError: it was tried `ATTEMPTS` times, and no try came to an end.
        """
        if not _is_heir():
            yield
            return
        task = f"{stage} {what}"
        _gate.enter()
        tries = 0
        try:
            tries = ray.get(self._ledger.begin.remote(task))
            if tries > ATTEMPTS:
                raise TooManyDeathsError(
                    f"its worker process died more than {ATTEMPTS} times while {stage} it: out of "
                    "memory, a crash in a library, or a lost node; see Ray's worker logs"
                )
            if tries > 1:
                _gate.stay_alone()
            yield
        finally:
            self._ledger.end.remote(task)
            _gate.leave(was_alone=1 < tries <= ATTEMPTS)
