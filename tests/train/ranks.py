"""One rank of a training without Ray, and rows that leave some rank without any."""

import faulthandler
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bertray.config import Optim
from bertray.schema import Task
from bertray.text.long import Aggregate
from bertray.train.base import Base, load_base
from bertray.train.examples import Examples
from bertray.train.layers import freeze
from bertray.train.loop import load_checkpoint
from bertray.train.loss import CROSS_ENTROPY, CrossEntropy, Loss
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.parallel import Strategy, ddp_options, is_sharded, shard
from bertray.train.plan import plan_epoch
from bertray.train.precision import Name, Precision
from bertray.train.state import load_state, save_state
from bertray.train.steps import NonFiniteLossError, Step, collate, predict, train_steps

CPU = torch.device("cpu")
LABELS = ("no", "yes")
GLOBAL_BATCH = 6
NUM_ROWS = 43  # 7 full batches and one of a single row, so a second rank has none
EPOCHS = 3
STRATEGIES = get_args(Strategy)
HANGS_AFTER_S = 200


class Trainer:
    """One rank's model and optimizer, without Ray."""

    def __init__(
        self,
        base: Base,
        examples: Examples,
        *,
        rank: int = 0,
        world_size: int = 1,
        strategy: Strategy = "ddp",
        checkpoint: Path | None = None,
        device: torch.device = CPU,
        precision: Name = "auto",
    ) -> None:
        self.rank, self.world_size, self.examples = rank, world_size, examples
        self.loss: Loss = CROSS_ENTROPY
        self.accumulation_steps = 1
        self.aggregate: Aggregate = "mean"
        self.precision = Precision(precision, device)
        self.bare: Any = (
            load_checkpoint(checkpoint, base)
            if checkpoint
            else load_base(base, labels=LABELS, seed=5)
        ).to(device)
        if world_size > 1 and strategy == "fsdp2":
            shard(self.bare, device)
        self.wrap()
        self.num_steps = EPOCHS * -(-len(examples) // GLOBAL_BATCH)
        self.start(Optim(learning_rate=1e-3))
        if checkpoint:
            state = load_state(checkpoint, self.optimizer, self.schedule, self.precision)
            assert state == ([], 0.0)

    def wrap(self) -> None:
        self.model = self.bare
        if self.world_size > 1 and not is_sharded(self.bare):
            encoded = self.examples.encoded
            inputs = collate(encoded, np.arange(1), pad_token_id=0, device=self.bare.device)
            options = ddp_options(self.bare, inputs)
            self.model = DistributedDataParallel(self.bare, **options)

    def start(self, optim: Optim) -> None:
        self.optimizer = make_optimizer(self.bare, optim)
        self.schedule = make_schedule(self.optimizer, optim, num_steps=self.num_steps)

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        parts = (self.bare, self.optimizer, self.schedule)
        save_state(folder, [], *parts, precision=self.precision, rank=self.rank)

    def epoch(self, number: int, steps: slice = slice(None)) -> list[Step]:
        """Some steps of an epoch; a resumed training begins within one."""
        plan = plan_epoch(
            self.examples.lengths, global_batch_size=GLOBAL_BATCH, seed=0, epoch=number
        )
        taken = train_steps(
            self.model,
            self.optimizer,
            self.schedule,
            self.examples,
            plan=plan[steps],
            steps_done=number * self.num_steps // EPOCHS + (steps.start or 0),
            num_steps=self.num_steps,
            seed=0,
            max_grad_norm=1.0,
            pad_token_id=0,
            rank=self.rank,
            world_size=self.world_size,
            precision=self.precision,
            loss=self.loss,
            aggregate=self.aggregate,
            accumulation_steps=self.accumulation_steps,
        )
        return list(taken)

    def predict(self, task: Task = "single_label") -> np.ndarray:
        return predict(
            self.model,
            self.examples.encoded,
            num_windows=self.examples.num_windows,
            aggregate=self.aggregate,
            precision=self.precision,
            num_labels=2,
            max_tokens=64,
            pad_token_id=0,
            rank=self.rank,
            world_size=self.world_size,
            task=task,
        )


def without_dropout(trainer: Trainer) -> Trainer:
    for module in trainer.bare.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return trainer


WEIGHTED = CrossEntropy(label_smoothing=0.1, focal_gamma=2.0, class_weights=(0.5, 3.0))


def weighted(trainer: Trainer, *, accumulation_steps: int) -> list[float]:
    """The losses of an epoch more, with all that a loss can have."""
    trainer.loss, trainer.accumulation_steps = WEIGHTED, accumulation_steps
    return [step.loss for step in trainer.epoch(0)]


def in_windows(make_examples: Callable[..., Examples], num_rows: int = NUM_ROWS) -> Examples:
    """Rows of one to four windows."""
    counts = np.random.default_rng(1).integers(1, 5, num_rows)
    rows, windows = make_examples(num_rows), make_examples(int(counts.sum()))
    ends = np.append(0, np.cumsum(counts))
    return Examples(windows.encoded, rows.targets, rows.row_ids, ends)


def losses_of(trainer: Trainer, *epochs: int) -> list[float]:
    return [step.loss for epoch in epochs for step in trainer.epoch(epoch)]


def run_ranks(
    rank: int,
    base: Base,
    places: list[tuple[Path, Examples]],
    idle: dict[Path, Base],
    even: Examples,
    meeting_point: Path,
) -> None:
    """What a process of a two-rank run does, for each folder and its rows, or its base."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    for folder, examples in places:
        for strategy in STRATEGIES:
            make = partial(Trainer, base, examples, rank=rank, world_size=2, strategy=strategy)
            run_rank(make, folder, strategy, rank)
    for folder, of_family in idle.items():
        for strategy in STRATEGIES:
            trainer = Trainer(of_family, even, rank=rank, world_size=2, strategy=strategy)
            losses = idle_losses(without_dropout(trainer))
            np.savez(folder / f"{strategy}{rank}.npz", losses=losses)
    dist.barrier()  # neither leaves while the other still listens
    dist.destroy_process_group()
    os._exit(0)  # without an interpreter's end, which threads of torch could hold up


def run_rank(make: Callable[..., Trainer], folder: Path, strategy: str, rank: int) -> None:
    """Leaves a rank's losses and predictions in files, and a checkpoint of all ranks."""
    trainer = without_dropout(make())
    losses = losses_of(trainer, 0)
    trainer.save(folder / strategy)
    losses += losses_of(trainer, 1, 2)
    weighted_losses = weighted(trainer, accumulation_steps=2)
    np.savez(
        folder / f"{strategy}{rank}.npz",
        losses=losses,
        weighted_losses=weighted_losses,
        probabilities=trainer.predict(),
        num_held=num_held(trainer),
        dropout_losses=dropout_losses(make, folder / f"{strategy}-dropout"),
        resumed_losses=losses_of(without_dropout(make(checkpoint=folder / "one")), 1, 2),
        hard_losses=hard_losses(make()),
        lower_losses=lower_losses(make(), "bfloat16"),
        half_losses=lower_losses(make(), "float16"),
    )
    next(trainer.bare.parameters()).data.fill_(float("nan"))
    try:
        trainer.epoch(0)
    except NonFiniteLossError as error:
        (folder / f"{strategy}{rank}.txt").write_text(str(error))


def idle_losses(trainer: Trainer) -> list[float]:
    """Of whole batches, and of cut ones."""
    losses = losses_of(trainer, 0)
    trainer.accumulation_steps = 2
    return losses + losses_of(trainer, 1)


def dropout_losses(make: Callable[..., Trainer], folder: Path) -> list[list[float]]:
    """An epoch's after a checkpoint, and the same from the checkpoint."""
    whole = make()
    whole.epoch(0)
    whole.save(folder)
    went_on = losses_of(whole, 1)
    return [went_on, losses_of(make(checkpoint=folder), 1)]


def num_held(trainer: Trainer) -> int:
    """Numbers that a rank has of the weights and of their averages in the optimizer."""
    kept = [*trainer.bare.parameters()]
    for averages in trainer.optimizer.state.values():
        kept += [averages["exp_avg"], averages["exp_avg_sq"]]
    return sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in kept)


def hard_losses(trainer: Trainer) -> list[float]:
    """With dropout, activations that are computed again, layers that are let go of by and by."""
    trainer.bare.gradient_checkpointing_enable({"use_reentrant": False})
    losses = []
    for epoch, num_frozen in enumerate((2, 0, None)):
        freeze(trainer.bare, num_layers=num_frozen)
        trainer.wrap()
        losses += losses_of(trainer, epoch)
        trainer.predict()
    return losses


def lower_losses(trainer: Trainer, name: Name) -> list[float]:
    """In two bytes, where a last bit of a weight may come to change the second digit of a loss."""
    trainer.precision = Precision(name, torch.device("cpu"))
    return losses_of(trainer, 0)
