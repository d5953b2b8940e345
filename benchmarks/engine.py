"""The engine against Hugging Face on one machine, without Ray, side by side in one run.

    python benchmarks/engine.py --short rotten.csv --long imdb.csv --model FOLDER \
        [--short-rows 2048] [--long-rows 128] [--repeats 3] [--threads 2] [--device cuda]

A file of texts is a CSV with a column ``text``, or ``FILE:COLUMN=VALUE`` for some of its rows. The
peer is plain transformers as most people speed it up: rows sorted by length, batches of 32, padded;
`CrossEncoder.predict` of sentence-transformers does the same (`pip install bertray[bench]`). Every
side starts from texts and ends with probabilities; of several repeats, which take turns, the median
counts. ``--model`` is a sequence-classification folder; an encoder without a head gets a random
one, whose labels say little: judge number types by a fine-tuned model.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bertray.model.backend import Device
from bertray.model.bundle import Bundle, load_model, open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings
from bertray.text.encoding import Encoder

ROWS_PER_BATCH = 32
LONGEST = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", required=True, help="CSV of short texts")
    parser.add_argument("--long", required=True, help="CSV of long texts")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--short-rows", type=int, default=2_048)
    parser.add_argument("--long-rows", type=int, default=128)
    parser.add_argument("--tokenized-rows", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    names = ("torch", "transformers", "tokenizers", "onnxruntime", "nanotoken")
    card = f"{torch.cuda.get_device_name()}, " if options.device == "cuda" else ""
    print(f"{card}{processor()}, {options.threads} threads; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names))
    texts = {"short": read_texts(options.short), "long": read_texts(options.long)}
    num_rows = {"short": options.short_rows, "long": options.long_rows}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = open_bundle(str(with_head(options.model, Path(scratch) / "model")))
        sides = load_sides(bundle, device=options.device, num_threads=options.threads)
        print("\n| texts | side | rows/s | ratio | same labels | largest difference |")
        print("|---|---|---|---|---|---|")
        for name, column in texts.items():
            compare(name, column[: num_rows[name]], sides, repeats=options.repeats)
        texts = {name: column[: options.tokenized_rows] for name, column in texts.items()}
        compare_tokenizers(bundle, texts, repeats=options.repeats)


def load_sides(
    bundle: Bundle, *, device: Device, num_threads: int
) -> dict[str, Callable[[pa.Array], np.ndarray]]:
    """What is compared: texts to probabilities."""
    tokenizer, model = AutoTokenizer.from_pretrained(bundle.folder), load_model(bundle).to(device)
    sides = {"Hugging Face, sorted, 32": lambda texts: hugging_face(tokenizer, model, texts)}
    ours = {"torch": "float32", "onnx": "float32", "onnx int8": "int8"}
    if device == "cuda":
        ours = {"torch": "float32"}
        for name in ("float16", "bfloat16"):
            lower = load_model(bundle).to(device, dtype=getattr(torch, name))
            sides[f"the same, {name}"] = partial(hugging_face, tokenizer, lower)
            ours[f"torch {name}"] = name
    if find_spec("sentence_transformers"):
        sides["sentence-transformers CrossEncoder"] = cross_encoder(bundle, device=device)
    for name, dtype in ours.items():
        settings = resolve_settings(
            bundle, device=device, max_length=LONGEST, backend=name.split()[0], dtype=dtype
        )
        engine = Engine(bundle, settings, num_threads=num_threads)
        engine.predict(["warm up"])
        sides[f"bertray {name}"] = lambda texts, engine=engine: engine.predict(texts).probabilities
    return sides


def cross_encoder(bundle: Bundle, *, device: Device) -> Callable[[pa.Array], np.ndarray]:
    """As its documentation shows it, which is for pairs alone: the second texts are empty."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(bundle.folder), max_length=LONGEST, device=device)
    return lambda texts: model.predict(
        [(text, "") for text in texts.to_pylist()],
        batch_size=ROWS_PER_BATCH,
        apply_softmax=True,
        show_progress_bar=False,
    )


def hugging_face(
    tokenizer: transformers.PreTrainedTokenizerBase,
    model: transformers.PreTrainedModel,
    texts: pa.Array,
) -> np.ndarray:
    """Rows sorted by length, fixed batches, each padded to its longest row."""
    encoding = tokenizer(texts.to_pylist(), truncation=True, max_length=LONGEST)
    order = np.argsort([-len(row) for row in encoding["input_ids"]], kind="stable")
    probabilities = np.empty((len(texts), model.config.num_labels), np.float32)
    for start in range(0, len(order), ROWS_PER_BATCH):
        rows = order[start : start + ROWS_PER_BATCH]
        batch = {name: [values[row] for row in rows] for name, values in encoding.items()}
        with torch.inference_mode():
            inputs = tokenizer.pad(batch, return_tensors="pt").to(model.device)
            logits = model(**inputs).logits.float()
        probabilities[rows] = logits.softmax(dim=-1).cpu().numpy()
    return probabilities


def compare(
    name: str,
    texts: pa.Array,
    sides: dict[str, Callable[[pa.Array], np.ndarray]],
    *,
    repeats: int,
) -> None:
    """Print a line a side."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            start = time.perf_counter()
            results[side] = run(texts)
            seconds[side].append(time.perf_counter() - start)
    peer = next(iter(sides))
    for side, found in results.items():
        took = statistics.median(seconds[side])
        ratio = statistics.median(seconds[peer]) / took
        same = (found.argmax(axis=1) == results[peer].argmax(axis=1)).mean()
        largest = np.abs(found - results[peer]).max()
        print(
            f"| {name}, {len(texts)} | {side} | {len(texts) / took:.1f} | {ratio:.2f} "
            f"| {same:.2%} | {largest:.1e} |"
        )


def compare_tokenizers(bundle: Bundle, texts: dict[str, pa.Array], *, repeats: int) -> None:
    """On one core and cold: each repeat has an encoder that has seen nothing."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print("\n| texts | tokenizers, M tokens/s | bertray | ratio | ids |\n|---|---|---|---|---|")
    tokenizer = AutoTokenizer.from_pretrained(bundle.folder)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(LONGEST)
    for name, column in texts.items():
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            encoder = Encoder(tokenizer, max_length=LONGEST, parallel=False)
            start = time.perf_counter()
            ours = encoder(column).input_ids
            middle = time.perf_counter()
            rows = backend.encode_batch_fast(column.to_pylist())
            theirs = np.concatenate([np.array(row.ids) for row in rows])
            seconds["ours"].append(middle - start)
            seconds["theirs"].append(time.perf_counter() - middle)
        rates = {
            side: len(theirs) / statistics.median(took) / 1e6 for side, took in seconds.items()
        }
        same = "identical" if np.array_equal(ours, theirs) else "DIFFERENT"
        print(
            f"| {name}, {len(column)} | {rates['theirs']:.2f} | {rates['ours']:.2f} "
            f"| {rates['ours'] / rates['theirs']:.1f} | {same} |"
        )


def read_texts(source: str) -> pa.Array:
    """Rows of a CSV, shuffled with a fixed seed; each text once."""
    path, _, condition = source.partition(":")
    table = pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(newlines_in_values=True))
    if condition:
        column, _, value = condition.partition("=")
        table = table.filter(pc.equal(table[column].cast(pa.string()), value))
    texts = pc.unique(table["text"])
    return texts.take(np.random.default_rng(0).permutation(len(texts)))


def with_head(folder: Path, target: Path) -> Path:
    """The model itself, or a copy with a random two-label head."""
    names = AutoConfig.from_pretrained(folder).architectures or []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return folder
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def processor() -> str:
    """What the machine computes on, as far as it says."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
