"""Who is blamed when a worker dies, without a cluster."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from bertray.score import ledger
from bertray.score.ledger import ATTEMPTS, Attempts, Gate, Ledger, TooManyDeathsError


class Remote:
    """A ledger actor's handle, in this process."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.begin = SimpleNamespace(remote=self.ledger.begin)
        self.end = SimpleNamespace(remote=self.ledger.end)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    monkeypatch.setattr(ledger.ray, "get", lambda value: value)
    restart(monkeypatch)
    yield Attempts(Remote())
    ledger._ended.clear()


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had died and another one had come for it."""
    monkeypatch.setattr(ledger, "_gate", Gate())
    ledger._ended.clear()


def tries_of(attempts: Attempts) -> dict[str, int]:
    remote: Any = attempts._ledger
    return dict(remote.ledger._tries)


def test_a_task_that_never_ends_is_given_up_and_then_tried_anew(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(ATTEMPTS):
        attempts.one("reading", "a").__enter__()
        restart(monkeypatch)
    with (
        pytest.raises(TooManyDeathsError, match="died 3 times while reading it"),
        attempts.one("reading", "a"),
    ):
        pytest.fail("it was tried once more")
    with attempts.one("reading", "b"):
        assert tries_of(attempts) == {"reading b": 1}


def test_an_end_is_told_with_the_next_begin_whatever_it_was(attempts: Attempts) -> None:
    with pytest.raises(ZeroDivisionError), attempts.one("reading", "a"):
        _ = 1 / 0
    assert tries_of(attempts) == {"reading a": 1}
    with attempts.one("reading", "b"):
        assert tries_of(attempts) == {"reading b": 1}


def test_that_an_actor_has_started_is_told_at_once(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_actor_id=lambda: "1")
    monkeypatch.setattr(ledger.ray, "get_runtime_context", lambda: context)
    with attempts.start_of_actor():
        assert len(tries_of(attempts)) == 1
    assert not tries_of(attempts)


def test_a_task_that_may_be_deadly_runs_alone_and_nobody_begins_meanwhile(
    attempts: Attempts,
) -> None:
    attempts._ledger.ledger.begin("classifying deadly", ())  # and its process died
    others_running = threading.Event()
    ran_alone: list[bool] = []
    begun: list[str] = []

    def other(name: str) -> None:
        with attempts.one("classifying", name):
            begun.append(name)
            others_running.set()
            time.sleep(0.2)
            begun.remove(name)

    def deadly() -> None:
        others_running.wait(5)
        with attempts.one("classifying", "deadly"):
            ran_alone.append(not begun)
            time.sleep(0.3)  # time enough for the third
            ran_alone.append(not begun)
            ran_alone.append("classifying third" not in tries_of(attempts))

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(other, "first")
        second = threads.submit(deadly)
        others_running.wait(5)
        time.sleep(0.1)
        third = threads.submit(other, "third")
        for task in (first, second, third):
            task.result(10)
    assert ran_alone == [True, True, True]


def test_two_that_may_be_deadly_do_not_wait_for_each_other(attempts: Attempts) -> None:
    for name in "ab":
        attempts._ledger.ledger.begin(f"classifying {name}", ())
    both = threading.Barrier(2)
    running: list[str] = []

    def go(name: str) -> bool:
        both.wait(5)
        with attempts.one("classifying", name):
            running.append(name)
            time.sleep(0.1)
            alone = len(running) == 1
            running.remove(name)
        return alone

    with ThreadPoolExecutor(2) as threads:
        tasks = [threads.submit(go, name) for name in "ab"]
        assert [task.result(10) for task in tasks] == [True, True]


def test_many_threads_tell_each_end_once(attempts: Attempts) -> None:
    def go(number: int) -> None:
        with attempts.one("classifying", str(number)):
            pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(go, range(2000)))
    with attempts.one("classifying", "last"):
        assert tries_of(attempts) == {"classifying last": 1}
