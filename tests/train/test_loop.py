"""The loop of a worker, on one rank, with Ray's part of it played."""

from collections.abc import Callable
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ranks import GLOBAL_BATCH, LABELS

from bertray.config import Optim, Training
from bertray.train.base import Base
from bertray.train.examples import Examples
from bertray.train.loop import SCORE, WorkerJob, train_worker
from bertray.train.loss import CROSS_ENTROPY
from bertray.train.state import Epoch


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


@pytest.mark.parametrize(("patience", "num_epochs"), [(2, 3), (None, 5)])
def test_epochs_end_when_no_better_one_is_to_be_hoped_for(
    patience: int | None,
    num_epochs: int,
    base: Base,
    make_examples: Callable[..., Examples],
    reports: list[dict[str, Any]],
) -> None:
    rows = make_examples(2 * GLOBAL_BATCH)
    job = WorkerJob(
        base=base,
        task="single_label",
        scale=None,
        labels=LABELS,
        metric="accuracy",
        optim=Optim(learning_rate=1e-12),  # so that no label changes
        training=Training(
            num_epochs=5, per_device_batch_size=GLOBAL_BATCH, early_stopping_patience=patience
        ),
        calibration="none",
        loss=CROSS_ENTROPY,
        pieces=(),
        num_threads=1,
        max_workers=1,
        strategy="ddp",
        examples=(rows, rows),  # type: ignore[arg-type]
    )
    events: Queue[Any] = Queue()
    assert train_worker({"job": job, "events": events, "orders": None}) is None
    epochs = [event for event in events.queue if isinstance(event, Epoch)]
    assert [epoch.epoch for epoch in epochs] == list(range(1, num_epochs + 1))
    assert len({epoch.metrics["accuracy"] for epoch in epochs}) == 1
    assert [len(told["history"]) for told in reports] == list(range(1, num_epochs + 1))
    assert all(SCORE in told for told in reports)
