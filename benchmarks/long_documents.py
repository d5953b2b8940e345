"""What becomes of texts over max_length: truncated, head and tail, or windows; accuracy and cost.

    python benchmarks/long_documents.py --model FOLDER --reviews imdb.csv \
        [--rows 400] [--heldout-rows 400] [--epochs 2] [--seeds 1] [--max-length 128] \
        [--folder KEPT]

The file of reviews is a CSV with the columns ``text`` and ``label``, or ``FILE:COLUMN=VALUE`` for
some of its rows. Each way is trained by `bertray train` on the same rows with the same settings,
seed by seed, and measured by `bertray evaluate` on the same held-out rows; what was trained
truncated is also scored in windows. ``--model`` is an encoder to fine-tune. With ``--folder`` a run
that was cut off, or one of more seeds, goes on with the bundles that are there.
"""

import argparse
import logging
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from bertray.config import EvaluateConfig, TrainConfig, load_config
from bertray.evaluate.run import evaluate
from bertray.train.run import train

WAYS = ("truncate", "head_tail", "window")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--reviews", required=True, help="CSV of labelled long texts")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--heldout-rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    print(", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers")))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        reviews = read_reviews(options.reviews)
        heldout = reviews[-options.heldout_rows :]
        if not (folder / "heldout.parquet").exists():
            pq.write_table(reviews[: options.rows], folder / "train.parquet")
            pq.write_table(heldout, folder / "heldout.parquet")
        tell_lengths(options.model, heldout, max_length=options.max_length)
        print("\n| trained | scored | accuracy, mean | by seed | training, s | scoring, s |")
        print("|---|---|---|---|---|---|")
        for way in WAYS:
            seconds = [
                fine_tune(folder, way, seed=seed, options=options) for seed in range(options.seeds)
            ]
            for scored in ("truncate", "window") if way == "truncate" else (way,):
                tell(folder, way, scored, num_seeds=options.seeds, train_seconds=seconds)


def fine_tune(folder: Path, way: str, *, seed: int, options: argparse.Namespace) -> float:
    """Make a bundle; gives the seconds of the optimizer steps."""
    words = [
        f"model.base={options.model}",
        f"model.max_length={options.max_length}",
        f"text.long={way}",
        f"data.train={folder / 'train.parquet'}",
        "optim.learning_rate=2e-4",
        f"training.num_epochs={options.epochs}",
        "training.per_device_batch_size=8",
        "training.metric=loss",  # of a tenth of the rows: their accuracy would be chance
        f"training.seed={seed}",
        f"output.path={folder / way}-{seed}",
    ]
    return sum(epoch.seconds for epoch in train(load_config(TrainConfig, None, words)).epochs)


def tell(
    folder: Path, trained: str, scored: str, *, num_seeds: int, train_seconds: list[float]
) -> None:
    """Print the line of bundles that were trained in one way and are scored in one."""
    accuracies, seconds = [], []
    for seed in range(num_seeds):
        words = [
            f"model.path={folder / trained}-{seed}",
            f"text.long={scored}",
            f"data.path={folder / 'heldout.parquet'}",
            f"output.path={folder / 'evaluation'}",
        ]
        start = time.perf_counter()
        found = evaluate(load_config(EvaluateConfig, None, words))
        seconds.append(time.perf_counter() - start)
        accuracies.append(found.metrics["accuracy"])
    by_seed = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    print(
        f"| {trained} | {scored} | {statistics.mean(accuracies):.3f} | {by_seed} "
        f"| {statistics.mean(train_seconds):.0f} | {statistics.mean(seconds):.0f} |",
        flush=True,
    )


def read_reviews(source: str) -> pa.Table:
    """Labelled rows of a CSV, shuffled with a fixed seed."""
    path, _, condition = source.partition(":")
    table = pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(newlines_in_values=True))
    if condition:
        column, _, value = condition.partition("=")
        table = table.filter(pc.equal(table[column].cast(pa.string()), value))
    order = np.random.default_rng(0).permutation(table.num_rows)
    return table.select(["text", "label"]).take(order)


def tell_lengths(model: str, reviews: pa.Table, *, max_length: int) -> None:
    """Print how long the texts are."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = np.array([len(ids) for ids in tokenizer(reviews["text"].to_pylist())["input_ids"]])
    print(
        f"{len(lengths)} held-out reviews of {np.median(lengths):.0f} tokens in the median, "
        f"{(lengths > max_length).mean():.0%} of them over {max_length}"
    )


if __name__ == "__main__":
    main()
