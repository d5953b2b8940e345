"""What a small model loses in accuracy and gains in speed, with a teacher and without; CPU, no Ray.

    python benchmarks/distillation.py [--rows 1000] [--layers 2] [--epochs 3] [--seeds 1]

The teacher is MiniLM, six layers, fine-tuned on Rotten Tomatoes; the student its first layers,
before fine-tuning, trained on the same rows with and without what the teacher says of them. The
last 1,000 rows are held out. Speed is that of the scoring engine on the held-out rows, the median
of three.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from fine_tuning import (
    LABELS,
    MAX_LENGTH,
    NUM_HELD_OUT,
    accuracy_of,
    as_examples,
    encoder_folder,
    fit,
    read_reviews,
)
from torch import nn
from transformers import AutoModel, PreTrainedModel

from bertray.config import TrainModel
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.pretrained import load_tokenizer
from bertray.model.settings import resolve_settings
from bertray.train.base import open_base
from bertray.train.examples import Examples
from bertray.train.loss import CROSS_ENTROPY, CrossEntropy
from bertray.train.teacher import make_teacher, teach

DISTILLED = CrossEntropy(temperature=2.0, alpha=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    names = ("torch", "transformers", "onnxruntime")
    print(f"{options.threads} threads;", ", ".join(f"{name} {version(name)}" for name in names))
    whole = encoder_folder()
    texts, label_ids = read_reviews()
    train_texts, train_ids = texts[: options.rows], label_ids[: options.rows]
    held_texts, held_ids = texts[-NUM_HELD_OUT:], label_ids[-NUM_HELD_OUT:]
    with tempfile.TemporaryDirectory() as scratch:
        teacher_folder, student_folder = Path(scratch) / "teacher", Path(scratch) / "student"
        cut(whole, student_folder, num_layers=options.layers)
        bases = {
            name: open_base(TrainModel(base=str(folder), max_length=MAX_LENGTH))
            for name, folder in (("teacher", whole), ("student", student_folder))
        }
        examples = as_examples(train_texts, train_ids, bases["teacher"])
        held_out = as_examples(held_texts, held_ids, bases["teacher"])
        teacher_model = fit(examples, bases["teacher"], num_epochs=options.epochs, seed=0)
        save(teacher_model, teacher_folder, like=whole)
        start = time.perf_counter()
        teacher = make_teacher(open_bundle(str(teacher_folder)), labels=LABELS, device="cpu")
        logits = teach(teacher, [train_texts])
        print(f"teacher's logits of {options.rows} rows: {time.perf_counter() - start:.0f} s")
        taught = Examples(
            examples.encoded, examples.targets, examples.row_ids, teacher_logits=logits
        )
        print("\n| model | layers | accuracy | each seed | rows/s |\n|---|---|---|---|---|")
        speed = rows_per_s(teacher_folder, held_texts, num_threads=options.threads)
        show("teacher", teacher_model, [accuracy_of(teacher_model, held_out)], speed)
        for name, rows, loss in (
            ("student, labels alone", examples, CROSS_ENTROPY),
            ("student, with the teacher", taught, DISTILLED),
        ):
            found = []
            for seed in range(options.seeds):
                model = fit(rows, bases["student"], num_epochs=options.epochs, seed=seed, loss=loss)
                found.append(accuracy_of(model, held_out))
            folder = Path(scratch) / name
            save(model, folder, like=whole)
            speed = rows_per_s(folder, held_texts, num_threads=options.threads)
            show(name, model, found, speed)


def show(name: str, model: PreTrainedModel, found: Sequence[float], speed: float) -> None:
    layers, seeds = model.config.num_hidden_layers, ", ".join(f"{one:.3f}" for one in found)
    print(
        f"| {name} | {layers} | {statistics.mean(found):.3f} | {seeds} | {speed:.0f} |", flush=True
    )


def cut(whole: Path, folder: Path, *, num_layers: int) -> None:
    """The embeddings and the first layers of an encoder."""
    model = AutoModel.from_pretrained(whole)
    model.encoder.layer = nn.ModuleList(model.encoder.layer[:num_layers])
    model.config.num_hidden_layers = num_layers
    save(model, folder, like=whole)


def save(model: PreTrainedModel, folder: Path, *, like: Path) -> None:
    model.save_pretrained(folder)
    load_tokenizer(like).save_pretrained(folder)


def rows_per_s(folder: Path, texts: Sequence[str], *, num_threads: int) -> float:
    """Of the engine as scoring uses it, its model loaded before."""
    bundle = open_bundle(str(folder))
    settings = resolve_settings(bundle, device="cpu", max_length=MAX_LENGTH)
    engine = Engine(bundle, settings, num_threads=num_threads)
    engine.predict(["warm up"])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        engine.predict(texts)
        seconds.append(time.perf_counter() - start)
    return len(texts) / statistics.median(seconds)


if __name__ == "__main__":
    main()
