import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import Input
from bertray.schema import OK, Predictions, append_predictions
from bertray.score.commits import Digests
from bertray.score.index import Index
from bertray.score.sink import ShardSink
from bertray.score.source import Reading, read_split
from bertray.score.standing import Standing, take_stock

Write = Callable[..., Path]
DIGESTS = Digests("m1", "s1")
READING = Reading("text", None, None, "")


def texts(count: int) -> pa.Table:
    return pa.table({"text": [f"row {number}" for number in range(count)]})


def look(root: Path, out: Path, *, digests: Digests = DIGESTS, rows: int = 10) -> Standing:
    source = Input(path=str(root), max_split_rows=rows)  # type: ignore[call-arg]
    return take_stock(source, str(out), digests, check_schema=READING.check)


def do(standing: Standing, out: Path) -> None:
    """Score what is pending with a model that always says yes."""
    sink = ShardSink(str(out), DIGESTS, "cpu", "", True, None)
    for split in standing.pending:
        block = read_split(split, READING)
        values = np.tile(np.array([0.25, 0.75], np.float32), (block.num_rows, 1))
        predictions = Predictions(values, (OK,) * block.num_rows)
        scored = append_predictions(block, predictions, labels=("no", "yes"))
        standing.index.add(split, sink.write(scored, split))
        standing.index.save_some()


def finished(root: Path, out: Path) -> None:
    standing = look(root, out)
    do(standing, out)
    standing.index.close()


@pytest.fixture
def footers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the Parquet files whose footers are read."""
    read: list[str] = []
    real = pq.read_metadata

    def read_metadata(file: pa.NativeFile) -> pq.FileMetaData:
        read.append("footer")
        return real(file)

    monkeypatch.setattr("pyarrow.parquet.read_metadata", read_metadata)
    return read


def test_an_index_spares_every_footer_of_what_is_done(
    tmp_path: Path, write_shards: Write, footers: list[str]
) -> None:
    root = write_shards({f"part-{n}": texts(3) for n in range(8)})
    out = tmp_path / "out"
    finished(root, out)
    (out / "part-3.parquet").unlink()
    footers.clear()
    standing = look(root, out)
    assert [split.shard for split in standing.pending] == ["part-3.parquet"]
    assert len(standing.done) == 7
    assert len(footers) == 1  # of the one shard that is to be scored
    assert sum(receipt.label_counts["yes"] for receipt in standing.done) == 21


@pytest.mark.parametrize("harm", ["lost", "damaged", "another model's"])
def test_without_its_index_a_folder_says_the_same_by_its_footers(
    tmp_path: Path, write_shards: Write, footers: list[str], harm: str
) -> None:
    root = write_shards({f"part-{n}": texts(3) for n in range(4)})
    out = tmp_path / "out"
    finished(root, out)
    before = look(root, out)
    (segment,) = (out / "_index").iterdir()
    if harm == "lost":
        segment.unlink()
    elif harm == "damaged":
        segment.write_bytes(segment.read_bytes()[:-20])
    else:
        table = pq.read_table(segment)
        metadata = {**table.schema.metadata, b"bertray.model_digest": b"other"}
        pq.write_table(table.replace_schema_metadata(metadata), segment)
    footers.clear()
    after = look(root, out)
    assert len(footers) == 8
    assert (after.plan, after.done, after.pending) == (before.plan, before.done, before.pending)


def test_an_index_never_vouches_for_a_file_that_is_another_one_now(
    tmp_path: Path, write_shards: Write
) -> None:
    root = write_shards({"a": texts(3), "b": texts(3)})
    out = tmp_path / "out"
    finished(root, out)
    pq.write_table(texts(3), out / "a.parquet")
    standing = look(root, out)
    assert [split.shard for split in standing.pending] == ["a.parquet"]
    assert standing.stale == ("a.parquet",)


def test_a_run_that_ended_early_leaves_an_index_of_what_it_did(
    tmp_path: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch, footers: list[str]
) -> None:
    monkeypatch.setattr("bertray.score.index.SEGMENT_ENTRIES", 2)
    root = write_shards({f"part-{n}": texts(3) for n in range(5)})
    out = tmp_path / "out"
    do(look(root, out), out)
    assert len(list((out / "_index").iterdir())) == 2
    footers.clear()
    standing = look(root, out)
    assert not standing.pending
    assert len(footers) == 2  # of the fifth shard and its output
    standing.index.close()
    assert len(list((out / "_index").iterdir())) == 1


def test_looking_writes_nothing_however_many_footers_it_read(
    tmp_path: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = write_shards({f"part-{n}": texts(3) for n in range(5)}), tmp_path / "out"
    finished(root, out)
    shutil.rmtree(out / "_index")
    monkeypatch.setattr("bertray.score.index.SEGMENT_ENTRIES", 2)
    assert not look(root, out).pending
    assert not (out / "_index").exists()


def test_a_changed_shard_is_scored_again_and_its_output_is_called_stale(
    tmp_path: Path, write_shards: Write
) -> None:
    root, out = write_shards({"a": texts(3), "b": texts(3)}), tmp_path / "out"
    finished(root, out)
    write_shards({"a": texts(4)})
    standing = look(root, out)
    assert [split.num_rows for split in standing.pending] == [4]
    assert standing.stale == ("a.parquet",)


@pytest.mark.parametrize("indexed", [True, False])
def test_the_old_output_of_a_shard_that_is_now_cut_is_outdated_and_no_other(
    tmp_path: Path, write_shards: Write, indexed: bool
) -> None:
    root = write_shards({"a": texts(4)}, row_group_size=2)
    out = tmp_path / "out"
    do(standing := look(root, out), out)
    if indexed:
        standing.index.close()
    pq.write_table(pa.table({"text": ["theirs"]}), out / "theirs.parquet")
    write_shards({"a": texts(14)}, row_group_size=7)
    cut = look(root, out)
    assert [split.output for split in cut.pending] == ["a-00000.parquet", "a-00001.parquet"]
    assert (cut.outdated, cut.vanished) == (("a.parquet",), ())
    do(cut, out)
    write_shards({"a": texts(5)})
    whole = look(root, out)
    assert [split.output for split in whole.pending] == ["a.parquet"]
    assert whole.outdated == ("a-00000.parquet", "a-00001.parquet")


@pytest.mark.parametrize("indexed", [True, False])
def test_the_output_of_a_shard_that_is_gone_has_vanished_but_not_that_of_one_that_broke(
    tmp_path: Path, write_shards: Write, indexed: bool
) -> None:
    root, out = write_shards({"a": texts(3), "b": texts(3), "c": texts(3)}), tmp_path / "out"
    do(standing := look(root, out), out)
    if indexed:
        standing.index.close()
    (root / "a.parquet").unlink()
    (root / "b.parquet").write_bytes(b"broken")
    standing = look(root, out)
    assert standing.vanished == ("a.parquet",)
    assert (standing.outdated, standing.pending) == ((), ())
    assert [bad.shard for bad in standing.plan.bad_shards] == ["b.parquet"]


def test_ten_thousand_splits_cost_little_beside_their_outputs(tmp_path: Path) -> None:
    from bertray.score.commits import Receipt
    from bertray.score.plan import Split

    index = Index(str(tmp_path), DIGESTS)
    random = np.random.default_rng(0)
    for number in range(10_000):
        name = f"day=2026-11-{number % 30:02d}/part-{number:05d}.parquet"
        stamp, size, good = random.integers(10**18), random.integers(10**7), random.integers(9_999)
        split = Split("in", name, f"{stamp}-{size}", int(size), 0, 1, 1, 10_000, int(size), name)
        counts = {"good": int(good), "bad": 10_000 - int(good)}
        version = f"{random.integers(10**18)}-{size}"
        index.add(split, Receipt(split.id, name, version, 10_000, {"ok": 10_000}, counts, {}))
    index.close()
    (segment,) = (tmp_path / "_index").iterdir()
    assert segment.stat().st_size < 10_000 * 80
