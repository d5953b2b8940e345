"""Workers fit the cluster; what they say reaches the caller, progress in order, as one error."""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint, WorkerGroupError

from bertray.cluster import Node, Resources
from bertray.config import Scaling, Search
from bertray.errors import BertrayError, ClusterError, ConfigError, DataError, ModelError
from bertray.train import loop
from bertray.train.loop import SCORE, Order, is_wanted
from bertray.train.state import STEPS, Epoch, write_steps
from bertray.train.steps import NonFiniteLossError, Step
from bertray.train.workers import (
    RAY_UNITS,
    best_checkpoint,
    fit,
    plan_scaling,
    share_out,
    steps_of,
)


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


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation",
            ConfigError,
            r"memory: CUDA out of memory\. .* GiB\.; raise training\.accumulation_steps",
        ),
        (
            "The actor died.\n1 worker(s) were killed due to the node running low on memory.\nSee",
            ClusterError,
            r"memory: 1 worker\(s\) were killed .*memory\.; take nodes with more",
        ),
    ],
)
def test_a_worker_out_of_memory_says_which_settings_take_less(
    said: str, kind: type[BertrayError], told: str
) -> None:
    failures: dict[int, Exception] = {0: RuntimeError("gloo"), 1: RuntimeError(said)}
    with pytest.raises(kind, match=told):
        fit_with(WorkerGroupError("long story", failures))


def test_the_best_epoch_has_the_best_score_and_what_is_within_one_has_none(tmp_path: Path) -> None:
    scores = {"a": {SCORE: -0.5}, "b": {SCORE: -0.4}, "within": {}}
    pairs = [(Checkpoint(str(tmp_path / name)), told) for name, told in scores.items()]
    result: Any = SimpleNamespace(best_checkpoints=pairs)
    assert Path(best_checkpoint(result)[0].path).name == "b"


def test_a_bundle_tells_of_the_steps_up_to_the_last_validation(tmp_path: Path) -> None:
    course = [Step(number, 9, 0.5, 1e-3, 1.0, 8, 70) for number in range(1, 9)]
    (tmp_path / STEPS).write_text(write_steps(course))
    epochs = [Epoch(step / 9, step, 0.5, {}, 8 * step, 70, 1.0) for step in (3, 6)]
    result: Any = SimpleNamespace(
        checkpoint=SimpleNamespace(filesystem=LocalFileSystem(), path=str(tmp_path)),
        metrics={"history": [asdict(epoch) for epoch in epochs]},
    )
    assert steps_of(result) == course[:6]


def on(num_cpus: int, *, num_gpus: int = 0, num_nodes: int = 1) -> Resources:
    """Some nodes, all with as many CPUs and GPUs."""
    return Resources((Node(num_cpus, num_gpus),) * num_nodes)


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
def test_workers_reserve_what_they_keep_busy_and_leave_some_of_the_cluster(
    scaling: dict[str, Any], cpus: int, gpus: int, per_worker: dict[str, float]
) -> None:
    plan = plan_scaling(Scaling(**scaling), on(cpus, num_gpus=gpus))
    assert plan.resources_per_worker == per_worker
    assert plan.use_gpu == (gpus >= scaling["num_workers"])
    assert plan.placement_strategy == ("PACK" if plan.use_gpu else "SPREAD")


@pytest.mark.parametrize(
    ("num_workers", "num_threads", "resources", "cpus"),
    [
        (2, 8, on(4, num_nodes=4), 4),  # together they have 6 a worker, which no node has
        (6, 2, on(3, num_nodes=5), 1),
        (3, 4, Resources((Node(16), Node(2))), 4),
        (2, 4, Resources((Node(64), Node(2, num_gpus=2))), 1),  # the GPUs are on the small one
    ],
)
def test_no_worker_asks_for_more_cpus_than_a_node_has_for_it(
    num_workers: int, num_threads: int, resources: Resources, cpus: int
) -> None:
    plan = plan_scaling(Scaling(num_workers=num_workers, num_threads=num_threads), resources)
    assert (plan.resources_per_worker or {})["CPU"] == pytest.approx(cpus)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=6),
    num_workers=st.integers(1, 12) | st.tuples(st.integers(1, 12), st.just(12)),
    num_threads=st.none() | st.integers(1, 12),
    use_gpu=st.sampled_from([False, "auto"]),
    at_once=st.integers(1, 3),
)
def test_workers_always_fit_the_nodes(
    sizes: list[tuple[int, int]],
    num_workers: int | tuple[int, int],
    num_threads: int | None,
    use_gpu: Any,
    at_once: int,
) -> None:
    resources = Resources(tuple(Node(cpus, gpus) for cpus, gpus in sizes))
    assume(resources.num_cpus)
    scaling = Scaling(num_workers=num_workers, num_threads=num_threads, use_gpu=use_gpu)
    assume(not 0 < resources.num_gpus < at_once * scaling.min_workers)
    plan = plan_scaling(scaling, resources, at_once=at_once)
    cpus = (plan.resources_per_worker or {})["CPU"]
    for unit in (1, RAY_UNITS):  # how Ray counts elastic workers, and places all
        each = cpus if unit == 1 else round(cpus * unit)
        places = [node.num_cpus * unit // each if each else math.inf for node in resources.nodes]
        if plan.use_gpu:
            places = [min(pair) for pair in zip(places, (gpus for _, gpus in sizes), strict=True)]
        assert sum(places) >= at_once * scaling.min_workers


def test_gpus_that_are_not_there_are_an_error_unless_it_is_said_how_many_will_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match=r"scaling\.use_gpu=true, but the cluster has no GPU"):
        plan_scaling(Scaling(use_gpu=True), on(8))
    assert not plan_scaling(Scaling(use_gpu=False), on(8, num_gpus=1)).use_gpu
    assert not caplog.records
    for num_workers in (4, (2, 4)):
        resting = on(0)  # a head that waits for work
        plan = plan_scaling(Scaling(num_workers=num_workers, use_gpu=True), resting)
        assert (plan.use_gpu, plan.resources_per_worker) == (True, {"CPU": 1})
        assert "waits for GPU nodes to join" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("settings", "resources", "is_said"),
    [
        ({}, on(8, num_gpus=4), True),
        ({"num_workers": 1}, on(8, num_gpus=4), False),
        ({}, on(8, num_gpus=1), False),
        ({"use_gpu": False}, on(8, num_gpus=4), False),
    ],
)
def test_gpus_that_nobody_asked_for_are_told_of(
    settings: dict[str, Any],
    resources: Resources,
    is_said: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        plan_scaling(Scaling(**settings), resources)
        said = list(caplog.messages)
        plan_scaling(Scaling(**settings), resources, at_once=2)  # each trial of a search on one
    assert caplog.messages == said
    assert ["on 1 of the cluster's 4 GPUs; scaling.num_workers=4" in one for one in said] == [
        True
    ] * is_said


@pytest.mark.parametrize(
    ("use_gpu", "resources", "is_said"),
    [
        ("auto", on(8, num_gpus=1), True),
        ("auto", on(0), True),  # GPU nodes may have yet to come
        ("auto", on(8), False),  # a laptop
        ("auto", on(8, num_gpus=2), False),
        (False, on(8, num_gpus=1), False),
    ],
)
def test_training_on_cpu_where_there_are_some_gpus_is_said(
    use_gpu: Any, resources: Resources, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plan_scaling(Scaling(num_workers=2, use_gpu=use_gpu), resources)
    assert ["runs on CPU; set no more workers" in said for said in caplog.messages] == [True] * (
        is_said
    )


def test_workers_whose_nodes_have_yet_to_come_ask_for_cpus() -> None:
    resting = on(0)
    for scaling, cpus in ((Scaling(), 1), (Scaling(num_workers=2, num_threads=4), 4)):
        plan = plan_scaling(scaling, resting)
        assert (plan.use_gpu, plan.resources_per_worker) == (False, {"CPU": cpus})
    count, share = share_out(
        Search(keys={"optim.weight_decay": [0.0, 0.1]}),  # type: ignore[call-arg]
        Scaling(num_workers=2, use_gpu=True),
        resting,
    )
    assert (count, plan_scaling(share, resting).use_gpu) == (1, True)


@pytest.mark.parametrize(
    ("search", "scaling", "resources", "at_once", "threads"),
    [
        ({}, {}, on(2), 1, 2),  # a laptop: one after the other
        ({"max_concurrent": 2}, {}, on(2), 2, 1),
        ({}, {"num_workers": 2}, on(8), 1, 4),
        ({}, {}, on(16, num_nodes=4), 4, 16),  # one a node
        ({"num_trials": 3}, {}, on(16, num_nodes=4), 3, 16),
        ({}, {"num_threads": 4}, on(16), 4, 4),
        ({}, {"num_threads": 4, "num_workers": (1, 2)}, on(16), 2, 4),
        ({}, {"num_threads": 32}, on(16), 1, 32),
        ({}, {"num_workers": 2}, on(64, num_gpus=8), 4, None),
        ({"max_concurrent": 1}, {}, on(64, num_gpus=8), 1, None),
        ({"max_concurrent": 4}, {"use_gpu": False}, on(64, num_gpus=8), 4, 16),
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
    count, share = share_out(Search(keys=keys, **search), Scaling(**scaling), resources)
    assert (count, share.num_threads) == (at_once, threads)
    plan = plan_scaling(share, resources, at_once=count)
    assert plan.use_gpu == (resources.num_gpus > 0 and scaling.get("use_gpu") is not False)
    cpus = (plan.resources_per_worker or {})["CPU"]
    assert count * share.min_workers * cpus <= resources.num_cpus
