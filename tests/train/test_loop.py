"""The loop of a worker, on one rank, with Ray's part of it played."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ranks import GLOBAL_BATCH, LABELS

from bertray.config import Optim, Training
from bertray.errors import OutputError
from bertray.train import steps
from bertray.train.base import Base
from bertray.train.examples import Examples
from bertray.train.loop import SCORE, WorkerJob, train_worker
from bertray.train.loss import CROSS_ENTROPY
from bertray.train.state import Epoch
from bertray.train.steps import collate


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the worker tells Ray with each of its checkpoints."""
    told: list[dict[str, Any]] = []
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1
    )
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.train, "report", lambda metrics, **_: told.append(metrics))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
    return told


@pytest.fixture
def job(base: Base, make_examples: Callable[..., Examples], tmp_path: Path) -> WorkerJob:
    """Five epochs in which no label changes."""
    rows = make_examples(2 * GLOBAL_BATCH)
    marker = tmp_path / "lineage.json"
    marker.touch()
    return WorkerJob(
        base=base,
        task="single_label",
        scale=None,
        labels=LABELS,
        metric="accuracy",
        optim=Optim(learning_rate=1e-12),
        training=Training(num_epochs=5, per_device_batch_size=GLOBAL_BATCH),
        calibration="none",
        loss=CROSS_ENTROPY,
        pieces=(),
        num_threads=1,
        max_workers=1,
        strategy="ddp",
        marker=str(marker),
        examples=(rows, rows),  # type: ignore[arg-type]
    )


def run(job: WorkerJob) -> list[Epoch]:
    events: Queue[Any] = Queue()
    assert train_worker({"job": job, "events": events, "orders": None}) is None
    return [event for event in events.queue if isinstance(event, Epoch)]


@pytest.mark.parametrize(("patience", "num_epochs"), [(2, 3), (None, 5)])
def test_epochs_end_when_no_better_one_is_to_be_hoped_for(
    patience: int | None, num_epochs: int, job: WorkerJob, reports: list[dict[str, Any]]
) -> None:
    training = job.training.model_copy(update={"early_stopping_patience": patience})
    epochs = run(replace(job, training=training))
    assert [epoch.epoch for epoch in epochs] == list(range(1, num_epochs + 1))
    assert len({epoch.metrics["accuracy"] for epoch in epochs}) == 1
    assert [len(told["history"]) for told in reports] == list(range(1, num_epochs + 1))
    assert all(SCORE in told for told in reports)


@pytest.mark.usefixtures("reports")
def test_validation_takes_no_more_memory_than_a_pass_of_training(
    job: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watched(*parts: Any, **options: Any) -> Any:
        inputs = collate(*parts, **options)
        if not torch.is_grad_enabled():
            sizes.append(inputs["input_ids"].numel())
        return inputs

    monkeypatch.setattr(steps, "collate", watched)
    update = {"accumulation_steps": 3, "num_epochs": 1}
    run(replace(job, training=job.training.model_copy(update=update)))
    assert len(sizes) > 1
    assert max(sizes) <= GLOBAL_BATCH // 3 * job.base.max_length


@pytest.mark.usefixtures("reports")
def test_a_worker_that_cannot_see_the_output_folder_says_so_before_its_first_step(
    job: WorkerJob,
) -> None:
    with pytest.raises(
        OutputError, match=r"output\.path: /nowhere/lineage\.json is not to be seen"
    ):
        train_worker(
            {"job": replace(job, marker="/nowhere/lineage.json"), "events": None, "orders": None}
        )
