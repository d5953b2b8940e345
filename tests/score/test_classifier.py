"""What the actor knows of its own time; what it makes of a table: `tests/integration/`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertray.errors import ModelError
from bertray.model.bundle import open_bundle
from bertray.model.settings import EngineSettings
from bertray.score import classifier
from bertray.score.classifier import Classifier, ClassifierSettings
from bertray.score.ledger import Attempts
from bertray.score.source import Reading


class NobodyDied(Attempts):
    """A ledger is an actor of its own; here the first process is the only one."""

    def __init__(self) -> None:
        super().__init__(None)

    @contextmanager
    def start_of_actor(self) -> Iterator[None]:
        yield


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


def test_an_actor_that_finds_another_model_than_the_driver_refuses_it_with_both_named(
    classifier_folder: Path, other_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setattr(classifier.torch, "set_num_threads", lambda num_threads: None)
    there, here = open_bundle(str(classifier_folder)), open_bundle(str(other_classifier))

    def start(model_digest: str) -> Classifier:
        return Classifier(
            ClassifierSettings(
                model=str(other_classifier),
                model_digest=model_digest,
                engine=EngineSettings(64, "cpu", "float32", 1024),
                reading=Reading("text", None, None, ""),
                num_threads=1,
                attempts=NobodyDied(),
            )
        )

    start(here.digest)
    with pytest.raises(ModelError) as error:
        start(there.digest)
    for said in (str(other_classifier), here.digest[:12], there.digest[:12], "where all nodes see"):
        assert said in str(error.value)
