"""Optimizer steps and predictions of one rank among several. torch alone, no Ray.

# B = rows in a micro-batch, L = longest in it, C = labels, N = rows to predict, S = their sequences
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from bertray.errors import DataError
from bertray.model.engine import read_logits
from bertray.model.windows import pool_windows
from bertray.schema import Scale, Task
from bertray.text.batching import plan_batches
from bertray.text.long import Aggregate
from bertray.text.ragged import Encoded, padded_inputs
from bertray.train.examples import Examples
from bertray.train.labels import Piece, locate
from bertray.train.loss import CROSS_ENTROPY, Loss
from bertray.train.parallel import alone, bare_of, clip_gradients, is_sharded, reshard
from bertray.train.plan import cut_by_length, deal
from bertray.train.precision import Precision

# What a pass of forward and backward takes beside its tokens, in the time of so many: measured on
# two cores (MiniLM, 25 ms); on a GPU, where fewer tokens leave it idle.
PASS_TOKENS = {"cpu": 64, "cuda": 4096}
ROWS_NAMED = 32  # in a message; a batch may have hundreds


class NonFiniteLossError(DataError):
    """The loss or its gradient is not a number: all ranks see it at the same step."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, all workers together.

    Attributes:
        step: counted from 1 over all epochs.
        num_steps: of the whole training.
        loss: mean over the step's rows, by their weights.
        learning_rate: that the step was taken with.
        grad_norm: global norm before clipping; None where it overflowed float16.
        num_rows: of the step.
        num_tokens: of the step, padding not counted.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    num_rows: int
    num_tokens: int


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    examples: Examples,
    *,
    plan: Sequence[np.ndarray],
    steps_done: int,
    num_steps: int,
    seed: int,
    max_grad_norm: float,
    pad_token_id: int,
    rank: int,
    world_size: int,
    precision: Precision,
    loss: Loss = CROSS_ENTROPY,
    aggregate: Aggregate = "mean",
    accumulation_steps: int = 1,
    can_pad: bool = True,
    pieces: Sequence[Piece] = (),
) -> Iterator[Step]:
    """Take one optimizer step a batch of ``plan``, unless float16 overflows; yields after each.

    Each rank takes its share of the batch, in as many passes as ``accumulation_steps`` says and as
    save more padding than they take (`cut_by_length`). Its loss is the sum over its rows, times
    ranks, over the rows of all ranks: after DDP has averaged the gradients they are those of the
    whole batch's mean loss, however unevenly the rows were dealt. A rank without rows takes part
    with weight zero, and so does one that is done with its passes before the others, if their model
    is sharded. Where a model heeds padding, ``can_pad`` is False, and each pass has rows of one
    length.

    Of a row in windows the logits are made one before the loss, as in scoring: what is trained is
    what is scored, each row counts once by its label, weight and focus, and a window that says
    nothing need not answer for the label by itself.

    Raises:
        NonFiniteLossError: before the optimizer step, on every rank.
    """
    model.train()
    device = next(model.parameters()).device
    lengths, longest, num_windows = examples.lengths, examples.longest, examples.num_windows
    pass_tokens = PASS_TOKENS[device.type] if can_pad else 0
    counted = range(world_size) if is_sharded(model) else (rank,)  # whose passes one must know
    for number, batch in enumerate(plan, start=steps_done + 1):
        seed_step(seed, step=number, rank=rank)
        shares = deal(batch, lengths, num_ranks=world_size)
        by_rank = {
            one: [
                cut
                for part in split_rows(shares[one], num_windows, num_parts=accumulation_steps)
                for cut in cut_by_length(part, longest, num_windows, pass_tokens=pass_tokens)
            ]
            for one in counted
        }
        num_passes = max(map(len, by_rank.values())) if is_sharded(model) else 1
        passes = [(some, 1.0) for some in by_rank[rank]]
        passes += [(batch[:1], 0.0)] * (num_passes - len(passes))
        num_rows = loss.num_rows(examples.targets[batch])
        optimizer.zero_grad()
        losses_of_passes = []
        for place, (some, weight) in enumerate(passes, start=1):
            sequences = examples.sequences_of(some)
            inputs = collate(examples.encoded, sequences, pad_token_id=pad_token_id, device=device)
            targets = torch.from_numpy(examples.targets[some]).to(device)
            teacher_BC = None
            if examples.teacher_logits is not None:
                teacher_BC = torch.from_numpy(examples.teacher_logits[some]).to(device)
            with nullcontext() if place == len(passes) else alone(model):
                with precision.autocast():
                    logits_SC = model(**inputs).logits
                logits_BC = pool_windows(logits_SC, num_windows[some], aggregate=aggregate)
                found = weight * loss.of_rows(logits_BC, targets, teacher_BC)
                torch.autograd.backward(precision.scale(found * (world_size / num_rows)))
            losses_of_passes.append(found.detach())
        precision.unscale(optimizer)
        grad_norm = clip_gradients(model, max_grad_norm)
        total = torch.stack(losses_of_passes).sum()
        losses = _of_all_ranks(total, world_size=world_size)
        if not np.isfinite(losses if precision.may_overflow else [*losses, grad_norm]).all():
            own = [
                some
                for (some, weight), value in zip(passes, losses_of_passes, strict=True)
                if weight and not value.isfinite()
            ]
            guilty = _lists_of_all_ranks(own, world_size=world_size)
            raise NonFiniteLossError(
                f"step {number} of {num_steps}: the loss is {sum(losses) / num_rows}, its "
                f"gradient's norm {grad_norm}; the optimizer step was not taken. Rows: "
                f"{_named(examples.row_ids[np.concatenate(guilty or shares)], pieces)}. "
                "Lower optim.learning_rate, or raise optim.warmup_ratio"
            )
        learning_rate = float(schedule.get_last_lr()[0])
        if precision.step(optimizer):
            schedule.step()
        elif precision.is_lost or (number == num_steps and not schedule.last_epoch):
            raise NonFiniteLossError(
                f"step {number} of {num_steps}: with training.precision=float16 the gradients "
                "have not been finite step after step, and none was taken; take bfloat16 or "
                "float32"
            )
        yield Step(
            step=number,
            num_steps=num_steps,
            loss=sum(losses) / num_rows,
            learning_rate=learning_rate,
            grad_norm=grad_norm if np.isfinite(grad_norm) else None,
            num_rows=len(batch),
            num_tokens=int(lengths[batch].sum()),
        )


@torch.no_grad()
def predict(
    model: nn.Module,
    encoded: Encoded,
    *,
    precision: Precision,
    num_labels: int,
    max_tokens: int,
    pad_token_id: int,
    rank: int,
    world_size: int,
    num_windows: np.ndarray | None = None,
    aggregate: Aggregate = "mean",
    task: Task = "single_label",
    scale: Scale | None = None,
    can_pad: bool = True,
) -> np.ndarray:
    """Probabilities or scores of N rows; the ranks share the work, and each gets all of it.

    Args:
        model: bare, wrapped in DDP, or sharded.
        encoded: the rows' S sequences.
        precision: of the forward pass.
        num_labels: C.
        max_tokens: sequences x longest one of one forward pass.
        pad_token_id: fills shorter sequences.
        rank: of this worker.
        world_size: number of workers.
        num_windows: sequences per row, integers of shape (N,); None for one each.
        aggregate: what makes one row's logits of its windows'.
        task: how the logits are read.
        scale: likewise.
        can_pad: False where only sequences of one length may share a pass.

    Returns:
        float64 of shape (N, C).

    Raises:
        NonFiniteLossError: the model has come to give values that are not finite, on every rank.
    """
    bare = bare_of(model)
    bare.eval()
    device = next(bare.parameters()).device
    logits_SC = torch.zeros(len(encoded), num_labels, device=device)
    max_padding = 1.0 if can_pad else 0.0
    batches = plan_batches(encoded.lengths, max_tokens=max_tokens, max_padding=max_padding)
    own = batches[rank::world_size]
    num_calls = -(-len(batches) // world_size) if is_sharded(model) else len(own)
    for number in range(num_calls):
        rows = own[number] if number < len(own) else batches[-1][:1]
        inputs = collate(encoded, rows, pad_token_id=pad_token_id, device=device)
        with precision.autocast():
            logits_BC = bare(**inputs).logits
        if number < len(own):
            logits_SC[torch.from_numpy(rows).to(device)] = logits_BC.float()
    reshard(bare)
    if world_size > 1:
        dist.all_reduce(logits_SC)  # each row is zero on all ranks but one, so the sum is exact
    if not logits_SC.isfinite().all():
        raise NonFiniteLossError(
            "the model gives values that are not finite for validation rows; "
            "lower optim.learning_rate"
        )
    logits_NC = logits_SC
    if num_windows is not None:
        logits_NC = pool_windows(logits_SC, num_windows, aggregate=aggregate)
    return read_logits(logits_NC.cpu().double(), task=task, scale=scale)


def collate(
    encoded: Encoded, rows: np.ndarray, *, pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    """The model's inputs for some rows, each of shape (B, L), int64, on ``device``."""
    inputs = padded_inputs(encoded, rows, pad_token_id=pad_token_id)
    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}


def split_rows(rows: np.ndarray, num_windows: np.ndarray, *, num_parts: int) -> list[np.ndarray]:
    """A rank's rows of a step as passes: ``num_parts`` of them, or as many as there are rows.

    Rows in windows take more, lest a step needs many times the memory that its rows had without: a
    row begins a pass once there are as many sequences before it in the last as the part has rows.

    Args:
        rows: indices.
        num_windows: sequences of each row there is.
        num_parts: at least 1.
    """
    passes = []
    for part in np.array_split(rows, min(num_parts, len(rows))) if len(rows) else ():
        ahead = np.cumsum(num_windows[part]) - num_windows[part]
        passes += np.split(part, np.flatnonzero(np.diff(ahead // len(part))) + 1)
    return passes


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed dropout, differently on each rank and step, and the same again when it is resumed."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _of_all_ranks(value: Tensor, *, world_size: int) -> list[float]:
    if world_size == 1:
        return [float(value)]
    gathered = [torch.empty_like(value) for _ in range(world_size)]
    dist.all_gather(gathered, value)
    return [float(one) for one in gathered]


def _lists_of_all_ranks(own: list[np.ndarray], *, world_size: int) -> list[np.ndarray]:
    if world_size == 1:
        return own
    gathered: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    dist.all_gather_object(gathered, own)
    return [rows for ranks_own in gathered for rows in ranks_own]


def _named(row_ids: np.ndarray, pieces: Sequence[Piece]) -> str:
    names = [locate(int(row), pieces) if pieces else str(row) for row in row_ids[:ROWS_NAMED]]
    more = len(row_ids) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
