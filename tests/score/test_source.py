from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.errors import DataError, SchemaError
from bertray.score.plan import Plan, plan_splits
from bertray.score.source import Reading, SplitSource, fault_of, read_split, split_of

Write = Callable[..., Path]
ALL = Reading("text", None, None, "")


def planned(root: Path, *, max_split_rows: int = 10) -> Plan:
    return plan_splits(
        str(root), check_schema=lambda schema, where: None, max_split_rows=max_split_rows
    )


def shard(count: int, *, first: int = 0) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table({"id": numbers, "text": [f"row {n}" for n in numbers], "extra": numbers})


def test_each_split_is_read_as_one_block_that_names_it(write_shards: Write) -> None:
    root = write_shards({"a": shard(25), "b": shard(3)}, row_group_size=10)
    plan = planned(root)
    tasks = SplitSource(plan.splits, ALL).get_read_tasks(parallelism=1)
    blocks = [block for task in tasks for block in task()]
    assert [split_of(block) for block in blocks] == list(plan.splits)
    assert [block.num_rows for block in blocks] == [10, 10, 5, 3]
    assert pa.concat_tables(blocks[:3])["id"].to_pylist() == list(range(25))
    assert all(fault_of(block) is None for block in blocks)


def test_only_the_columns_needed_are_read(write_shards: Write) -> None:
    (split,) = planned(write_shards({"a": shard(2)})).splits
    assert read_split(split, Reading("text", None, ("id",), "")).column_names == ["id", "text"]
    assert read_split(split, ALL).column_names == ["id", "text", "extra"]


def test_a_shards_own_types_and_metadata_are_kept(write_shards: Write) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a"]).dictionary_encode(),
            "when": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
            "tags": pa.array([["x"], [], None], pa.list_(pa.string())),
            "nested": pa.array([{"a": 1}, None, {"a": 3}]),
        }
    ).replace_schema_metadata({"owner": "them"})
    (split,) = planned(write_shards({"a": table})).splits
    read = read_split(split, ALL)
    assert read.schema.metadata[b"owner"] == b"them"
    assert read.cast(table.schema).equals(table)
    assert read.schema.types == table.schema.types


END_OF_TIME = 253_402_300_799_999_999  # 9999-12-31, in microseconds


@pytest.mark.parametrize(
    ("unit", "values"),
    [("us", [END_OF_TIME, -62_135_596_800_000_000, 0, None]), ("ns", [1_999, -1_999, 0, None])],
)
def test_timestamps_of_the_old_type_are_read_as_they_are_in_any_year(
    write_shards: Write, unit: str, values: list[int | None]
) -> None:
    times = pa.array(values, pa.timestamp(unit))
    table = pa.table(
        {
            "text": ["a"] * 4,
            "when": times,
            "all": pa.array([values, [], None, []], pa.list_(pa.timestamp(unit))),
        }
    )
    root = write_shards({"a": table}, use_deprecated_int96_timestamps=True, store_schema=False)
    assert pq.read_metadata(root / "a.parquet").schema.column(1).physical_type == "INT96"
    (split,) = planned(root).splits
    assert read_split(split, ALL).cast(table.schema).equals(table)


def test_nested_dictionaries_of_several_row_groups_are_read(write_shards: Write) -> None:
    names = pa.array(["x", "y", "x", "z"]).dictionary_encode()
    table = pa.table(
        {
            "text": ["a", "b", "c", "d"],
            "struct": pa.StructArray.from_arrays([names], ["name"]),
            "list": pa.ListArray.from_arrays(pa.array([0, 1, 1, 3, 4], pa.int32()), names),
        }
    )
    (split,) = planned(write_shards({"a": table}, row_group_size=2)).splits
    read = read_split(split, ALL)
    assert read.schema.types == table.schema.types
    assert read.cast(table.schema).equals(table)


def test_a_shard_that_cannot_be_read_becomes_a_block_that_says_why(write_shards: Write) -> None:
    root = write_shards({"a": shard(1000), "b": shard(2)}, compression="none")
    plan = planned(root, max_split_rows=1000)
    damaged = bytearray((root / "a.parquet").read_bytes())
    damaged[4:400] = bytes(396)  # the first pages
    (root / "a.parquet").write_bytes(damaged)
    tasks = SplitSource(plan.splits, ALL).get_read_tasks(parallelism=1)
    (bad,), (good,) = (list(task()) for task in tasks)
    assert split_of(bad).shard == "a.parquet"
    assert fault_of(bad)
    assert good.num_rows == 2


def test_a_flipped_bit_under_a_page_checksum_is_found(write_shards: Write) -> None:
    root = write_shards({"a": shard(500)}, compression="none", write_page_checksum=True)
    (split,) = planned(root, max_split_rows=500).splits
    content = bytearray((root / "a.parquet").read_bytes())
    place = content.rindex(b"row 250")
    content[place] ^= 1
    (root / "a.parquet").write_bytes(content)
    (block,) = SplitSource([split], ALL).get_read_tasks(1)[0]()
    assert "CRC" in (fault_of(block) or "")


def test_reading_checks_every_column_it_is_told_of() -> None:
    schema = pa.schema([("text", pa.string()), ("n", pa.int64())])
    Reading("text", None, ("n",), "").check(schema, "s")
    with pytest.raises(SchemaError, match=r"set input\.text"):
        Reading("n", None, None, "").check(schema, "s")
    with pytest.raises(SchemaError, match=r"set input\.text_pair"):
        Reading("text", "gone", None, "").check(schema, "s")
    with pytest.raises(SchemaError, match=r"set input\.columns"):
        Reading("text", None, ("gone",), "").check(schema, "s")
    with pytest.raises(SchemaError, match=r"set data\.text"):
        Reading("gone", None, None, "", section="data").check(schema, "s")


def test_rows_that_take_more_memory_than_they_may_are_refused_whatever_the_footer_says(
    write_shards: Write,
) -> None:
    indices = pa.array([0] * 20_000, pa.int32())
    same = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 500_000]))
    root = write_shards({"bomb": pa.table({"text": same})}, store_schema=False)
    assert (root / "bomb.parquet").stat().st_size < 100_000  # of ten gigabytes
    (split,) = planned(root, max_split_rows=10**6).splits
    limited = Reading("text", None, None, "", max_bytes=16 << 20)
    with pytest.raises(DataError, match=r"bomb\.parquet.*input\.max_split_bytes=16777216"):
        read_split(split, limited)


def test_rows_within_their_memory_are_read_as_without_a_limit(write_shards: Write) -> None:
    (split,) = planned(write_shards({"a": shard(1000)}), max_split_rows=1000).splits
    limited = Reading("text", None, None, "", max_bytes=1 << 20)
    assert read_split(split, limited).equals(read_split(split, ALL), check_metadata=True)
    tight = Reading("text", None, None, "", max_bytes=10_000)
    with pytest.raises(DataError, match="or raise the limit"):
        read_split(split, tight)


def test_a_shard_that_changed_or_vanished_since_it_was_planned_is_not_read_as_the_old_one(
    write_shards: Write,
) -> None:
    root = write_shards({"a": shard(3), "b": shard(3)})
    one, two = planned(root).splits
    write_shards({"a": shard(3, first=7)})
    with pytest.raises(DataError, match=r"a\.parquet changed while it was scored: run again"):
        read_split(one, ALL)
    (root / "b.parquet").unlink()
    (block,) = SplitSource([two], ALL).get_read_tasks(1)[0]()
    assert "b.parquet" in (fault_of(block) or "")
