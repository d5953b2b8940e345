"""What the driver looks at before a cluster starts: the shards' schemas and their label columns.

A row is known by its row id: its place among all rows of ``data.train``, then
``data.validation``, shards in the order of their names.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.config import TrainData
from bertray.errors import DataError, SchemaError, StorageError
from bertray.schema import Scale, Task, check_column, check_label_column, check_text_column
from bertray.storage import FileInfo
from bertray.train.targets import (
    hold_out,
    normalized,
    num_missing,
    scale_of,
    task_of,
    to_targets,
)

SUFFIX = ".parquet"
SHARDS_AT_ONCE = 16  # reading a column from S3 is waiting above all
EMPTY_LISTS = pa.list_(pa.null())  # the type of a shard none of whose rows has a label
PIECE_ROWS = 16_384  # what one call tokenizes, unless a row group holds more


@dataclass(frozen=True)
class Piece:
    """A run of row groups of one shard.

    Attributes:
        uri: the shard.
        first_row_group: where the run begins.
        num_row_groups: how many it holds.
        first_row: row id of its first row.
        row_in_shard: place of that row in the shard, counted from 0.
    """

    uri: str
    first_row_group: int
    num_row_groups: int
    first_row: int
    row_in_shard: int


@dataclass(frozen=True)
class Labelled:
    """The rows to train and validate on, before their texts are read.

    Attributes:
        pieces: in row-id order; together they hold each row once.
        labels: label names in label-id order.
        targets: by row id; int64 label ids of shape (rows,), where rows have several labels bool of
            shape (rows, labels), numbers to be learnt as such float64 of shape (rows,).
        is_validation: bool of shape (rows,), by row id.
        task: what is learnt.
        scale: of numbers that are learnt as such, those to train on.
    """

    pieces: tuple[Piece, ...]
    labels: tuple[str, ...]
    targets: np.ndarray
    is_validation: np.ndarray
    task: Task
    scale: Scale | None


@dataclass(frozen=True)
class Shards:
    """The files that ``data.train`` and ``data.validation`` name, each with its URI.

    Attributes:
        training: in the order of their names.
        validation: likewise; empty if rows are to be held out of ``training``.
    """

    training: tuple[tuple[str, FileInfo], ...]
    validation: tuple[tuple[str, FileInfo], ...]

    @property
    def digest(self) -> str:
        """Hash of names, sizes and versions: it changes when a file does, not when all move."""
        listing = [[asdict(file) for _, file in part] for part in (self.training, self.validation)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@dataclass(frozen=True)
class _Labels:
    """One shard's labels, `normalized`, and its row groups' rows."""

    uri: str
    task: Task
    values: pa.ChunkedArray
    row_group_rows: list[int]


def list_shards(data: TrainData) -> Shards:
    """Find the files.

    Raises:
        StorageError: a path cannot be listed.
        DataError: a path holds no Parquet files, or both hold the same one.
    """
    training = _listed(data.train, key="data.train")
    validation = _listed(data.validation, key="data.validation") if data.validation else ()
    both = {uri for uri, _ in training} & {uri for uri, _ in validation}
    if both:
        raise DataError(
            f"data.validation={data.validation}: {min(both)} is in data.train={data.train} too; "
            "a model is not validated on rows it was trained on, leave it out of one of both"
        )
    return Shards(training, validation)


def read_labels(
    shards: Shards, data: TrainData, *, seed: int, task: Task | Literal["auto"] = "auto"
) -> Labelled:
    """Check every shard and read its labels. Needs no cluster.

    Without ``data.validation`` a seeded, stratified share of the training rows is held out.

    Args:
        shards: from `list_shards`.
        data: the config's section.
        seed: of the split.
        task: what is to be learnt; as the label column's type has it by default.

    Raises:
        SchemaError: a column is missing or of the wrong type.
        DataError: a shard cannot be read, labels are null, too few, or unknown in training.
    """
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        training, validation = (
            list(threads.map(lambda shard: _read_shard(shard[0], data, task), part))
            for part in (shards.training, shards.validation)
        )
    kind = _kind_of([*training, *validation], column=data.label)
    train_labels, val_labels = (
        pa.chunked_array([chunk for one in part for chunk in one.values.cast(kind).chunks], kind)
        for part in (training, validation)
    )
    task, scale = training[0].task, None
    labels, *targets = to_targets(train_labels, val_labels, data)
    if data.validation is None:
        is_validation = hold_out(targets[0], data, task=task, seed=seed)
    elif len(targets[1]):
        is_validation = np.repeat([False, True], [len(targets[0]), len(targets[1])])
    else:
        raise DataError(
            f"data.validation={data.validation}: no rows; "
            "name a place with rows, or leave the key out to hold out a share of data.train"
        )
    if task == "regression":
        scale = scale_of(np.concatenate(targets)[~is_validation], data)
    return Labelled(
        pieces=tuple(_pieces([*training, *validation])),
        labels=labels,
        targets=np.concatenate(targets),
        is_validation=is_validation,
        task=task,
        scale=scale,
    )


def locate(row_id: int, pieces: Sequence[Piece]) -> str:
    """Where a row stands: its shard, and its place in there counted from 0."""
    piece = pieces[bisect_right(pieces, row_id, key=lambda piece: piece.first_row) - 1]
    return f"{piece.uri} row {piece.row_in_shard + row_id - piece.first_row}"


def _listed(uri: str, *, key: str) -> tuple[tuple[str, FileInfo], ...]:
    root, files = storage.list_files(storage.absolute(uri), suffix=SUFFIX, key=key)
    if not files:
        raise DataError(storage.none_found(uri, suffix=SUFFIX, key=key))
    return tuple((storage.join(root, file.path), file) for file in files)


def _read_shard(uri: str, data: TrainData, wanted: Task | Literal["auto"]) -> _Labels:
    try:
        with storage.open_input(uri) as source:
            shard = pq.ParquetFile(source, page_checksum_verification=True)
            schema = shard.schema_arrow
            check_text_column(schema, data.text, where=uri, key="data.text")
            if data.text_pair is not None:
                check_text_column(schema, data.text_pair, where=uri, key="data.text_pair")
            check_column(schema, data.label, where=uri, key="data.label")
            task = task_of(wanted, schema.field(data.label).type)
            check_label_column(schema, data.label, where=uri, key="data.label", task=task)
            column = shard.read(columns=[data.label], use_threads=False).column(0)
            labels = normalized(column, task)
            footer = shard.metadata
    except (OSError, pa.ArrowException) as error:
        raise unreadable(uri, error) from error
    if missing := num_missing(labels):
        what = "null or not finite" if task == "regression" else "null, blank or not valid UTF-8"
        raise DataError(
            f"{uri}: column {data.label!r} is {what} in {missing} of "
            f"{len(labels)} rows; label them or take them out, or set data.label to another "
            "column"
        )
    rows = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    return _Labels(uri, task, labels, rows)


def unreadable(uri: str, error: Exception) -> StorageError | DataError:
    """What to say of a shard that could not be read: of the place it is in, or of itself."""
    if storage.is_outage(error):
        return StorageError(f"{uri}: cannot be reached: {storage.reason_of(error)}; run again")
    return DataError(f"{uri}: cannot be read: {error}; write it anew or take it away")


def _kind_of(shards: Sequence[_Labels], *, column: str) -> pa.DataType:
    """The one type of all; lists that are empty throughout may be of another."""
    telling = [shard for shard in shards if shard.values.type != EMPTY_LISTS]
    if not telling:
        return pa.list_(pa.string())
    first = telling[0]
    for shard in telling:
        if shard.values.type != first.values.type:
            raise SchemaError(
                f"column {column!r} is {first.values.type} in {first.uri}, {shard.values.type} in "
                f"{shard.uri}; write both as the same type"
            )
    return first.values.type


def _pieces(shards: Sequence[_Labels]) -> Iterator[Piece]:
    """Neighbouring row groups together, up to `PIECE_ROWS`."""
    first_row = 0
    for shard in shards:
        start = num_rows = row_in_shard = 0
        for index, rows in enumerate([*shard.row_group_rows, PIECE_ROWS]):
            if num_rows and num_rows + rows > PIECE_ROWS:
                yield Piece(shard.uri, start, index - start, first_row, row_in_shard)
                first_row += num_rows
                row_in_shard += num_rows
                start, num_rows = index, 0
            num_rows += rows
