"""A search goes on where an earlier attempt was cut off, and stops none that is at its end."""

from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from bertray.config import Search, TrainConfig, load_config
from bertray.errors import BertrayError, ClusterError, ConfigError, DataError, OutputError
from bertray.train import trials as of_tune
from bertray.train.search import Trial, TrialEpoch, draw
from bertray.train.state import Epoch
from bertray.train.trials import make_scheduler, read_trials, run_trials, write_trial


def trial(number: int, *values: float) -> Trial:
    return Trial(number, {"optim.schedule": "linear"}, "done", "loss", values, {"loss": 1.0}, 2.0)


def test_what_a_trial_came_to_is_read_back_as_it_was(tmp_path: Path) -> None:
    record = str(tmp_path / "record")
    assert read_trials(record, 3) == {}
    for number in (1, 3):
        write_trial(record, trial(number, 0.5, 0.25))
    assert read_trials(record, 3) == {1: trial(1, 0.5, 0.25), 3: trial(3, 0.5, 0.25)}


def test_a_trial_is_measured_by_those_of_an_earlier_attempt_too() -> None:
    search = Search(keys={"optim.weight_decay": [0.0, 0.1]}, reduction_factor=2)
    weak: Any = SimpleNamespace(trial_id="new")
    decisions = []
    for known in ([], [trial(1, 0.2, 0.1), trial(2, 0.3, 0.2)]):  # losses: less is better
        scheduler: Any = make_scheduler(search, num_epochs=3, known=known)
        scheduler.on_trial_add(None, weak)
        decisions.append(scheduler.on_trial_result(None, weak, {"epoch": 1, "score": -0.9}))
    assert decisions == ["CONTINUE", "STOP"]


def test_after_its_last_epoch_no_trial_is_stopped() -> None:
    search = Search(keys={"optim.weight_decay": [0.0, 0.1]}, reduction_factor=2)
    scheduler: Any = make_scheduler(search, num_epochs=2, known=[trial(1, 0.2, 0.1)])
    fallen: Any = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, fallen)
    for epoch, score in ((1, -0.1), (2, -0.9)):
        told = {"epoch": epoch, "score": score}
        assert scheduler.on_trial_result(None, fallen, told) == "CONTINUE"


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """A search of two trials, of three epochs each."""
    words = ["model.base=b", "data.train=t", f"output.path={tmp_path}", "training.num_epochs=3"]
    config = load_config(
        TrainConfig, None, [*words, "search.keys={optim.weight_decay: [0.0, 0.1]}"]
    )
    trials = [SimpleNamespace(config=one) for one in draw(config)]
    return SimpleNamespace(config=config, lineage={"data": "d"}, metric="loss", trials=trials)


def run(job: Any, monkeypatch: pytest.MonkeyPatch, *events: Any) -> tuple[list[Trial], list[Any]]:
    """What comes of a search in which Tune tells all that; and what is told meanwhile."""
    told: list[Any] = []
    runs: Any = [SimpleNamespace(worker_job=SimpleNamespace(training=job.config.training))] * 2

    def tune_trials(numbers: list[int], *_: Any, on_event: Any, **__: Any) -> None:
        for event in events:
            if event[0] in numbers:
                on_event(event)

    monkeypatch.setattr("bertray.train.trials.tune_trials", tune_trials)
    return run_trials(job, runs, at_once=1, on_progress=told.append), told


def epoch(number: int, loss: float) -> Epoch:
    return Epoch(number, number, 0.5, {"loss": loss}, 10, 100, 2.0)


def test_each_epoch_and_each_trial_is_told_of_once(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [(1, epoch(1, 0.5)), (1, epoch(2, 0.6)), (1, epoch(2, 0.6)), (1, "done")]
    trials, told = run(job, monkeypatch, *events, (2, epoch(1, 0.9)), (2, "stopped"))
    assert [one.values for one in trials] == [(0.5, 0.6), (0.9,)]
    assert [one.epoch.epoch for one in told if isinstance(one, TrialEpoch)] == [1, 2, 1]
    assert [one for one in told if isinstance(one, Trial)] == trials


def test_what_a_trial_had_done_before_it_was_cut_off_counts_whatever_asha_says_of_it_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [epoch(1, 0.9), epoch(2, 0.1)]
    training = SimpleNamespace(num_epochs=3)
    cut_off: Any = object.__new__(of_tune._TrialProcess)
    cut_off._run = SimpleNamespace(
        config=None, worker_job=SimpleNamespace(metric="loss", training=training)
    )
    monkeypatch.setattr(of_tune, "earlier_epochs", lambda config: before)
    report = next(cut_off._train())
    assert (report["epoch"], report["score"]) == (1, -0.9)
    heard: Queue[Any] = Queue()
    told_of: Any = SimpleNamespace(config={of_tune.NUMBER: 4})
    of_tune._Watch(heard).on_trial_result(1, [], told_of, {**report, "done": True})
    assert list(heard.queue) == [(4, before[0]), (4, before[1]), (4, "stopped")]


@pytest.mark.parametrize(
    "lost", [ClusterError("no memory"), ConfigError("no memory"), OutputError("no memory")]
)
def test_of_trials_that_failed_only_those_whose_loss_was_not_finite_are_not_tried_again(
    job: Any, monkeypatch: pytest.MonkeyPatch, lost: BertrayError
) -> None:
    broken = DataError("the loss is nan")
    with pytest.raises(type(lost), match="all 2 trials failed, the first so: no memory"):
        run(job, monkeypatch, (1, lost), (2, broken))
    trials, _ = run(job, monkeypatch, (1, epoch(1, 0.5)), (1, "done"), (2, epoch(1, 0.1)))
    assert [(one.number, one.status) for one in trials] == [(1, "done"), (2, "failed")]


def test_where_all_settings_are_bad_the_user_hears_of_the_first(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for events in ([(1, DataError("nan")), (2, DataError("inf"))], []):  # and once more
        with pytest.raises(DataError, match="all 2 trials failed, the first so: nan"):
            run(job, monkeypatch, *events)
