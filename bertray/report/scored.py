"""A scored output folder, as a report reads it: what it says of itself, and some of its rows."""

import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.errors import OutputError
from bertray.schema import Task, is_list, is_text
from bertray.score import manifest as folder
from bertray.score.commits import (
    LABEL_COUNTS,
    STATUS_COUNTS,
    is_bad,
    list_outputs,
    read_footer,
    task_of,
)
from bertray.score.contract import Contract, read_contract
from bertray.score.index import Index
from bertray.score.plan import side_by_side

MOST_FILES = 64  # that a sample is drawn from


@dataclass(frozen=True)
class Scored:
    """An output folder of score, looked into.

    Attributes:
        path: the folder.
        contract: model and settings that it belongs to.
        manifest: its rows, files and quarantined shards; files and rows of those looked at.
        num_rows_folder: rows of all its files.
        run: how its last run went, as `Summary.record` has it; None if it did not say.
        complete: whether every shard is there.
        task: of the model.
        status_counts: rows by prediction status, of all rows.
        label_counts: likewise by predicted label; none where the model gives a number.
    """

    path: str
    contract: Contract
    manifest: dict[str, Any]
    num_rows_folder: int
    run: dict[str, Any] | None
    complete: bool
    task: Task
    status_counts: Counter[str]
    label_counts: Counter[str]

    @property
    def num_rows(self) -> int:
        """Rows of the files looked at."""
        return int(self.manifest["rows"])

    @property
    def num_rows_in(self) -> int | None:
        """Rows of all shards that could be planned; None of a folder that does not tell."""
        return self.manifest.get("rows_in")

    @property
    def num_rows_quarantined(self) -> int:
        """Of these, rows that held a text and yet got no prediction."""
        return sum(count for status, count in self.status_counts.items() if is_bad(status))

    @property
    def rows_per_s(self) -> float | None:
        """At which the last run that had something to do scored; None if nothing tells."""
        if self.run is None or not self.run["seconds"]:
            return None
        return float(self.run["rows_scored"] / self.run["seconds"])

    @property
    def prefix(self) -> str:
        """Of the scored columns."""
        return str(self.contract.settings["output.prefix"])

    @property
    def text(self) -> str:
        """The column that was classified; the folder need not hold it."""
        return str(self.contract.settings["input"]["text"])

    @property
    def text_pair(self) -> str | None:
        """The column of second texts."""
        column = self.contract.settings["input"]["text_pair"]
        return None if column is None else str(column)


def open_scored(path: str, *, only: Container[str] | None = None) -> Scored:
    """Look into an output folder.

    Args:
        path: the folder.
        only: names of the scored files that are looked at, such as those of one night; all by
            default.

    Raises:
        OutputError: no run of score has ended there, or the manifest names files elsewhere.
    """
    contract = read_contract(path)
    manifest = storage.get_json(storage.join(path, folder.MANIFEST))
    if manifest is None:
        raise OutputError(
            f"{path}: no run has ended there (no {folder.MANIFEST}); run bertray score to its end"
        )
    for file in manifest["files"]:
        if not storage.is_below(file["path"]):
            raise OutputError(
                f"{path}: {folder.MANIFEST} names {file['path']!r}, which is not below it; "
                "run bertray score again, which writes a new one"
            )
    num_rows_folder = int(manifest["rows"])
    if only is not None:
        files = [file for file in manifest["files"] if file["path"] in only]
        manifest |= {"files": files, "rows": sum(file["rows"] for file in files)}
    names = [file["path"] for file in manifest["files"]]
    statuses, labels = _counts(path, contract, names)
    return Scored(
        path=path,
        contract=contract,
        manifest=manifest,
        num_rows_folder=num_rows_folder,
        run=storage.get_json(storage.join(path, folder.RUN)),
        complete=storage.exists(storage.join(path, folder.SUCCESS)),
        task=task_of(path, names, prefix=contract.settings["output.prefix"]),
        status_counts=statuses,
        label_counts=labels,
    )


def sample_rows(scored: Scored, *, columns: Sequence[str], num_rows: int, seed: int) -> pa.Table:
    """Some rows of a folder, equally many of its rows from each file that is drawn.

    One row group of a file is read, so that a file of 100 M rows costs no more than another. If the
    folder holds no more rows than wanted these are all of them.

    Args:
        scored: the folder.
        columns: those wanted; ones that are not there are left out.
        num_rows: about so many.
        seed: of the draw.

    Returns:
        Texts are string, however the shards encode them, and so is a column that is text in some
        shards and numbers in others.
    """
    files = [file for file in scored.manifest["files"] if file["rows"]]
    rng = np.random.default_rng(seed)
    if scored.num_rows > num_rows and len(files) > MOST_FILES:
        files = [
            files[index] for index in sorted(rng.choice(len(files), MOST_FILES, replace=False))
        ]
    share = min(1.0, num_rows / max(sum(file["rows"] for file in files), 1))
    seeds = rng.integers(2**32, size=len(files))
    draws = [
        (storage.join(scored.path, file["path"]), round(file["rows"] * share) or 1, int(file_seed))
        for file, file_seed in zip(files, seeds, strict=True)
    ]
    tables = side_by_side(lambda draw: _some_rows(*draw, columns=columns), draws)
    if not tables:
        return pa.table({})
    tables = [_plain(table) for table in tables]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError:
        texts = {f.name for table in tables for f in table.schema if pa.types.is_string(f.type)}
        return pa.concat_tables(
            [_plain(table, texts=texts) for table in tables], promote_options="permissive"
        )


def _plain(table: pa.Table, texts: Container[str] = ()) -> pa.Table:
    """The table with its columns decoded; those named as text."""
    kinds = [pa.string() if f.name in texts else _plain_type(f.type) for f in table.schema]
    columns = [_cast(column, kind) for column, kind in zip(table.columns, kinds, strict=True)]
    return pa.table(columns, table.column_names)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_list_view(column.type):  # which pyarrow 26 fails to cast
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    return column.cast(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.string() if is_text(kind) else kind


def _some_rows(uri: str, num_rows: int, seed: int, *, columns: Sequence[str]) -> pa.Table:
    rng = np.random.default_rng(seed)
    try:
        with storage.open_input(uri) as source, pq.ParquetFile(source) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            if num_rows >= file.metadata.num_rows:
                return file.read(there)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            group = int(rng.choice(len(sizes), p=np.array(sizes) / sum(sizes)))
            table = file.read_row_group(group, there)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{uri}: cannot be read: {storage.reason_of(error)}") from error
    chosen = rng.choice(table.num_rows, min(num_rows, table.num_rows), replace=False)
    return table.take(pa.array(np.sort(chosen)))


def _counts(
    path: str, contract: Contract, names: Sequence[str]
) -> tuple[Counter[str], Counter[str]]:
    """Rows by status and by label, from the index, and from the footers that it does not know."""
    index = Index(path, contract.digests)
    index.read(list_outputs(path))
    known = index.receipts()
    statuses: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for name in names:
        if name in known:
            statuses.update(known[name].status_counts)
            labels.update(known[name].label_counts)
    for footer in _footers(path, [name for name in names if name not in known]):
        statuses.update(json.loads(footer[STATUS_COUNTS]))
        labels.update(json.loads(footer[LABEL_COUNTS]))
    return statuses, labels


def _footers(path: str, names: Sequence[str]) -> Iterator[dict[bytes, bytes]]:
    found = side_by_side(lambda name: read_footer(storage.join(path, name)), names)
    for name, footer in zip(names, found, strict=True):
        if footer is None or STATUS_COUNTS not in footer:
            raise OutputError(
                f"{path}: {name} is in the manifest, and not there as it was scored; "
                "run bertray score again"
            )
        yield footer
