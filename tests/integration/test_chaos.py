"""Random kills of every kind of process while runs score, and a reader that never stops.

A few on local disk; `make chaos` does more, and S3.
"""

import contextlib
import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import own_cluster
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_cluster import OwnCluster
from scoring import driver

from bertray import storage
from bertray.errors import StorageError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

SHARDS, SPLITS_PER_SHARD, ROWS = 50, 4, 20
WORDS = "good bad film plot the a is was very not great awful story actor".split()
# By what Ray calls the processes.
ACTORS = {
    "reading actor": "ray::MapWorker(ReadSplitSource)",
    "classifying actor": "ray::MapWorker(MapBatches(Classifier))",
    "writing actor": "ray::MapWorker(MapBatches(ShardSink))",
}
TARGETS = ("driver", *ACTORS, "raylet")
LONGEST_WAIT_S = 8.0  # for the next kill; a run that is let alone takes some twenty
RUN_S = 240
POLL_S = 0.1
LOST = (1, 2, -6, -9)  # what a driver may end with that was killed, or its cluster


class Chaos:
    """Starts runs and kills what belongs to them.

    Args:
        seed: of the moments and of the targets' order.
    """

    def __init__(self, seed: int) -> None:
        self.killed: Counter[str] = Counter()
        self.survived = 0  # runs that ended by themselves in spite of kills
        self._random = random.Random(seed)
        self._targets: list[str] = []
        self._lost_more_than_actors = False
        self._stack = ExitStack()
        self._cluster: OwnCluster | None = None

    def __enter__(self) -> "Chaos":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def score(self, words: list[str], *, kills: int) -> int:
        """Run again until a run says that all is done; gives how many kills that took."""
        before = self.killed.total()
        while True:
            at_start = self.killed.total()
            code, said = self._run(words, kills - (at_start - before))
            if code == 0:
                self.survived += self.killed.total() > at_start
                return self.killed.total() - before
            assert code in LOST, said
            assert self._lost_more_than_actors, f"a run failed that lost actors at most: {said}"

    def _run(self, words: list[str], kills: int) -> tuple[int, str]:
        """One run with so many kills at most: its exit code and what it said."""
        self._lost_more_than_actors = False
        cluster = self._reach()
        run = driver(words, cluster.environment)
        while kills > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(self._random.uniform(0, LONGEST_WAIT_S))
                break
            kills -= self._kill(cluster, run)
        try:
            said, _ = run.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            run.kill()
            pytest.fail(f"a run hangs after {self.killed}: {run.communicate()[0]}")
        return run.returncode, said

    def _kill(self, cluster: OwnCluster, run: "subprocess.Popen[str]") -> bool:
        """SIGKILL to a process of the next kind; False if there is none now."""
        if not self._targets:
            self._targets = self._random.sample(TARGETS, len(TARGETS))
        target = self._targets.pop()
        if target == "driver":
            found = [psutil.Process(run.pid)]
        elif target == "raylet":
            found = cluster.raylets()
        else:
            found = cluster.workers(ACTORS[target])
        if not found:
            self._targets.insert(0, target)
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self._random.choice(found).kill()
        self.killed[target] += 1
        self._lost_more_than_actors |= target not in ACTORS
        return True

    def _reach(self) -> OwnCluster:
        """The cluster, or another one where it has lost its raylet."""
        if self._cluster is None or not self._cluster.raylets():
            self._stack.close()
            self._cluster = self._stack.enter_context(own_cluster.running())
        return self._cluster


class Reader(threading.Thread):
    """Reads an output again and again, as somebody else's job would."""

    def __init__(self, output: str, wanted: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._output, self._wanted = output, wanted
        self._over = threading.Event()

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look until told to stop; what is wrong is kept for the test."""
        while not self._over.wait(POLL_S):
            try:
                is_done = storage.exists(storage.join(self._output, "_SUCCESS"))
                found = contents(self._output)
            except StorageError:
                continue  # not there yet
            except Exception as error:
                self.wrong.append(repr(error))
                return
            self.seen.update(found.keys())
            self.wrong += [name for name in found if found[name] != self._wanted.get(name)]
            if is_done and found.keys() != self._wanted.keys():
                self.wrong.append("_SUCCESS too early")


def contents(output: str) -> dict[str, bytes | None]:
    """The bytes of each scored file that is listed."""
    _, files = storage.list_files(output, suffix=".parquet", key="output.path")
    return {file.path: storage.get_bytes(storage.join(output, file.path)) for file in files}


def survive(root: str, model: Path, *, kills: int, seed: int = 0) -> Chaos:
    """Write a lake, score it in peace, then under kills, again and again, and compare."""
    rows = write_lake(storage.join(root, "in"), random.Random(seed))

    def words(output: str) -> list[str]:
        return [
            *("score", f"model.path={model}", f"input.path={storage.join(root, 'in')}"),
            *(f"output.path={output}", f"input.max_split_rows={ROWS}"),
        ]

    clean = storage.join(root, "clean")
    with Chaos(seed) as chaos:
        chaos.score(words(clean), kills=0)
        wanted = contents(clean)
        manifest = storage.get_bytes(storage.join(clean, "_manifest.json"))
        assert rows_of(wanted) == rows
        lap = reads = 0
        while chaos.killed.total() < kills:
            output = storage.join(root, f"lap-{lap}")
            with Reader(output, wanted) as reader:
                chaos.score(words(output), kills=kills - chaos.killed.total())
            assert contents(output) == wanted, chaos.killed
            assert storage.get_bytes(storage.join(output, "_manifest.json")) == manifest
            assert not reader.wrong, (reader.wrong[:5], chaos.killed)
            assert reader.seen
            reads += reader.seen.total()
            lap += 1
    sys.stdout.write(
        f"{lap} outputs, {chaos.survived} runs that got over kills, "
        f"{reads:,} files read meanwhile; {chaos.killed}\n"
    )
    return chaos


def write_lake(folder: str, random: random.Random) -> list[tuple[int, str]]:
    """Shards of some splits each; gives all rows, in order."""
    rows = []
    for shard in range(SHARDS):
        start = len(rows)
        for number in range(start, start + SPLITS_PER_SHARD * ROWS):
            rows.append((number, " ".join(random.choices(WORDS, k=random.randint(1, 12)))))
        ids, texts = zip(*rows[start:], strict=True)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ids, "text": texts}), sink, row_group_size=ROWS)
        data = sink.getvalue().to_pybytes()
        storage.put_bytes(storage.join(folder, f"part-{shard:03d}.parquet"), data)
    return rows


def rows_of(files: dict[str, bytes | None]) -> list[tuple[int, str]]:
    """What came of the rows that went in, in order."""
    tables = [pq.read_table(pa.BufferReader(data)) for _, data in sorted(files.items())]
    table = pa.concat_tables(tables)
    assert set(table["prediction_status"].to_pylist()) == {"ok"}
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_random_kills_lose_no_row_and_double_none(
    tmp_path: Path, classifier_folder: Path, pytestconfig: pytest.Config
) -> None:
    kills = pytestconfig.getoption("kills")
    chaos = survive(str(tmp_path), classifier_folder, kills=kills)
    assert chaos.killed.total() >= kills
    assert chaos.killed.keys() == set(TARGETS)


def test_random_kills_lose_no_row_on_s3_either(
    s3: str, classifier_folder: Path, pytestconfig: pytest.Config
) -> None:
    kills = pytestconfig.getoption("kills_s3")
    if not kills:
        pytest.skip("takes minutes; `make chaos` does it")
    chaos = survive(s3, classifier_folder, kills=kills, seed=1)
    assert chaos.killed.total() >= kills
