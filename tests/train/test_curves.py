"""The picture of a training, from one step to many."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from bertray.train.curves import _running_mean, draw_curves, write_events
from bertray.train.state import Epoch, read_steps, write_steps
from bertray.train.steps import Step


def course(num_epochs: int, steps_each: int) -> tuple[list[Step], list[Epoch]]:
    num_steps = num_epochs * steps_each
    steps = [
        Step(number, num_steps, 1 / number, 1e-5 * number, 1.0, 32, 700)
        for number in range(1, num_steps + 1)
    ]
    metrics = {"accuracy": 0.8, "macro_f1": 0.7, "loss": 0.5, "rmse": 1e4}
    return steps, [
        Epoch(number, number * steps_each, 0.4, metrics, 32, 700, 1.0)
        for number in range(1, num_epochs + 1)
    ]


@pytest.mark.parametrize(("num_epochs", "steps_each"), [(1, 1), (3, 300)])
@pytest.mark.parametrize("metric", ["accuracy", "loss", "rmse"])
def test_any_course_can_be_drawn(
    tmp_path: Path, num_epochs: int, steps_each: int, metric: str
) -> None:
    steps, epochs = course(num_epochs, steps_each)
    draw_curves(tmp_path / "curves.png", steps, epochs, metric=metric, kept=epochs[0])
    with Image.open(tmp_path / "curves.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert picture.width > 1000
    assert len(colours) > 10  # not blank


def test_the_running_mean_of_equal_values_is_that_value() -> None:
    assert _running_mean([2.0] * 100) == pytest.approx([2.0] * 100)
    assert _running_mean([5.0]) == [5.0]
    falling = _running_mean([1.0] * 100 + [0.0] * 100)
    assert falling[99] == pytest.approx(1)
    assert 0 < falling[110] < falling[101] < 1


def test_steps_are_read_back_as_they_were_from_plain_json() -> None:
    steps, _ = course(2, 3)
    steps[1] = replace(steps[1], grad_norm=None)  # float16 overflowed
    written = write_steps(steps)
    assert read_steps(written) == steps
    assert json.loads(written.splitlines()[1])["grad_norm"] is None


def test_tensorboard_is_told_each_step_and_epoch(tmp_path: Path) -> None:
    steps, epochs = course(3, 4)
    steps[0] = replace(steps[0], grad_norm=None)
    write_events(tmp_path / "_curves.tfevents", steps, epochs)
    told: dict[str, list[int]] = {}
    with (tmp_path / "_curves.tfevents").open("rb") as file:
        # A record: its length, a checksum of that, the record, a checksum.
        while head := file.read(12):
            event = Event.FromString(file.read(int.from_bytes(head[:8], "little")))
            file.read(4)
            for value in event.summary.value:
                told.setdefault(value.tag, []).append(event.step)
    assert told["loss/training"] == told["learning_rate"] == list(range(1, 13))
    assert told["grad_norm"] == list(range(2, 13))
    assert told["loss/validation"] == told["validation/accuracy"] == [4, 8, 12]
