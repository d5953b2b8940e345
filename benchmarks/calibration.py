"""What calibration makes of a model that was trained to be too sure of itself; CPU, no Ray.

    python benchmarks/calibration.py [--rows 400] [--epochs 8] [--calibration-rows 500] [--seed 0]

MiniLM is fine-tuned on few rows of Rotten Tomatoes for many epochs; other rows calibrate it, and
the last 1,000 say what that is worth: calibration error, loss and accuracy, and for each wanted
precision the share of rows that keep their label and how many of these are right.
"""

import argparse
import os
import time
from importlib.metadata import version

import torch
import transformers
from fine_tuning import (
    MAX_LENGTH,
    NUM_HELD_OUT,
    as_examples,
    encoder_folder,
    fit,
    probabilities,
    read_reviews,
)

from bertray.config import TrainModel
from bertray.evaluate.calibration import calibrated, fit_calibration, reliability
from bertray.evaluate.cutoffs import find_cutoffs
from bertray.evaluate.metrics import classification_metrics
from bertray.train.base import open_base


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--calibration-rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    names = ("torch", "transformers", "scipy")
    print(f"{options.threads} threads;", ", ".join(f"{name} {version(name)}" for name in names))
    base = open_base(TrainModel(base=str(encoder_folder()), max_length=MAX_LENGTH))
    texts, label_ids = read_reviews()
    first, second = options.rows, options.rows + options.calibration_rows
    parts = slice(first), slice(first, second), slice(-NUM_HELD_OUT, None)
    training, few, held_out = (as_examples(texts[part], label_ids[part], base) for part in parts)
    start = time.perf_counter()
    trained = fit(training, base, num_epochs=options.epochs, seed=options.seed)
    print(f"trained for {time.perf_counter() - start:.0f} s")
    of_few, others = probabilities(trained, few), probabilities(trained, held_out)
    print("\n| calibration | error | loss | accuracy |\n|---|---|---|---|")
    cutoffs, shown = (), others
    for method in ("none", "temperature", "vector"):
        p, theirs = others, of_few
        if method != "none":
            found = fit_calibration(of_few, few.targets, method=method, task="single_label")
            p, theirs = (calibrated(one, found, task="single_label") for one in (others, of_few))
        metrics = classification_metrics(p, held_out.targets)
        error = reliability(p, held_out.targets).ece
        print(f"| {method} | {error:.4f} | {metrics['loss']:.4f} | {metrics['accuracy']:.4f} |")
        if method == "temperature":
            cutoffs, shown = find_cutoffs(theirs, few.targets), p
    top, right = shown.max(axis=1), shown.argmax(axis=1) == held_out.targets
    print(
        "\n| wanted precision | threshold | rows with a label | of these right |\n|---|---|---|---|"
    )
    for cutoff in cutoffs:
        kept = top >= cutoff.threshold
        found_right = f"{right[kept].mean():.4f}" if kept.any() else "none"
        print(
            f"| {cutoff.precision} | {cutoff.threshold:.4f} | {kept.mean():.1%} | {found_right} |"
        )


if __name__ == "__main__":
    main()
