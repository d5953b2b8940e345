"""What Ray Train runs on each worker: epochs of steps, validation, a checkpoint after each."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue as LocalQueue
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.util.queue import Queue

from bertray import cluster, storage
from bertray.config import CalibrationMethod, Optim, Training
from bertray.errors import OutputError
from bertray.model.packed import ignores_padding
from bertray.schema import Scale, Task
from bertray.train.base import Base, load_base, load_checkpoint
from bertray.train.examples import Examples
from bertray.train.labels import Piece
from bertray.train.layers import freeze, num_frozen
from bertray.train.loss import Loss
from bertray.train.measure import Measured, measure, score_of
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.parallel import Strategy, ddp_options, is_sharded, shard
from bertray.train.plan import next_validation, num_steps_per_epoch, plan_epoch
from bertray.train.precision import Precision
from bertray.train.state import (
    STEPS,
    Epoch,
    Resumed,
    load_state,
    read_steps,
    save_state,
    write_steps,
)
from bertray.train.steps import NonFiniteLossError, Step, collate, predict, train_steps

SCORE = "score"  # that checkpoints are kept by, the more the better
SECONDS_BETWEEN_EVENTS = 0.5


@dataclass(frozen=True)
class Order:
    """After so many epochs another one is wanted, or none."""

    num_epochs: float
    is_wanted: bool


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
        calibration: what is fitted to the validation rows.
        loss: what the steps minimise.
        pieces: to name a row by its shard.
        num_threads: torch threads on CPU; None for the node's cores shared out.
        max_workers: as many as there are at most.
        strategy: how several of them share the model.
        marker: a file that the driver has put where checkpoints go.
        examples: an object of the pair of training and validation `Examples`.
    """

    base: Base
    task: Task
    scale: Scale | None
    labels: tuple[str, ...]
    metric: str
    optim: Optim
    training: Training
    calibration: CalibrationMethod
    loss: Loss
    pieces: tuple[Piece, ...]
    num_threads: int | None
    max_workers: int
    strategy: Strategy
    marker: str
    examples: "ray.ObjectRef[tuple[Examples, Examples]]"

    @property
    def global_batch_size(self) -> int:
        """Rows of a step, however many workers share them."""
        return self.training.per_device_batch_size * self.max_workers


def train_worker(config: dict[str, Any]) -> str | None:
    """The function that Ray Train runs on each worker.

    Every worker meets a loss that is not finite at the same step, and would meet it again after a
    restart. So its message is returned, not raised, and Ray does not try again.

    Args:
        config: a `WorkerJob` as ``job``; as ``events`` a queue that rank 0 puts a `Resumed` in if
            it goes on, and from time to time a `Step` or an `Epoch`; as ``orders``, of a search's
            trial, one that it asks after each epoch whether there is to be another.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells every report at length
    try:
        _Worker(**config).run()
    except NonFiniteLossError as error:
        return str(error)
    return None


class _Worker:
    """One rank's part of the training, from where the latest checkpoint left it."""

    def __init__(self, job: WorkerJob, events: Queue, orders: Queue | None) -> None:
        self.job, self.events, self.orders = job, events, orders
        if not storage.exists(job.marker):
            raise OutputError(
                f"output.path: {job.marker} is not to be seen on the worker's node; "
                "give a folder or URI that all nodes see"
            )
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device()
        if device.type == "cpu":
            num_local = context.get_local_world_size()
            torch.set_num_threads(job.num_threads or _threads_each(num_local))
        self.train, self.validation = ray.get(job.examples)
        self.steps_per_epoch = num_steps_per_epoch(
            len(self.train), global_batch_size=job.global_batch_size
        )
        self.num_steps = self.steps_per_epoch * job.training.num_epochs
        checkpoint = ray.train.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            self._load(Path(folder) if folder else None, device)
        self.model: torch.nn.Module | None = None

    def _load(self, folder: Path | None, device: torch.device) -> None:
        job, training = self.job, self.job.training
        if folder is None:
            bare = load_base(job.base, labels=job.labels, seed=training.seed, task=job.task)
        else:
            bare = load_checkpoint(folder, job.base)
        if training.gradient_checkpointing:
            # The other way of torch to do it breaks DDP.
            bare.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
                {"use_reentrant": False}
            )
        freeze(bare, num_layers=training.freeze_layers)
        self.can_pad = ignores_padding(bare, pad_token_id=job.base.pad_token_id)
        if job.strategy == "fsdp2" and self.world_size > 1:
            shard(bare, device)
        else:
            bare.to(device)  # type: ignore[arg-type]  # as torch has it
        self.bare = bare
        self.optimizer = make_optimizer(bare, job.optim)
        self.schedule = make_schedule(self.optimizer, job.optim, num_steps=self.num_steps)
        self.precision = Precision(training.precision, device)
        self.history: list[Epoch] = []
        self.log: list[Step] = []  # of all epochs, the one under way included
        self.seconds = 0.0  # of the steps since the last validation
        if folder is not None:
            self.history, self.seconds = load_state(
                folder, self.optimizer, self.schedule, self.precision
            )
            self.log = read_steps((folder / STEPS).read_text())

    def run(self) -> None:
        """Train to the last epoch, or until no better one is to be hoped for."""
        training = self.job.training
        if self.log and self.rank == 0:
            self.events.put(Resumed(len(self.log), self.num_steps))
        while len(self.log) < self.num_steps:
            # Every rank has the same metrics.
            if is_stuck(self.history, training, metric=self.job.metric):
                break
            epoch, num_done = divmod(len(self.log), self.steps_per_epoch)
            if self.model is None or (num_done == 0 and training.unfreeze_layers is not None):
                self._wrap(epoch)
            self._take_steps(epoch)
            self._validate()
            self._checkpoint()
            if self.rank == 0:
                self.events.put(self.history[-1])
            if len(self.log) < self.num_steps and not self._is_wanted():
                break

    @property
    def num_validated(self) -> int:
        """Steps done by the last validation."""
        return self.history[-1].step if self.history else 0

    def _is_wanted(self) -> bool:
        """Whether another epoch is; the same on all ranks."""
        if self.orders is None:
            return True
        wanted = is_wanted(self.orders, self.history[-1].epoch) if self.rank == 0 else None
        return bool(broadcast_from_rank_zero(wanted))

    def _wrap(self, epoch: int) -> None:
        """Freeze what is not trained yet. DDP waits for the gradients of the rest as it is made."""
        self.model = None
        num_layers = self.bare.config.num_hidden_layers
        frozen = num_frozen(self.job.training, epoch=epoch, num_layers=num_layers)
        freeze(self.bare, num_layers=frozen)
        self.model = self.bare
        if not is_sharded(self.bare):
            inputs = collate(
                self.train.encoded,
                np.arange(1),
                pad_token_id=self.job.base.pad_token_id,
                device=self.bare.device,
            )
            self.model = ray.train.torch.prepare_model(
                self.bare, parallel_strategy_kwargs=ddp_options(self.bare, inputs)
            )

    def _take_steps(self, epoch: int) -> None:
        """Those up to the next validation."""
        job, training, log = self.job, self.job.training, self.log
        before = epoch * self.steps_per_epoch
        end = next_validation(
            len(log) - before, steps_per_epoch=self.steps_per_epoch, every=training.validation_steps
        )
        plan = plan_epoch(
            self.train.lengths,
            global_batch_size=job.global_batch_size,
            seed=training.seed,
            epoch=epoch,
            group_by_length=training.group_by_length,
        )
        steps = train_steps(
            cast(torch.nn.Module, self.model),
            self.optimizer,
            self.schedule,
            self.train,
            plan=plan[len(log) - before : end],
            steps_done=len(log),
            num_steps=self.num_steps,
            seed=training.seed,
            max_grad_norm=job.optim.max_grad_norm,
            pad_token_id=job.base.pad_token_id,
            rank=self.rank,
            world_size=self.world_size,
            precision=self.precision,
            loss=job.loss,
            aggregate=job.base.long_text.aggregate,
            can_pad=self.can_pad,
            # Fewer workers than there may be take more passes each, of no more rows.
            accumulation_steps=training.accumulation_steps * -(-job.max_workers // self.world_size),
            pieces=job.pieces,
        )
        start = time.perf_counter()
        for step in _announced(steps, self.events) if self.rank == 0 else steps:
            log.append(step)
            is_last = len(log) == before + end
            is_due = training.checkpoint_steps and len(log) % training.checkpoint_steps == 0
            if is_due and not is_last:
                self.seconds += time.perf_counter() - start
                self._checkpoint()
                start = time.perf_counter()
        self.seconds += time.perf_counter() - start

    def _validate(self) -> None:
        """Measure the model, and add to the history."""
        job, training = self.job, self.job.training
        predictions = predict(
            cast(torch.nn.Module, self.model),
            self.validation.encoded,
            num_windows=self.validation.num_windows,
            aggregate=job.base.long_text.aggregate,
            precision=self.precision,
            num_labels=len(job.labels),
            # As many rows as a pass of training has at most.
            max_tokens=-(-training.per_device_batch_size // training.accumulation_steps)
            * job.base.max_length,
            pad_token_id=job.base.pad_token_id,
            rank=self.rank,
            world_size=self.world_size,
            task=job.task,
            scale=job.scale,
            can_pad=self.can_pad,
        )
        found = self._measure(predictions)
        taken, passes = self.log[self.num_validated :], len(self.log) / self.steps_per_epoch
        num_rows = sum(step.num_rows for step in taken)
        self.history.append(
            Epoch(
                epoch=int(passes) if passes.is_integer() else passes,
                step=len(self.log),
                train_loss=sum(step.loss * step.num_rows for step in taken) / num_rows,
                metrics=found.metrics,
                num_rows=num_rows,
                num_tokens=sum(step.num_tokens for step in taken),
                seconds=self.seconds,
                thresholds=list(found.thresholds) if found.thresholds is not None else None,
                calibration=asdict(found.calibration) if found.calibration is not None else None,
                cutoffs=[asdict(cutoff) for cutoff in found.cutoffs] or None,
            )
        )
        self.seconds = 0.0

    def _measure(self, predictions: np.ndarray) -> Measured:
        """By rank 0, which tells the others: of many labels it takes minutes, and memory."""
        job, found = self.job, None
        if self.rank == 0:
            found = measure(
                predictions,
                self.validation.targets,
                task=job.task,
                metric=job.metric,
                scale=job.scale,
                calibration=job.calibration,
            )
        return cast(Measured, found if self.world_size == 1 else broadcast_from_rank_zero(found))

    def _checkpoint(self) -> None:
        """Hand Ray Train a checkpoint; after a validation, the score it is kept by with it.

        Others have none. Where more is better Ray holds that to be the least there is, and keeps
        them only as the latest.
        """
        told: dict[str, Any] = {"history": [asdict(epoch) for epoch in self.history]}
        if len(self.log) == self.num_validated:
            told[SCORE] = score_of(self.history[-1].metrics, self.job.metric)
        # Named by the step, so that an attempt cut off before leaves nothing of its own behind.
        num_epochs, is_within = divmod(len(self.log), self.steps_per_epoch)
        step = f"-step-{len(self.log):06d}" if is_within else ""
        with tempfile.TemporaryDirectory() as folder:
            save_state(
                Path(folder),
                self.history,
                self.bare,
                self.optimizer,
                self.schedule,
                precision=self.precision,
                seconds=self.seconds,
                rank=self.rank,
            )
            if self.rank != 0:
                ray.train.report({})
                return
            (Path(folder) / STEPS).write_text(write_steps(self.log), encoding="utf-8")
            ray.train.report(
                told,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"epoch-{num_epochs:03d}{step}",
            )


def is_wanted(orders: "Queue | LocalQueue[Order]", num_epochs: float) -> bool:
    """Wait for what is to come after so many epochs.

    Of earlier ones there may be an order that an attempt which was cut off has not read.
    """
    order = orders.get()
    while order.is_wanted and order.num_epochs < num_epochs:
        order = orders.get()
    return bool(order.is_wanted)


def is_stuck(history: Sequence[Epoch], training: Training, *, metric: str) -> bool:
    """Whether the last validations, as many as one is patient with, found no better metric."""
    patience = training.early_stopping_patience
    if patience is None or not history:
        return False
    scores = [score_of(epoch.metrics, metric) for epoch in history]
    return len(scores) - 1 - scores.index(max(scores)) >= patience


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
    return max(int(cluster.own_node().get("CPU", 1)) // num_workers, 1)
