"""What a training has come to, in memory and in a checkpoint's folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from bertray.model.pretrained import quiet
from bertray.train.parallel import gather_state, gather_weights, scatter_state
from bertray.train.precision import Precision
from bertray.train.steps import Step

STATE = "training_state.pt"
STEPS = "steps.jsonl"


@dataclass(frozen=True)
class Resumed:
    """The training goes on from a checkpoint.

    Attributes:
        step: the last one that had been done by then.
        num_steps: to be done, all in all.
    """

    step: int
    num_steps: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows, and the validation after it.

    Where `training.validation_steps` has it validated within as well: a part of one, from one
    validation to the next.

    Attributes:
        epoch: counted from 1; passes done by then, with a fraction where that is within one.
        step: the last one.
        train_loss: mean over the rows, each as its step found it.
        metrics: of the validation rows.
        num_rows: trained on.
        num_tokens: likewise, padding not counted.
        seconds: of the steps, validation not counted.
        thresholds: of independent labels, as the validation rows have them best.
        calibration: of the probabilities, as a bundle's manifest has it.
        cutoffs: likewise.
    """

    epoch: float
    step: int
    train_loss: float
    metrics: dict[str, float]
    num_rows: int
    num_tokens: int
    seconds: float
    thresholds: list[float] | None = None
    calibration: dict[str, Any] | None = None
    cutoffs: list[dict[str, float]] | None = None


def save_state(
    folder: Path,
    history: list[Epoch],
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    *,
    precision: Precision,
    seconds: float = 0.0,
    rank: int = 0,
) -> None:
    """Write the model as Hugging Face does, and beside it what else a resumed training needs.

    All ranks are to call this, and rank 0 writes. What it writes tells neither of their number nor
    of their strategy. Dropout needs nothing: each step seeds it.
    """
    weights, optimizer_state = gather_weights(model), gather_state(optimizer)
    if rank != 0:
        return
    with quiet():
        model.save_pretrained(folder, state_dict=weights)
    state = {
        "history": [asdict(epoch) for epoch in history],
        "seconds": seconds,
        "optimizer": optimizer_state,
        "schedule": schedule.state_dict(),
        "precision": precision.state_dict(),
    }
    torch.save(state, folder / STATE)


def load_state(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    precision: Precision,
) -> tuple[list[Epoch], float]:
    """Put all but the model back to where `save_state` found it.

    Returns:
        What validations have found, and the seconds that steps since the last one have taken.
    """
    # Of what goes to a GPU no rank needs a copy of its own in memory before.
    on_gpu = optimizer.param_groups[0]["params"][0].device.type != "cpu"
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=on_gpu)
    scatter_state(optimizer, state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    precision.load_state_dict(state["precision"])
    return [Epoch(**epoch) for epoch in state["history"]], state["seconds"]


def write_steps(steps: Sequence[Step]) -> str:
    """A line of JSON for each."""
    return "".join(json.dumps(asdict(step)) + "\n" for step in steps)


def read_steps(text: str) -> list[Step]:
    """Undo `write_steps`."""
    return [Step(**json.loads(line)) for line in text.splitlines()]
