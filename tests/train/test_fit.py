"""What the workers say reaches the caller: progress in order, and one error that can be mended."""

from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import Checkpoint, WorkerGroupError

from bertray.errors import BertrayError, DataError, ModelError
from bertray.train import loop
from bertray.train.loop import SCORE
from bertray.train.run import best_checkpoint, fit
from bertray.train.steps import NonFiniteLossError


class Trainer:
    """Ends as it is told."""

    def __init__(self, ending: Any) -> None:
        self.ending = ending

    def fit(self) -> Any:
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending


def fit_with(ending: Any, *events: Any, seen: list[Any] | None = None) -> Any:
    queue: Queue[Any] = Queue()
    for event in events:
        queue.put(event)
    on_progress = [].append if seen is None else seen.append
    return fit(Trainer(ending), events=queue, on_progress=on_progress)  # type: ignore[arg-type]


def test_all_events_are_passed_on_in_order() -> None:
    seen: list[Any] = []
    result = SimpleNamespace(return_value=None)
    assert fit_with(result, *range(5), seen=seen) is result
    assert seen == list(range(5))


def test_a_loss_that_is_no_number_ends_the_run_without_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def meets_nan(job: object) -> None:
        raise NonFiniteLossError("step 3 of 9: the loss is nan")

    monkeypatch.setattr(loop, "_Worker", meets_nan)
    said = loop.train_worker({"job": None})  # returned: what is raised, Ray tries again
    with pytest.raises(DataError, match="step 3 of 9"):
        fit_with(SimpleNamespace(return_value=said))


def test_an_error_of_ours_comes_out_of_the_workers_as_it_was() -> None:
    own = ModelError("model.base=x: digest a on this node, b on the driver")
    with pytest.raises(ModelError) as caught:
        fit_with(WorkerGroupError("long story", {0: RuntimeError("gloo"), 1: own}))
    assert caught.value is own


def test_any_other_failure_says_in_one_line_how_to_go_on() -> None:
    story = "Traceback\n  File x\nMemoryError: no room"
    with pytest.raises(BertrayError, match=r"^training failed.*no room; the same command.*$"):
        fit_with(WorkerGroupError("long story", {0: RuntimeError(story)}))


def test_the_best_epoch_has_the_best_score_and_what_is_within_one_has_none(tmp_path: Path) -> None:
    scores = {"a": {SCORE: -0.5}, "b": {SCORE: -0.4}, "within": {}}
    pairs = [(Checkpoint(str(tmp_path / name)), told) for name, told in scores.items()]
    result: Any = SimpleNamespace(best_checkpoints=pairs)
    assert Path(best_checkpoint(result)[0].path).name == "b"
