"""What Ray Train runs on each worker: epochs of steps, validation, a checkpoint after each."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from bertray.config import Optim, Training
from bertray.evaluate.metrics import HIGHER_IS_BETTER
from bertray.model.bundle import quiet
from bertray.schema import Scale, Task
from bertray.train.base import Base, load_base, load_checkpoint
from bertray.train.examples import Examples
from bertray.train.labels import Piece
from bertray.train.layers import freeze
from bertray.train.loss import Loss
from bertray.train.measure import measure
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import num_steps_per_epoch, plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import NonFiniteLossError, Step, predict, seed_epoch, train_steps

STATE = "training_state.pt"
STEPS = "steps.jsonl"
SECONDS_BETWEEN_EVENTS = 0.5


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows, and the validation after it.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the epoch's rows, each as its step found it.
        metrics: of the validation rows.
        num_rows: trained on.
        num_tokens: likewise, padding not counted.
        seconds: of the steps, validation not counted.
        thresholds: of independent labels, as the validation rows have them best.
    """

    epoch: int
    train_loss: float
    metrics: dict[str, float]
    num_rows: int
    num_tokens: int
    seconds: float
    thresholds: list[float] | None = None


@dataclass(frozen=True)
class WorkerJob:
    """What crosses to the workers: settings, and references to what is large.

    Attributes:
        base: the model to start from.
        task: what is learnt.
        scale: of numbers that are learnt as such.
        labels: label names in label-id order.
        metric: that picks an epoch.
        optim: the config's section.
        training: likewise.
        loss: what the steps minimise.
        pieces: to name a row by its shard.
        num_threads: torch threads on CPU; None for the node's cores shared out.
        examples: an object of the pair of training and validation `Examples`.
        events: rank 0 puts a `Step` or an `Epoch` in there from time to time.
    """

    base: Base
    task: Task
    scale: Scale | None
    labels: tuple[str, ...]
    metric: str
    optim: Optim
    training: Training
    loss: Loss
    pieces: tuple[Piece, ...]
    num_threads: int | None
    examples: "ray.ObjectRef[tuple[Examples, Examples]]"
    events: Queue


def train_worker(config: dict[str, Any]) -> str | None:
    """The function that Ray Train runs on each worker.

    Every worker meets a loss that is not finite at the same step, and would meet it again after a
    restart. So its message is returned, not raised, and Ray does not try again.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells every report at length
    try:
        _train(config["job"])
    except NonFiniteLossError as error:
        return str(error)
    return None


def _train(job: WorkerJob) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if ray.train.torch.get_device().type == "cpu":
        torch.set_num_threads(job.num_threads or _threads_each(context.get_local_world_size()))
    optim, training = job.optim, job.training
    train, validation = ray.get(job.examples)
    global_batch_size = training.per_device_batch_size * world_size
    steps_per_epoch = num_steps_per_epoch(len(train), global_batch_size=global_batch_size)
    num_steps = steps_per_epoch * training.num_epochs

    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        bare = (
            load_checkpoint(Path(folder), job.base)
            if folder
            else load_base(job.base, labels=job.labels, seed=training.seed, task=job.task)
        )
        if training.freeze_layers is not None:
            freeze(bare, num_layers=training.freeze_layers)
        if training.gradient_checkpointing:
            # The other way of torch to do it breaks DDP.
            bare.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
                {"use_reentrant": False}
            )
        model = ray.train.torch.prepare_model(
            bare, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )
        optimizer = make_optimizer(bare, optim)
        schedule = make_schedule(optimizer, optim, num_steps=num_steps)
        precision = Precision(training.precision, ray.train.torch.get_device())
        history = load_state(Path(folder), optimizer, schedule, precision) if folder else []
        log = read_steps((Path(folder) / STEPS).read_text()) if folder else []

    for epoch in range(len(history), training.num_epochs):
        if is_stuck(history, training, metric=job.metric):  # every rank has the same metrics
            break
        seed_epoch(training.seed, epoch=epoch, rank=rank)
        plan = plan_epoch(
            train.lengths,
            global_batch_size=global_batch_size,
            seed=training.seed,
            epoch=epoch,
        )
        start = time.perf_counter()
        steps = train_steps(
            model,
            optimizer,
            schedule,
            train,
            plan=plan,
            steps_done=epoch * steps_per_epoch,
            num_steps=num_steps,
            max_grad_norm=optim.max_grad_norm,
            pad_token_id=job.base.pad_token_id,
            rank=rank,
            world_size=world_size,
            precision=precision,
            loss=job.loss,
            aggregate=job.base.long_text.aggregate,
            accumulation_steps=training.accumulation_steps,
            pieces=job.pieces,
        )
        taken = list(_announced(steps, job.events) if rank == 0 else steps)
        log += taken
        seconds = time.perf_counter() - start
        predictions = predict(
            model,
            validation.encoded,
            num_windows=validation.num_windows,
            aggregate=job.base.long_text.aggregate,
            precision=precision,
            num_labels=len(job.labels),
            max_tokens=training.per_device_batch_size * job.base.max_length,
            pad_token_id=job.base.pad_token_id,
            rank=rank,
            world_size=world_size,
            task=job.task,
            scale=job.scale,
        )
        metrics, thresholds = measure(
            predictions, validation.targets, task=job.task, scale=job.scale
        )
        num_rows = sum(step.num_rows for step in taken)
        history.append(
            Epoch(
                epoch=epoch + 1,
                train_loss=sum(step.loss * step.num_rows for step in taken) / num_rows,
                metrics=metrics,
                num_rows=num_rows,
                num_tokens=sum(step.num_tokens for step in taken),
                seconds=seconds,
                thresholds=thresholds,
            )
        )
        if rank == 0:
            _report(history, log, bare, optimizer, schedule, precision=precision)
            job.events.put(history[-1])
        else:
            ray.train.report({})


def is_stuck(history: Sequence[Epoch], training: Training, *, metric: str) -> bool:
    """Whether the last epochs, as many as one is patient with, brought no better metric."""
    patience = training.early_stopping_patience
    if patience is None or not history:
        return False
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    values = [sign * epoch.metrics[metric] for epoch in history]
    return len(values) - 1 - values.index(max(values)) >= patience


def _report(
    history: list[Epoch],
    log: list[Step],
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    *,
    precision: Precision,
) -> None:
    """Hand Ray Train a checkpoint of the epoch; the metrics it is kept by stand at the top."""
    metrics = {**history[-1].metrics, "history": [asdict(epoch) for epoch in history]}
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), history, model, optimizer, schedule, precision=precision)
        (Path(folder) / STEPS).write_text(write_steps(log), encoding="utf-8")
        # Named by the epoch, so that an attempt cut off before leaves nothing of its own behind.
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"epoch-{len(history):03d}",
        )


def save_state(
    folder: Path,
    history: list[Epoch],
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    *,
    precision: Precision,
) -> None:
    """Write the model as Hugging Face does, and beside it what else a resumed training needs."""
    with quiet():
        model.save_pretrained(folder)
    state = {
        "history": [asdict(epoch) for epoch in history],
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "precision": precision.state_dict(),
    }
    torch.save(state, folder / STATE)


def load_state(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    precision: Precision,
) -> list[Epoch]:
    """Put all but the model back to where `save_state` found it; gives the epochs done."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    precision.load_state_dict(state["precision"])
    return [Epoch(**epoch) for epoch in state["history"]]


def write_steps(steps: Sequence[Step]) -> str:
    """A line of JSON for each."""
    return "".join(json.dumps(asdict(step)) + "\n" for step in steps)


def read_steps(text: str) -> list[Step]:
    """Undo `write_steps`."""
    return [Step(**json.loads(line)) for line in text.splitlines()]


def _announced(steps: Iterator[Step], events: Queue) -> Iterator[Step]:
    """Pass steps on, and show the driver one now and then."""
    shown = 0.0
    for step in steps:
        if time.monotonic() - shown >= SECONDS_BETWEEN_EVENTS:
            events.put(step)
            shown = time.monotonic()
        yield step


def _threads_each(num_workers: int) -> int:
    """The node's cores, as Ray counts them, shared out among its workers."""
    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = next(node["Resources"].get("CPU", 1) for node in nodes if node["NodeID"] == here)
    return max(int(cpus) // num_workers, 1)
