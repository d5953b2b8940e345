"""Planning, dispatch and resuming of a run of 10,000 shards, with a classifier that takes no time.

    python benchmarks/scale.py [--shards 10000] [--rows 10000] [--folder FOLDER]
    python benchmarks/scale.py --actors 1 2 4 [--shards 120] [--repeats 3]

What is left is what bertray and Ray cost for each split: plan, read, two hand-overs, write, commit,
receipt. All of it is the real job (`bertray.score.run`), but for the class that the actors hold.
Beside it three stages of Ray Data that do nothing, and the same job with shards of few rows, tell
which part of it is Ray's, and which the rows'.

The second command tells how far from linear more actors are: a classifier that takes a second for a
split and no CPU, as one does that waits for its GPU.
"""

import argparse
import itertools
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from bertray import cluster
from bertray.config import ScoreConfig, load_config
from bertray.schema import OK, Predictions, append_predictions
from bertray.score import pipeline
from bertray.score.classifier import Classifier, ClassifierSettings
from bertray.score.run import prepare, score
from bertray.score.summary import Progress

LABELS = ("bad", "good")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "review")
QUARTERS = 4
FEW_SPLITS, FEW_ROWS = 2_000, 100
SPLIT_S = 1.0  # of a GPU for a split of 32,768 rows, or less


class FakeClassifier(Classifier):
    """Gives every row the same probabilities; all around that is the real one."""

    def _load(self, settings: ClassifierSettings) -> None:
        """No model is needed."""

    def _append_predictions(self, block: pa.Table) -> pa.Table:
        values = np.tile(np.array([0.25, 0.75], np.float32), (block.num_rows, 1))
        predictions = Predictions(values, (OK,) * block.num_rows)
        passed = block.select(self._reading.passed(block.column_names))
        return append_predictions(passed, predictions, labels=LABELS).replace_schema_metadata(
            block.schema.metadata
        )


class SleepingClassifier(FakeClassifier):
    """Takes a fixed time for each split, and no CPU."""

    def _append_predictions(self, block: pa.Table) -> pa.Table:
        time.sleep(SPLIT_S)
        return super()._append_predictions(block)


def main() -> None:
    """Measure each step in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shards", type=int, help="10,000, or 120 with --actors")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a shard")
    parser.add_argument("--folder", help="where to put the files; default: a temporary folder")
    parser.add_argument("--actors", type=int, nargs="+", help="compare pools of these sizes")
    parser.add_argument("--repeats", type=int, default=3, help="of --actors")
    options = parser.parse_args()
    if options.actors:
        compare_pools(options)
    else:
        measure_splits(options)


def measure_splits(options: argparse.Namespace) -> None:
    """What each split costs."""
    num_shards = options.shards or 10_000
    pipeline.Classifier = FakeClassifier  # type: ignore[misc, assignment]
    cluster.connect()
    show_machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        size = write_shards(root / "in", num_shards, options.rows)
        config = make_config(root)
        print(f"{num_shards:,} shards of {options.rows:,} rows and {size:,} bytes\n")
        print("| step | found |\n|---|---|")
        measure(config, root, num_shards, num_shards * size)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        write_shards(root / "in", FEW_SPLITS, FEW_ROWS)
        rate = Rate()
        score(make_config(root), on_progress=lambda progress: rate.mark())
        show(f"dispatch and commit of {FEW_ROWS} rows each", f"{rate.per_second:.1f} splits/s")
    show("three stages of Ray Data that do nothing", f"{rate_of_ray():.1f} blocks/s")


def compare_pools(options: argparse.Namespace) -> None:
    """Splits a second by the number of actors, from a quarter of the splits to the last one."""
    num_shards = options.shards or 120
    pipeline.Classifier = SleepingClassifier  # type: ignore[misc, assignment]
    ray.init(num_cpus=max(options.actors) + 1, include_dashboard=False)  # they only sleep
    show_machine()
    rates: dict[int, list[float]] = {number: [] for number in options.actors}
    for _ in range(options.repeats):
        for number in options.actors:
            with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
                root = Path(scratch)
                write_shards(root / "in", num_shards, options.rows)
                rate = Rate()
                config = make_config(root, f"pool.max_actors={number}")
                score(config, on_progress=lambda progress, rate=rate: rate.mark())
                rates[number].append(rate.after(num_shards // 4))
    least = min(options.actors)
    one = statistics.median(rates[least]) / least
    print(f"{num_shards} shards of {options.rows:,} rows, {SPLIT_S:g} s each\n")
    print("| actors | splits/s | of linear | all repeats |\n|---|---|---|---|")
    for number, found in rates.items():
        middle = statistics.median(found)
        each = ", ".join(f"{rate:.2f}" for rate in found)
        print(f"| {number} | {middle:.2f} | {middle / number / one:.3f} | {each} |", flush=True)


def measure(config: ScoreConfig, root: Path, num_shards: int, num_bytes: int) -> None:
    """All steps."""
    with reading() as read:
        job = prepare(config)
    show("plan", f"{read.seconds:.1f} s, {read.num_bytes / num_shards:,.0f} bytes read a shard")
    assert len(job.standing.pending) == num_shards

    marks: list[tuple[float, int]] = []
    quarter = itertools.count(1)
    due = next(quarter)

    def look(progress: Progress) -> None:
        nonlocal due
        if progress.num_splits_done * QUARTERS >= due * num_shards or not marks:
            marks.append((time.perf_counter(), resident_bytes()))
            due = next(quarter) if len(marks) > 1 else due

    cpu_seconds = time.process_time()
    summary = score(config, on_progress=look)
    cpu_seconds = time.process_time() - cpu_seconds
    assert summary.num_rows_scored == job.standing.plan.num_rows
    seconds = marks[-1][0] - marks[0][0]
    show("dispatch and commit", f"{num_shards / seconds:.1f} splits/s")
    show("driver's share of that", f"{cpu_seconds / num_shards * 1e3:.1f} ms of CPU a split")
    sizes = ", ".join(f"{size / 2**20:,.0f}" for _, size in marks)
    show("driver's memory at 0, 25, 50, 75, 100%", f"{sizes} MiB")
    state = sum(
        path.stat().st_size
        for path in (root / "out").rglob("*")
        if path.is_file() and (path.parent.name == "_index" or path.name.startswith("_"))
    )
    show("state beside the outputs", f"{state / num_shards:.0f} bytes a split")

    manifest = (root / "out/_manifest.json").read_bytes()
    with reading() as read:
        again = score(config)
    assert not again.num_rows_scored
    assert (root / "out/_manifest.json").read_bytes() == manifest
    show("rerun of the finished job", f"{read.seconds:.1f} s, manifest the same")

    outputs = sorted((root / "out").glob("*.parquet"))
    for path in outputs[::100]:
        path.unlink()
    with reading() as read:
        job = prepare(config)
    missing = len(job.standing.pending)
    assert missing == len(outputs[::100])
    show(
        f"resume with {missing} splits missing",
        f"ready in {read.seconds:.1f} s, {read.num_bytes / num_bytes:.2%} of the input read",
    )
    assert score(config).num_rows_scored == sum(s.num_rows for s in job.standing.pending)
    assert (root / "out/_manifest.json").read_bytes() == manifest


class Rate:
    """Splits a second from the first one that ends to the last one."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """One more has ended."""
        self._marks.append(time.perf_counter())

    @property
    def per_second(self) -> float:
        return self.after(1)

    def after(self, first: int) -> float:
        """The same from a later split on."""
        return (len(self._marks) - first) / (self._marks[-1] - self._marks[first - 1])


def rate_of_ray() -> float:
    """Blocks a second of three actor stages like ours, which hand on what they are given."""
    context = DataContext.get_current().copy()
    context.memory_usage_poll_interval_s, context.enable_progress_bars = None, False
    with DataContext.current(context):
        blocks = ray.data.read_datasource(
            Numbers(), num_cpus=0.1, override_num_blocks=FEW_SPLITS, compute=hands(1)
        )
    for num_actors, num_cpus in ((2, 0.8), (1, 0.1)):
        blocks = blocks.map_batches(
            HandOn,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=num_cpus,
            compute=hands(num_actors),
        )
    rate = Rate()
    for _ in pipeline.blocks_of(blocks):
        rate.mark()
    return rate.per_second


def hands(num_actors: int) -> ActorPoolStrategy:
    return ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=8)


class Numbers(Datasource):
    """Blocks of one number."""

    def estimate_inmemory_data_size(self) -> int:
        return 8 * FEW_SPLITS

    def get_read_tasks(self, *_: object, **__: object) -> list[ReadTask]:
        about = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(lambda: [pa.table({"number": [0]})], about)] * FEW_SPLITS


class HandOn:
    """A stage that does nothing."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


class Read:
    """What a step took."""

    seconds = 0.0
    num_bytes = 0


@contextmanager
def reading() -> Iterator[Read]:
    """Measure seconds and the bytes that this process reads from files."""
    read, start, before = Read(), time.perf_counter(), bytes_read()
    yield read
    read.seconds, read.num_bytes = time.perf_counter() - start, bytes_read() - before


def bytes_read() -> int:
    """Bytes that this process asked its files for so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show_machine() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow")))


def show(step: str, found: str) -> None:
    print(f"| {step} | {found} |", flush=True)


def make_config(root: Path, *words: str) -> ScoreConfig:
    """A job whose model is small and never computes."""
    model = root / "model"
    model.mkdir()
    (model / "vocab.txt").write_text("\n".join(VOCABULARY))
    shape = BertConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    torch.manual_seed(0)
    BertForSequenceClassification(shape).save_pretrained(model)
    BertTokenizerFast(vocab=str(model / "vocab.txt")).save_pretrained(model)
    paths = {"model.path": model, "input.path": root / "in", "output.path": root / "out"}
    given = [f"{key}={value}" for key, value in paths.items()]
    return load_config(ScoreConfig, None, [*given, *words])


def write_shards(folder: Path, num_shards: int, num_rows: int) -> int:
    """Shards of equal content under names of their own; gives the bytes of one."""
    folder.mkdir()
    random = np.random.default_rng(0)
    ids = random.integers(10**9, size=num_rows)
    texts = [f"review {number % 97}" for number in ids]
    first = folder / "part-00000.parquet"
    pq.write_table(pa.table({"id": ids, "text": texts}), first)
    for number in range(1, num_shards):
        shutil.copyfile(first, folder / f"part-{number:05d}.parquet")
    return first.stat().st_size


if __name__ == "__main__":
    main()
