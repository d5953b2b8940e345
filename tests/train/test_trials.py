"""A search goes on where an earlier attempt was cut off, and stops none that is at its end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bertray.config import Search
from bertray.train.search import Trial
from bertray.train.trials import make_scheduler, read_trials, write_trial


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
