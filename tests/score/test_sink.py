from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.errors import StorageError
from bertray.schema import ABSTAINED, OK, Predictions, append_predictions
from bertray.score.commits import Digests, Receipt, committed, list_outputs, read_footer
from bertray.score.plan import Split, plan_splits
from bertray.score.sink import ShardSink
from bertray.score.source import Reading, add_stats, fault_block, read_split

Write = Callable[..., Path]


def sink_into(folder: Path, *, model: str = "m1", settings: str = "s1") -> ShardSink:
    return ShardSink(str(folder), Digests(model, settings), "cpu", "", True, None)


def receipts(
    splits: list[Split], folder: Path, *, model: str = "m1", settings: str = "s1"
) -> list[Receipt]:
    outputs = list_outputs(str(folder))
    return list(committed(splits, str(folder), outputs, Digests(model, settings)))


def scored(root: Path) -> tuple[Split, pa.Table]:
    (split,) = plan_splits(str(root), check_schema=lambda s, w: None, max_split_rows=10).splits
    block = read_split(split, Reading("text", None, None, ""))
    values = np.tile(np.array([0.25, 0.75], np.float32), (block.num_rows, 1))
    predictions = Predictions(values, (OK,) * block.num_rows)
    return split, append_predictions(block, predictions, labels=("no", "yes"))


@pytest.fixture
def block(write_shards: Write) -> tuple[Split, pa.Table]:
    table = pa.table({"text": ["a", "b", "c"], "id": [1, 2, 3]})
    return scored(write_shards({"a": table.replace_schema_metadata({"owner": "them"})}))


def test_a_committed_file_holds_the_rows_and_its_footer_is_the_commit(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, table = block
    out = tmp_path / "out"
    receipt = Receipt.from_table(sink_into(out)(table))
    assert (receipt.num_rows, receipt.label_counts) == (3, {"yes": 3})
    written = pq.read_table(out / "a.parquet")
    assert written.column_names[:2] == ["text", "id"]
    assert written["predicted_label"].to_pylist() == ["yes"] * 3
    assert written.schema.metadata[b"owner"] == b"them"
    assert not [key for key in written.schema.metadata if key.startswith(b"bertray.block")]

    (found,) = receipts([split], out)
    assert (found.split_id, found.label_counts) == (split.id, {"yes": 3})
    assert found.version == receipt.version == list_outputs(str(out))["a.parquet"].version
    assert not receipts([split], out, model="m2")
    assert not receipts([split], out, settings="s2")


def test_a_row_of_several_labels_counts_for_each_and_one_of_none_for_none(
    tmp_path: Path, write_shards: Write
) -> None:
    root = write_shards({"a": pa.table({"text": ["a", "b", None]})})
    (split,) = plan_splits(str(root), check_schema=lambda s, w: None, max_split_rows=10).splits
    values = np.array([[0.6, 0.9], [0.1, 0.2], [np.nan, np.nan]], np.float32)
    table = append_predictions(
        read_split(split, Reading("text", None, None, "")),
        Predictions(values, (OK, OK, "null text")),
        labels=("no", "yes"),
        task="multi_label",
    )
    sink = replace(sink_into(tmp_path / "out"), task="multi_label")
    receipt = Receipt.from_table(sink(table))
    assert receipt.label_counts == {"no": 1, "yes": 1}
    assert receipt.status_counts == {OK: 2, "null text": 1}
    (found,) = receipts([split], tmp_path / "out")
    assert found.label_counts == receipt.label_counts


def test_a_row_that_abstains_counts_for_no_label_and_is_written_where_bad_rows_are_not(
    tmp_path: Path, write_shards: Write
) -> None:
    root = write_shards({"a": pa.table({"text": ["a", "b"]})})
    (split,) = plan_splits(str(root), check_schema=lambda s, w: None, max_split_rows=10).splits
    table = append_predictions(
        read_split(split, Reading("text", None, None, "")),
        Predictions(np.array([[0.4, 0.6], [0.1, 0.9]], np.float32), (OK, OK)),
        labels=("no", "yes"),
        abstain_below=0.8,
    )
    sink = replace(sink_into(tmp_path / "out"), keep_bad_rows=False)
    receipt = Receipt.from_table(sink(table))
    assert receipt.fault is None
    assert receipt.label_counts == {"yes": 1}
    assert receipt.status_counts == {ABSTAINED: 1, OK: 1}


def test_equal_rows_give_equal_bytes(tmp_path: Path, block: tuple[Split, pa.Table]) -> None:
    _, table = block
    for name in ("one", "two"):
        sink_into(tmp_path / name)(table)
    one, two = ((tmp_path / name / "a.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_late_writer_changes_nothing(tmp_path: Path, block: tuple[Split, pa.Table]) -> None:
    _, table = block
    sink = sink_into(tmp_path)
    sink(table)
    before = (tmp_path / "a.parquet").stat()
    sink(table)
    after = (tmp_path / "a.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_the_output_of_a_changed_shard_is_replaced(tmp_path: Path, write_shards: Write) -> None:
    out = tmp_path / "out"
    _, old = scored(write_shards({"a": pa.table({"text": ["old"]})}))
    sink_into(out)(old)
    split, new = scored(write_shards({"a": pa.table({"text": ["new", "newer"]})}))
    assert not receipts([split], out)
    sink_into(out)(new)
    assert pq.read_table(out / "a.parquet")["text"].to_pylist() == ["new", "newer"]
    assert [path.name for path in out.iterdir()] == ["a.parquet"]


def test_a_half_written_file_is_no_commit_and_is_replaced(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, table = block
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.parquet").write_bytes(b"PAR1 half")
    assert read_footer(str(out / "a.parquet")) is None
    assert not receipts([split], out)
    sink_into(out)(table)
    assert pq.read_table(out / "a.parquet").num_rows == 3


def test_a_block_that_lost_rows_is_never_written(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    _, table = block
    receipt = Receipt.from_table(sink_into(tmp_path / "out")(table.slice(1)))
    assert receipt.fault is not None
    assert "2 rows arrived, the footer says 3" in receipt.fault
    assert not (tmp_path / "out").exists()


def test_a_shard_without_rows_gets_its_twin_and_one_that_changed_meanwhile_a_fault(
    tmp_path: Path, write_shards: Write
) -> None:
    nothing = pa.table({"text": pa.array([], pa.string()), "id": pa.array([], pa.int64())})
    root = write_shards({"empty": nothing, "later": nothing})
    plan = plan_splits(str(root), check_schema=lambda s, w: None, max_split_rows=10)
    write_shards({"later": pa.table({"text": ["now"], "id": [1]})})
    reading = Reading("text", None, None, "")
    sink = sink_into(tmp_path / "out")
    empty, later = sink.write_empty(plan.splits, reading=reading, labels=("no", "yes"))
    assert (empty.num_rows, empty.fault) == (0, None)
    written = pq.read_schema(tmp_path / "out/empty.parquet")
    assert written.names[:3] == ["text", "id", "predicted_label"]
    assert later.fault is not None
    assert "later.parquet changed while it was scored" in later.fault
    assert not (tmp_path / "out/later.parquet").exists()


def test_a_fault_becomes_a_receipt_and_no_file(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, _ = block
    receipt = sink_into(tmp_path / "out")(fault_block(split, "bad page"))
    assert Receipt.from_table(receipt).fault == "bad page"
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_model_never_passes_for_ours(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, table = block
    sink_into(tmp_path, model="old")(table)
    sink_into(tmp_path, model="new")(table)
    assert receipts([split], tmp_path, model="new")


def test_a_late_writer_of_an_older_shard_never_writes_over_the_newer_output(
    tmp_path: Path, write_shards: Write
) -> None:
    out = tmp_path / "out"
    _, old = scored(write_shards({"a": pa.table({"text": ["old"]})}))
    split, new = scored(write_shards({"a": pa.table({"text": ["new", "newer"]})}))
    sink_into(out)(new)
    receipt = Receipt.from_table(sink_into(out)(old))
    assert receipt.fault is not None
    assert "changed while it was scored" in receipt.fault
    assert receipts([split], out)


def test_rows_that_the_model_cannot_classify_are_not_written_when_they_are_to_fail_the_run(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, table = block
    bad = pa.array(["ok", "a crash", "null text"])
    table = table.set_column(
        table.column_names.index("prediction_status"), "prediction_status", bad
    )
    sink = sink_into(tmp_path / "out")
    receipt = replace(sink, keep_bad_rows=False).write(table, split)
    assert receipt.fault == "rows without a prediction: a crash (1 rows)"
    assert receipt.bad_rows == {"a crash": 1}
    assert not (tmp_path / "out").exists()
    assert sink.write(table, split).fault is None


def test_a_place_that_cannot_be_written_stops_the_run_and_says_why(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    split, table = block
    (tmp_path / "out").write_bytes(b"a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot be written.*run again"):
        sink_into(tmp_path / "out").write(table, split)


def test_the_footer_says_if_memory_ran_out_since_the_last_bits_may_then_differ(
    tmp_path: Path, block: tuple[Split, pa.Table]
) -> None:
    _, table = block
    sink_into(tmp_path / "one")(add_stats(table, {"num_halvings": 0}))
    sink_into(tmp_path / "two")(add_stats(table, {"num_halvings": 2}))
    name = b"bertray.num_halvings"
    one, two = (read_footer(str(tmp_path / f"{n}/a.parquet")) or {} for n in ("one", "two"))
    assert name not in one
    assert two[name] == b"2"


def test_numbers_are_not_counted_as_labels(tmp_path: Path, write_shards: Write) -> None:
    root = write_shards({"a": pa.table({"text": ["a", None]})})
    (split,) = plan_splits(str(root), check_schema=lambda s, w: None, max_split_rows=10).splits
    table = append_predictions(
        read_split(split, Reading("text", None, None, "")),
        Predictions(np.array([[0.5], [np.nan]], np.float32), (OK, "null text")),
        labels=("stars",),
        task="regression",
    )
    sink = replace(sink_into(tmp_path / "out"), task="regression")
    receipt = Receipt.from_table(sink(table))
    assert (receipt.label_counts, receipt.status_counts) == ({}, {OK: 1, "null text": 1})
    assert [found.label_counts for found in receipts([split], tmp_path / "out")] == [{}]
