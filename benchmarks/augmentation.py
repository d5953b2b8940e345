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
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from fine_tuning import (
    MAX_LENGTH,
    NUM_HELD_OUT,
    accuracy_of,
    as_examples,
    encoder_folder,
    fit,
    read_reviews,
)

from bertray.config import Augmentation, TrainModel
from bertray.train.augment import make_copies, open_augmenter
from bertray.train.base import open_base

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
    base = open_base(TrainModel(base=str(encoder_folder()), max_length=MAX_LENGTH))
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


if __name__ == "__main__":
    main()
