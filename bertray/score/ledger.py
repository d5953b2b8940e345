"""How often a split has killed its worker, so that it ends quarantined and not as an endless loop.

Ray restarts a worker that dies and tries its task again, without an end unless told: a text that
crashes a library would be tried for ever, and a bound on Ray's side fails the whole run. So Ray may
retry as it likes, and each stage asks here first.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray

ATTEMPTS = 3

# What this process has to tell with its next `begin`: a message less for each task. If it dies
# before, tasks that ended well have one try less, should their results be lost.
_ended: "deque[str]" = deque()


class Ledger:
    """Counts the tries of each task that began and did not end. One Ray actor of a run."""

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}

    def begin(self, task: str, ended: Sequence[str]) -> int:
        """How many tries, this one included, have begun and not ended.

        Args:
            task: that is to begin.
            ended: tasks that came to their ends since, whatever these were.
        """
        for one in ended:
            self._tries.pop(one, None)
        self._tries[task] = self._tries.get(task, 0) + 1
        return self._tries[task]


def _take(queue: "deque[str]") -> list[str]:
    """Empty a queue that other threads fill."""
    return [queue.popleft() for _ in range(len(queue))]


class TooManyDeathsError(Exception):
    """A task has killed its worker process as often as it may."""


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

        It moves if its node dies, and counts anew.
        """
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return cls(ray.remote(Ledger).options(**lasting).remote())

    def one_start(self) -> AbstractContextManager[None]:
        """Start an actor; a restarted one is the same."""
        return self.one("loading the model for", ray.get_runtime_context().get_actor_id() or "")

    @contextmanager
    def one(self, stage: str, what: str) -> Iterator[None]:
        """Run a stage on something, mostly a split's id.

        Raises:
            TooManyDeathsError: it was tried `ATTEMPTS` times, and no try came to an end.
        """
        task = f"{stage} {what}"
        tries: int = ray.get(self._ledger.begin.remote(task, _take(_ended)))
        try:
            if tries > ATTEMPTS:
                raise TooManyDeathsError(
                    f"its worker process died {ATTEMPTS} times while {stage} it: out of memory, or "
                    "a crash in a library; see Ray's worker logs"
                )
            yield
        finally:
            _ended.append(task)
