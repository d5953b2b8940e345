"""The usual recipe: transformers' Trainer, given the same batches, takes the same steps."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bertray.config import Optim, TrainModel
from bertray.train.base import load_base, open_base
from bertray.train.examples import Examples
from bertray.train.loss import CrossEntropy
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import train_steps

GLOBAL_BATCH, NUM_STEPS = 8, 20
LABELS = ("no", "maybe", "yes")
OPTIM = Optim(learning_rate=2e-3, weight_decay=0.1, max_grad_norm=0.5)


class WithLosses(Trainer):
    """Keeps what each pass's loss was, and takes rows in the order it is given them."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.losses: list[float] = []

    def training_step(self, *parts: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(*parts, **options)
        self.losses.append(float(loss))
        return loss


@pytest.mark.parametrize(
    ("optim", "theirs", "smoothing", "accumulation"),
    [
        (OPTIM, {"warmup_steps": 0.1}, 0.0, 1),
        (
            OPTIM.model_copy(update={"schedule": "cosine", "warmup_steps": 5}),
            {"warmup_steps": 5, "lr_scheduler_type": "cosine"},
            0.1,
            1,
        ),
        (OPTIM, {"warmup_steps": 0.1}, 0.0, 4),
    ],
    ids=["as it comes", "cosine and smoothed", "accumulated"],
)
def test_steps_are_those_of_the_trainer(
    optim: Optim,
    theirs: dict[str, Any],
    smoothing: float,
    accumulation: int,
    base_without_dropout: Path,
    make_examples: Callable[..., Examples],
    tmp_path: Path,
) -> None:
    rows = make_examples(GLOBAL_BATCH * NUM_STEPS, num_labels=len(LABELS))
    plan = plan_epoch(rows.lengths, global_batch_size=GLOBAL_BATCH, seed=0, epoch=0)
    base = open_base(TrainModel(base=str(base_without_dropout), max_length=32))
    model = load_base(base, labels=LABELS, seed=0)
    other = AutoModelForSequenceClassification.from_pretrained(
        base_without_dropout, num_labels=len(LABELS), ignore_mismatched_sizes=True
    )
    other.load_state_dict(model.state_dict())

    optimizer = make_optimizer(model, optim)
    steps = list(
        train_steps(
            model,
            optimizer,
            make_schedule(optimizer, optim, num_steps=NUM_STEPS),
            rows,
            plan=plan,
            steps_done=0,
            num_steps=NUM_STEPS,
            seed=0,
            max_grad_norm=optim.max_grad_norm,
            pad_token_id=0,
            rank=0,
            world_size=1,
            precision=Precision("float32", torch.device("cpu")),
            loss=CrossEntropy(label_smoothing=smoothing),
            accumulation_steps=accumulation,
        )
    )

    trainer = WithLosses(
        other,
        TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=GLOBAL_BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            learning_rate=optim.learning_rate,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            label_smoothing_factor=smoothing,
            train_sampling_strategy="sequential",
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **theirs,
        ),
        train_dataset=as_dicts(rows, np.concatenate(plan)),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(base_without_dropout)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = False  # it takes any, heeds none: its loss is a pass's mean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pinned memory, and other things of no matter here
        trainer.train()

    told = [one for one in trainer.state.log_history if "grad_norm" in one]
    losses = np.array(trainer.losses).reshape(NUM_STEPS, accumulation).sum(axis=1)
    np.testing.assert_allclose([step.loss for step in steps], losses, rtol=0, atol=1e-5)
    for name in ("grad_norm", "learning_rate"):
        np.testing.assert_allclose(
            [getattr(step, name) for step in steps], [one[name] for one in told], rtol=1e-3
        )
    for name, value in other.state_dict().items():
        if not name.endswith("key.bias"):  # softmax takes it out: its gradient is rounding alone
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-4)


def as_dicts(rows: Examples, order: np.ndarray) -> list[dict[str, object]]:
    """What the Trainer takes."""
    ids, offsets = rows.encoded.input_ids, rows.encoded.offsets
    return [
        {
            "input_ids": ids[offsets[row] : offsets[row + 1]].tolist(),
            "attention_mask": [1] * int(rows.lengths[row]),
            "label": int(rows.targets[row]),
        }
        for row in order
    ]
