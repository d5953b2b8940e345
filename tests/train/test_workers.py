"""Workers fit the cluster; what they say reaches the caller, progress in order, as one error."""

from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import Checkpoint, WorkerGroupError

from bertray.cluster import Resources
from bertray.config import Scaling, Search
from bertray.errors import BertrayError, ConfigError, DataError, ModelError
from bertray.train import loop
from bertray.train.loop import SCORE, Order, is_wanted
from bertray.train.steps import NonFiniteLossError
from bertray.train.workers import best_checkpoint, fit, plan_scaling, share_out


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
    # It is returned: what is raised, Ray tries again.
    said = loop.train_worker({"job": None})
    with pytest.raises(DataError, match="step 3 of 9"):
        fit_with(SimpleNamespace(return_value=said))


def test_only_an_order_for_the_epochs_done_or_to_stop_counts() -> None:
    """Others are of an attempt that was cut off before it had read them."""
    orders: Queue[Order] = Queue()
    for order in (Order(1, is_wanted=True), Order(2, is_wanted=True), Order(0, is_wanted=False)):
        orders.put(order)
    assert is_wanted(orders, 2)
    assert not is_wanted(orders, 3)


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


@pytest.mark.parametrize(
    ("scaling", "cpus", "gpus", "per_worker"),
    [
        ({"num_workers": 2}, 2, 0, {"CPU": 0.8}),
        ({"num_workers": 8}, 2, 0, {"CPU": 0.2}),
        ({"num_workers": 2}, 64, 0, {"CPU": 1.0}),
        ({"num_workers": 2, "num_threads": 4}, 64, 0, {"CPU": 4}),
        ({"num_workers": 2, "num_threads": 4}, 6, 0, {"CPU": 2}),
        ({"num_workers": 2}, 16, 2, {"CPU": 1.0}),
    ],
)
def test_workers_always_fit_the_cluster(
    scaling: dict[str, Any], cpus: int, gpus: int, per_worker: dict[str, float]
) -> None:
    plan = plan_scaling(Scaling(**scaling), Resources(cpus, gpus, 1, cpus))
    assert plan.resources_per_worker == per_worker
    assert plan.use_gpu == (gpus >= scaling["num_workers"])


def test_gpus_that_are_not_there_are_an_error_unless_it_is_said_how_many_will_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match=r"scaling\.use_gpu=true, but the cluster has no GPU"):
        plan_scaling(Scaling(use_gpu=True), Resources(8, 0, 1, 8))
    assert not plan_scaling(Scaling(use_gpu=False), Resources(8, 1, 1, 8)).use_gpu
    assert not caplog.records
    for num_workers in (4, (2, 4)):
        resting = Resources(0, 0, 1, 0)  # a head that waits for work
        plan = plan_scaling(Scaling(num_workers=num_workers, use_gpu=True), resting)
        assert (plan.use_gpu, plan.resources_per_worker) == (True, {"CPU": 1})
        assert "waits for GPU nodes to join" in caplog.messages[-1]


def test_workers_whose_nodes_have_yet_to_come_ask_for_cpus() -> None:
    resting = Resources(0, 0, 1, 0)
    for scaling, cpus in ((Scaling(), 1), (Scaling(num_workers=2, num_threads=4), 4)):
        plan = plan_scaling(scaling, resting)
        assert (plan.use_gpu, plan.resources_per_worker) == (False, {"CPU": cpus})
    count, share, _ = share_out(
        Search(keys={"optim.weight_decay": [0.0, 0.1]}),  # type: ignore[call-arg]
        Scaling(num_workers=2, use_gpu=True),
        resting,
    )
    assert (count, plan_scaling(share, resting).use_gpu) == (1, True)


@pytest.mark.parametrize(
    ("search", "scaling", "resources", "at_once", "threads"),
    [
        ({}, {}, Resources(2, 0, 1, 2), 1, 2),  # a laptop: one after the other
        ({"max_concurrent": 2}, {}, Resources(2, 0, 1, 2), 2, 1),
        ({}, {"num_workers": 2}, Resources(8, 0, 1, 8), 1, 4),
        ({}, {}, Resources(64, 0, 4, 16), 4, 16),  # one a node
        ({"num_trials": 3}, {}, Resources(64, 0, 4, 16), 3, 16),
        ({}, {"num_threads": 4}, Resources(16, 0, 1, 16), 4, 4),
        ({}, {"num_threads": 4, "num_workers": (1, 2)}, Resources(16, 0, 1, 16), 2, 4),
        ({}, {"num_threads": 32}, Resources(16, 0, 1, 16), 1, 32),
        ({}, {"num_workers": 2}, Resources(64, 8, 1, 64), 4, None),
        ({"max_concurrent": 1}, {}, Resources(64, 8, 1, 64), 1, None),
        ({"max_concurrent": 4}, {"use_gpu": False}, Resources(64, 8, 1, 64), 4, 16),
    ],
)
def test_trials_side_by_side_fit_the_cluster(
    search: dict[str, Any],
    scaling: dict[str, Any],
    resources: Resources,
    at_once: int,
    threads: int | None,
) -> None:
    keys = {"optim.weight_decay": [0.0, 0.1]}
    count, share, rest = share_out(Search(keys=keys, **search), Scaling(**scaling), resources)
    assert (count, share.num_threads) == (at_once, threads)
    plan = plan_scaling(share, rest)
    assert plan.use_gpu == (resources.num_gpus > 0 and scaling.get("use_gpu") is not False)
    cpus = (plan.resources_per_worker or {})["CPU"]
    fewest = share.num_workers if isinstance(share.num_workers, int) else share.num_workers[0]
    assert count * fewest * cpus <= resources.num_cpus
