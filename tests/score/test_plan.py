import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.errors import DataError, SchemaError
from bertray.score.plan import Plan, Split, _runs, plan_splits

Write = Callable[..., Path]


def accept(schema: pa.Schema, where: str) -> None:
    if "text" not in schema.names:
        raise SchemaError(f"{where}: no column 'text'")


def texts(count: int) -> pa.Table:
    return pa.table({"text": [f"row {number}" for number in range(count)]})


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_runs_hold_each_row_group_once_in_order_within_the_limits(
    groups: list[tuple[int, int]], max_rows: int, max_bytes: int
) -> None:
    rows, sizes = [rows for rows, _ in groups], [size for _, size in groups]
    runs = _runs(rows, sizes, max_rows, max_bytes)
    assert [index for first, end in runs for index in range(first, end)] == list(range(len(rows)))
    for first, end in runs:
        if end - first > 1:
            assert sum(rows[first:end]) <= max_rows
            assert sum(sizes[first:end]) <= max_bytes


def test_a_shard_within_the_limit_keeps_its_name_and_a_larger_one_gets_numbers(
    write_shards: Write,
) -> None:
    root = write_shards({"small": texts(10), "day=1/large": texts(25)}, row_group_size=10)
    plan = plan_splits(str(root), check_schema=accept, max_split_rows=10)
    assert [(split.output, split.num_rows) for split in plan.splits] == [
        ("day=1/large-00000.parquet", 10),
        ("day=1/large-00001.parquet", 10),
        ("day=1/large-00002.parquet", 5),
        ("small.parquet", 10),
    ]
    assert plan.num_rows == 35
    assert not plan.bad_shards


def test_a_splits_id_follows_the_shards_content_not_its_place(
    write_shards: Write, tmp_path: Path
) -> None:
    root = write_shards({"a": texts(3), "b": texts(3)})

    def ids(where: Path) -> list[str]:
        plan = plan_splits(str(where), check_schema=accept, max_split_rows=10)
        return [split.id for split in plan.splits]

    before = ids(root)
    moved = root.rename(tmp_path / "moved")
    assert ids(moved) == before
    write_shards({"a": texts(4)}, folder="moved")
    after = ids(moved)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_split_survives_the_way_through_block_metadata(write_shards: Write) -> None:
    root = write_shards({"ä b%#": texts(3)})
    (split,) = plan_splits(str(root), check_schema=accept, max_split_rows=10).splits
    assert Split.from_json(split.to_json()) == split


def test_bad_shards_are_listed_with_their_reason_and_the_others_planned(
    write_shards: Write,
) -> None:
    root = write_shards({"good": texts(3), "wrong": pa.table({"body": ["x"]})})
    (root / "empty.parquet").write_bytes(b"")
    (root / "broken.parquet").write_bytes(b"PAR1 this is no footer")
    plan = plan_splits(str(root), check_schema=accept, max_split_rows=10)
    assert [split.shard for split in plan.splits] == ["good.parquet"]
    reasons = {bad.shard: bad.reason for bad in plan.bad_shards}
    assert sorted(reasons) == ["broken.parquet", "empty.parquet", "wrong.parquet"]
    assert "no column 'text'" in reasons["wrong.parquet"]
    assert all(reasons.values())


def test_a_shard_whose_name_is_not_utf8_is_listed_by_a_name_that_is(write_shards: Write) -> None:
    root = write_shards({"good": texts(3), "a": texts(3)})
    (root / "a.parquet").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9.parquet"))
    plan = plan_splits(str(root), check_schema=accept, max_split_rows=10)
    assert [split.shard for split in plan.splits] == ["good.parquet"]
    (bad,) = plan.bad_shards
    assert bad.shard.encode() == rb"caf\udce9.parquet"
    assert "not UTF-8" in bad.reason
    (root / "good.parquet").unlink()
    with pytest.raises(DataError, match=r"caf\\udce9\.parquet: its name is not UTF-8.*rename it"):
        plan_splits(str(root), check_schema=accept, max_split_rows=10)


def test_if_no_shard_has_the_column_it_is_the_users_error(write_shards: Write) -> None:
    root = write_shards({"a": pa.table({"body": ["x"]}), "b": pa.table({"body": ["x"]})})
    with pytest.raises(SchemaError, match="no column 'text'"):
        plan_splits(str(root), check_schema=accept, max_split_rows=10)


def test_if_no_shard_can_be_read_it_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of 1 shards can be read.*a\.parquet"):
        plan_splits(str(tmp_path), check_schema=accept, max_split_rows=10)


def test_a_folder_without_shards_is_named_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input\.path=.*no \*\.parquet files"):
        plan_splits(str(tmp_path), check_schema=accept, max_split_rows=10)


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text")
    with pytest.raises(DataError, match=r"but one other, such as rows\.csv"):
        plan_splits(str(tmp_path), check_schema=accept, max_split_rows=10)


def test_two_shards_that_would_share_an_output_are_refused(write_shards: Write) -> None:
    root = write_shards({"a": texts(20), "a-00000": texts(5)}, row_group_size=10)
    with pytest.raises(DataError, match=r"both be scored into a-00000\.parquet"):
        plan_splits(str(root), check_schema=accept, max_split_rows=10)


def test_splits_that_are_known_spare_the_footer_while_the_shard_is_the_same(
    write_shards: Write,
) -> None:
    root = write_shards({"a": texts(25), "b": texts(5)}, row_group_size=10)
    looked: list[str] = []

    def look(schema: pa.Schema, where: str) -> None:
        looked.append(Path(where).name)

    def plan(known: dict[str, list[Split]]) -> Plan:
        looked.clear()
        return plan_splits(str(root), check_schema=look, max_split_rows=10, known=known)

    first = plan({})
    known = {
        shard: [split for split in first.splits if split.shard == shard]
        for shard in ("a.parquet", "b.parquet")
    }
    assert plan(known) == first
    assert looked == []
    assert plan({"a.parquet": known["a.parquet"][:2]}) == first  # does not cover the shard
    assert sorted(looked) == ["a.parquet", "b.parquet"]
    write_shards({"b": texts(6)})
    assert plan(known).num_rows == 31
    assert looked == ["b.parquet"]


def test_a_footer_that_claims_more_rows_than_can_be_held_is_bad(
    write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertray.score.plan.MOST_ROWS_OF_A_GROUP", 5)
    root = write_shards({"a": texts(5), "b": texts(6)})
    plan = plan_splits(str(root), check_schema=accept, max_split_rows=10)
    assert [split.shard for split in plan.splits] == ["a.parquet"]
    assert "claims 6 rows in one row group" in plan.bad_shards[0].reason
