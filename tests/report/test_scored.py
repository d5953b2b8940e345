"""A sample of scored shards, whatever Arrow types each of them has."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.errors import DataError
from bertray.report.known import name_labels
from bertray.report.scored import Scored, sample_rows

LISTS = [["a"], None, ["b", "a"]]


def folder_of(root: Path, shards: dict[str, pa.Table]) -> Scored:
    files = []
    for name, table in shards.items():
        pq.write_table(table, root / f"{name}.parquet")
        files.append({"path": f"{name}.parquet", "rows": table.num_rows})
    return Scored(
        path=str(root),
        contract=cast(Any, SimpleNamespace()),
        manifest={"files": files, "rows": sum(file["rows"] for file in files)},
        num_rows_folder=0,
        run=None,
        complete=True,
        task="multi_label",
        status_counts=Counter(),
        label_counts=Counter(),
    )


def test_lists_of_any_arrow_type_are_put_together(tmp_path: Path) -> None:
    kinds = {
        "list": pa.list_(pa.string()),
        "large": pa.large_list(pa.large_string()),
        "view": pa.list_view(pa.string()),
        "large_view": pa.large_list_view(pa.string()),
        "fixed": pa.list_(pa.string(), 1),
        "encoded": pa.list_(pa.dictionary(pa.int32(), pa.string())),
    }
    shards = {
        name: pa.table({"tags": pa.array([["a"]] * 3 if name == "fixed" else LISTS, kind)})
        for name, kind in kinds.items()
    }
    scored = folder_of(tmp_path, shards)
    rows = sample_rows(scored, columns=["tags", "gone"], num_rows=100, seed=0)
    assert rows.num_rows == 3 * len(kinds)
    assert rows.column_names == ["tags"]
    assert rows["tags"].to_pylist().count(["b", "a"]) == len(kinds) - 1
    named = name_labels(rows, scored, "tags", labels=("b", "a"))
    assert named["tags"].to_pylist() == rows["tags"].to_pylist()


def test_label_ids_in_lists_are_named(tmp_path: Path) -> None:
    scored = folder_of(tmp_path, {"a": pa.table({"tags": [[0, 1], None, []]})})
    rows = sample_rows(scored, columns=["tags"], num_rows=100, seed=0)
    named = name_labels(rows, scored, "tags", labels=("b", "a"))
    assert named["tags"].to_pylist() == [["b", "a"], None, []]


def test_a_null_among_the_labels_of_a_row_is_an_error(tmp_path: Path) -> None:
    scored = folder_of(tmp_path, {"a": pa.table({"tags": [["a", None]]})})
    rows = sample_rows(scored, columns=["tags"], num_rows=100, seed=0)
    with pytest.raises(DataError, match=r"input.label=tags: a list holds a null"):
        name_labels(rows, scored, "tags", labels=("a",))
