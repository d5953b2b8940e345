"""The loop of a worker, on one rank, with Ray's part of it played."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ranks import GLOBAL_BATCH, LABELS

from bertray.config import Optim, Training
from bertray.errors import OutputError
from bertray.train import loop, steps
from bertray.train.base import Base
from bertray.train.examples import Examples
from bertray.train.loop import SCORE, WorkerJob, train_worker
from bertray.train.loss import CROSS_ENTROPY
from bertray.train.state import Epoch, Resumed
from bertray.train.steps import NonFiniteLossError, collate


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


def events_of(job: WorkerJob) -> list[Any]:
    events: Queue[Any] = Queue()
    assert train_worker({"job": job, "events": events, "orders": None}) is None
    return list(events.queue)


def run(job: WorkerJob) -> list[Epoch]:
    return [event for event in events_of(job) if isinstance(event, Epoch)]


@pytest.mark.parametrize(
    ("patience", "every", "found"),
    [(2, None, [1, 2, 3]), (None, None, [1, 2, 3, 4, 5]), (2, 1, [0.5, 1, 1.5])],
)
def test_epochs_end_when_no_better_one_is_to_be_hoped_for(
    patience: int | None,
    every: int | None,
    found: list[float],
    job: WorkerJob,
    reports: list[dict[str, Any]],
) -> None:
    update = {"early_stopping_patience": patience, "validation_steps": every}
    epochs = run(replace(job, training=job.training.model_copy(update=update)))
    assert [epoch.epoch for epoch in epochs] == found
    assert len({epoch.metrics["accuracy"] for epoch in epochs}) == 1
    assert [len(told["history"]) for told in reports] == list(range(1, len(found) + 1))
    assert all(SCORE in told for told in reports)


STEPS_VALIDATED, STEPS_SAVED = [2, 4, 5, 7, 9, 10], [2, 3, 4, 5, 6, 7, 9, 10]


@pytest.fixture
def in_parts(job: WorkerJob, make_examples: Callable[..., Examples]) -> WorkerJob:
    """Two epochs of five steps that learn something."""
    update = {"num_epochs": 2, "validation_steps": 2, "checkpoint_steps": 3}
    rows = make_examples(5 * GLOBAL_BATCH - 1)
    return replace(
        job,
        optim=Optim(learning_rate=1e-3),
        training=job.training.model_copy(update=update),
        examples=(rows, rows),  # type: ignore[arg-type]
    )


def test_validations_within_an_epoch_change_no_step_and_tell_of_the_rows_since_the_last(
    in_parts: WorkerJob, reports: list[dict[str, Any]]
) -> None:
    parts = run(in_parts)
    update = {"validation_steps": None, "checkpoint_steps": None}
    whole = run(replace(in_parts, training=in_parts.training.model_copy(update=update)))
    assert [(one.step, one.epoch) for one in parts] == [(n, n / 5) for n in STEPS_VALIDATED]
    assert [one.metrics for one in parts if one.step % 5 == 0] == [one.metrics for one in whole]
    assert len({one.metrics["loss"] for one in parts}) == len(parts)
    for number, epoch in enumerate(whole):
        of_epoch = [one for one in parts if number < one.epoch <= number + 1]
        assert sum(one.num_rows for one in of_epoch) == epoch.num_rows == 5 * GLOBAL_BATCH - 1
        losses = sum(one.train_loss * one.num_rows for one in of_epoch)
        assert losses / epoch.num_rows == pytest.approx(epoch.train_loss)
    with_score = [SCORE in told for told in reports[: len(STEPS_SAVED)]]
    assert with_score == [step in STEPS_VALIDATED for step in STEPS_SAVED]


@pytest.mark.usefixtures("reports")
def test_training_goes_on_from_any_checkpoint_within_an_epoch(
    in_parts: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(metrics: Any, *, checkpoint: ray.train.Checkpoint, checkpoint_dir_name: str) -> None:
        shutil.copytree(checkpoint.path, tmp_path / "kept" / checkpoint_dir_name)

    # One second passes between any two looks at the clock: from one checkpoint to the next.
    monkeypatch.setattr(loop.time, "perf_counter", count().__next__)
    monkeypatch.setattr(ray.train, "report", keep)
    whole = run(in_parts)
    monkeypatch.setattr(ray.train, "report", lambda *_, **__: None)
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == len(STEPS_SAVED)
    for folder, step in zip(kept, STEPS_SAVED, strict=True):
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda found=checkpoint: found)
        first, *left = events_of(in_parts)
        assert first == Resumed(step, 10)
        validated = [one for one in left if isinstance(one, Epoch)]
        assert validated == [one for one in whole if one.step > step]
    assert [epoch.seconds for epoch in whole] == [1, 2, 1, 2, 1, 1]


@dataclass
class Given:
    """What the steps are taken with."""

    model: Any
    rows: Examples
    options: dict[str, Any]


def parts_at_rest(given: Given) -> list[bool]:
    """Embeddings, layers, head."""
    bert = given.model.bert
    parts = [bert.embeddings, *bert.encoder.layer, given.model.classifier]
    return [not any(one.requires_grad for one in part.parameters()) for part in parts]


def is_grouped(given: Given) -> bool:
    """Whether the rows of each batch are about as long."""
    return all(np.ptp(given.rows.lengths[batch]) < 10 for batch in given.options["plan"])


@pytest.mark.parametrize(
    ("update", "look", "found"),
    [
        ({}, lambda given: given.model.is_gradient_checkpointing, False),
        (
            {"gradient_checkpointing": True},
            lambda given: given.model.is_gradient_checkpointing,
            True,
        ),
        ({}, parts_at_rest, [False] * 4),
        ({"freeze_layers": 1}, parts_at_rest, [True, True, False, False]),
        ({"unfreeze_layers": 1}, parts_at_rest, [True, True, True, False]),
        ({}, lambda given: given.options["accumulation_steps"], 1),
        ({"accumulation_steps": 3}, lambda given: given.options["accumulation_steps"], 3),
        ({}, lambda given: given.options["precision"].dtype, torch.float32),
        ({"precision": "float16"}, lambda given: given.options["precision"].dtype, torch.float16),
        ({}, is_grouped, False),
        ({"group_by_length": True}, is_grouped, True),
        ({"seed": 7}, lambda given: given.options["seed"], 7),
    ],
)
@pytest.mark.usefixtures("reports")
def test_each_setting_reaches_the_steps(
    update: dict[str, Any],
    look: Callable[[Given], Any],
    found: Any,
    job: WorkerJob,
    make_examples: Callable[..., Examples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def looks(model: Any, _: Any, __: Any, rows: Examples, **options: Any) -> Any:
        seen.append(look(Given(model, rows, options)))
        raise NonFiniteLossError("enough was seen")

    monkeypatch.setattr(loop, "train_steps", looks)
    rows = make_examples(8 * GLOBAL_BATCH)
    training = job.training.model_copy(update={"num_epochs": 1, **update})
    only = replace(job, training=training, examples=(rows, rows))  # type: ignore[arg-type]
    assert train_worker({"job": only, "events": Queue(), "orders": None}) == "enough was seen"
    assert seen == [found]


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
