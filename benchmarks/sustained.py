"""`bertray score` through Ray against its engine alone, over many splits; and whether memory grows.

    python benchmarks/sustained.py [--rows 50000] [--splits 200] [--repeats 3] [--model minilm]

Short texts, each once, and the models of `end_to_end.py`. The engine alone takes the same splits in
this process, on all cores or one GPU, its model loaded before; on a GPU two threads call it, as in
an actor. Seconds of the other side are wall clock from the plan to the last file, the actors' start
included; and once more without it, from when a tenth of the files is written. Memory is what a
process has for itself alone (anonymous pages), by quarter of the run.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from end_to_end import MODELS, at_least, machine, make_model, ours, read_texts, write_shards

from bertray import cluster
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings
from bertray.score.summary import Progress

SAMPLE_S = 0.5
QUARTERS = 4


def main() -> None:
    """Measure both sides in turn, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    resources = cluster.connect()
    num_cpus, device = int(resources.num_cpus), "cuda" if resources.num_gpus else "cpu"
    torch.set_num_threads(num_cpus)
    print(f"{machine(resources)}; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "onnxruntime")))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = make_model(root / "model", shape=options.model)
        texts = at_least(read_texts()[0], options.rows)
        source = write_shards(root / "in", texts, num_shards=options.splits)
        bundle = open_bundle(str(model))
        engine = Engine(bundle, resolve_settings(bundle, device=device), num_threads=num_cpus)
        engine.predict(texts[: len(texts) // options.splits])  # compiles its kernels
        rates = defaultdict(list)
        for _ in range(options.repeats):
            start = time.perf_counter()
            with ThreadPoolExecutor(2 if device == "cuda" else 1) as pool:
                shards = (pq.read_table(shard)["text"] for shard in sorted(source.iterdir()))
                done = sum(len(found) for found in pool.map(engine.predict, shards))
            assert done == len(texts)
            rates["engine alone"].append(len(texts) / (time.perf_counter() - start))
            start = time.perf_counter()
            with Memory() as memory:
                marks = Marks()
                summary = ours(model, source, root / "out", on_progress=marks)
            rates["through Ray"].append(len(texts) / (time.perf_counter() - start))
            rates["through Ray, after a tenth"].append(marks.rate())
            assert pq.read_table(root / "out").num_rows == len(texts)
            shutil.rmtree(root / "out")
        print(f"\n{len(texts):,} rows in {options.splits} splits\n")
        print("| side | rows/s | ratio | all repeats |\n|---|---|---|---|")
        alone = statistics.median(rates["engine alone"])
        for side, found in rates.items():
            rate, each = statistics.median(found), ", ".join(f"{one:.1f}" for one in found)
            print(f"| {side} | {rate:.1f} | {rate / alone:.2f} | {each} |")
        print()
        for name, said in summary.stages().items():
            print(f"{name}: {said}")
        print(f"seconds: {summary.seconds:.1f}, of which the actors computed", end=" ")
        print(f"{summary.stats['compute_s']:.1f}")
        memory.show()


class Marks(list[tuple[float, int]]):
    """When how many rows were done."""

    def __call__(self, progress: Progress) -> None:
        self.append((time.perf_counter(), progress.num_rows_done))

    def rate(self) -> float:
        """Rows/s once the actors have started."""
        (begun, first), (ended, last) = self[len(self) // 10], self[-1]
        return (last - first) / (ended - begun)


class Memory:
    """Samples the memory of the driver and of Ray's workers while it is entered."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            now = time.monotonic()
            self._samples["driver"].append((now, private_bytes("self")))
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    name = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
                    if name.startswith("ray::MapWorker"):
                        self._samples[f"actor {process.name}"].append(
                            (now, private_bytes(process.name))
                        )
                except OSError:
                    continue  # it has ended

    def show(self) -> None:
        """A line a process: the median of each quarter, and the last over the second."""
        start, end = self._samples["driver"][0][0], self._samples["driver"][-1][0]
        print("\n| process | MiB, by quarter of the run | last / second |\n|---|---|---|")
        for process, samples in self._samples.items():
            quarters: list[list[int]] = [[] for _ in range(QUARTERS)]
            for at, size in samples:
                quarters[min(int((at - start) / (end - start) * QUARTERS), 3)].append(size)
            if not all(quarters):
                continue  # it was not there all the time
            sizes = [statistics.median(quarter) / 2**20 for quarter in quarters]
            each = ", ".join(f"{size:.0f}" for size in sizes)
            print(f"| {process} | {each} | {sizes[3] / sizes[1]:.3f} |")


def private_bytes(process: str) -> int:
    """Anonymous resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


if __name__ == "__main__":
    main()
