"""Who is blamed when a worker dies, without a cluster."""

import threading
import time
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
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    monkeypatch.setattr(ledger.ray, "get", lambda value: value)
    restart(monkeypatch)
    return Attempts(Remote())


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had died and another one had come for it."""
    monkeypatch.setattr(ledger, "_gate", Gate())
    monkeypatch.setattr(ledger, "_is_heir", lambda: True)


def tries_of(attempts: Attempts) -> dict[str, int]:
    remote: Any = attempts._ledger
    return dict(remote.ledger._tries)


def test_a_task_that_never_ends_is_given_up_and_then_tried_anew(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_left = []
    for _ in range(ATTEMPTS):
        never_left.append(attempts.one("reading", "a"))
        never_left[-1].__enter__()
        restart(monkeypatch)
    with (
        pytest.raises(TooManyDeathsError, match="died more than 3 times while reading it"),
        attempts.one("reading", "a"),
    ):
        pytest.fail("it was tried once more")
    with attempts.one("reading", "b"):
        assert tries_of(attempts) == {"reading b": 1}


def test_an_end_is_told_whatever_it_was(attempts: Attempts) -> None:
    with pytest.raises(ZeroDivisionError), attempts.one("reading", "a"):
        _ = 1 / 0
    assert not tries_of(attempts)


def test_a_process_that_came_for_no_dead_one_asks_nobody(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_is_heir", lambda: False)
    with attempts.one("reading", "a"):
        assert not tries_of(attempts)


def test_the_start_of_an_actor_is_a_task_too(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_actor_id=lambda: "1")
    monkeypatch.setattr(ledger.ray, "get_runtime_context", lambda: context)
    with attempts.start_of_actor():
        assert tries_of(attempts) == {"loading the model for 1": 1}
    assert not tries_of(attempts)


def test_a_task_that_may_be_deadly_runs_alone_and_nobody_begins_meanwhile(
    attempts: Attempts,
) -> None:
    attempts._ledger.ledger.begin("classifying deadly")  # and its process died
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
        attempts._ledger.ledger.begin(f"classifying {name}")
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
