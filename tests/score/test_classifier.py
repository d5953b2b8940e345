"""What the actor knows of its own time; what it makes of a table: `tests/integration/`."""

from types import SimpleNamespace

import pytest

from bertray.score import classifier


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    time = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(classifier, "time", time)
    return clock


def test_an_actor_waits_from_its_start_to_its_first_split_and_between_splits(
    clock: SimpleNamespace,
) -> None:
    waits = classifier.Waits()
    clock.now += 2
    with waits.in_hand():
        clock.now += 50
        assert waits.take() == 2
    clock.now += 1
    with waits.in_hand():
        pass
    clock.now += 4
    with waits.in_hand():
        clock.now += 50
    clock.now += 50  # nobody knows yet whether another one comes
    assert waits.take() == 1 + 4
    assert waits.take() == 0


def test_with_one_of_two_splits_in_hand_an_actor_does_not_wait(clock: SimpleNamespace) -> None:
    waits = classifier.Waits()
    first, second = waits.in_hand(), waits.in_hand()
    first.__enter__()
    clock.now += 5
    second.__enter__()
    first.__exit__(None, None, None)
    clock.now += 5
    with waits.in_hand():
        second.__exit__(None, None, None)
    assert waits.take() == 0


def test_a_split_that_fails_is_not_in_hand_any_more(clock: SimpleNamespace) -> None:
    waits = classifier.Waits()
    with pytest.raises(RuntimeError), waits.in_hand():
        raise RuntimeError
    clock.now += 3
    with waits.in_hand():
        assert waits.take() == 3
