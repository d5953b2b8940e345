"""Ray Datasource: one split, one block."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from bertray import storage
from bertray.config import ScoreConfig
from bertray.errors import DataError
from bertray.schema import Task, check_column, check_no_clash, check_text_column
from bertray.score.ceiling import ceiling
from bertray.score.ledger import Attempts, TooManyDeathsError
from bertray.score.plan import Split, one_line, raise_if_outage

# In the metadata of a block's schema: which split it holds, why it could not be read, and what each
# stage says of its work on it (`add_stats`). The sink takes them off again.
BLOCK_SPLIT = b"bertray.block.split"
BLOCK_FAULT = b"bertray.block.fault"
BLOCK_STATS = b"bertray.block.stats"
BLOCK_NOTES = b"bertray.block.notes"  # warnings of the actor, for the driver to log

# What reading takes besides the rows: a buffer that grows is copied into one of twice the size.
WORK_ROOM = 2
SPARE_BYTES = 256 << 20


@dataclass(frozen=True)
class Reading:
    """Which columns to read.

    Attributes:
        text: column of the text.
        text_pair: column of the second text, if rows are pairs.
        columns: columns to pass through; None for all.
        prefix: of the scored columns, which must not clash with those passed through.
        section: of the config that names the columns, for messages.
        max_bytes: decoded Arrow bytes that one split may take; None for no limit.
        task: of the model, which says what the scored columns are.
    """

    text: str
    text_pair: str | None
    columns: tuple[str, ...] | None
    prefix: str
    section: str = "input"
    max_bytes: int | None = None
    task: Task = "single_label"

    @classmethod
    def of_job(cls, config: ScoreConfig, task: Task = "single_label") -> "Reading":
        """What a scoring job reads; the task is the model's, as far as it is known."""
        source = config.input
        return cls(
            text=source.text,
            text_pair=source.text_pair,
            columns=source.columns,
            prefix=config.output.prefix,
            max_bytes=source.max_split_bytes,
            task=task,
        )

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise SchemaError if a shard of this schema cannot be scored."""
        check_text_column(schema, self.text, where=where, key=f"{self.section}.text")
        if self.text_pair is not None:
            check_text_column(schema, self.text_pair, where=where, key=f"{self.section}.text_pair")
        for column in self.columns or ():
            check_column(schema, column, where=where, key=f"{self.section}.columns")
        passed = self.passed(schema.names)
        check_no_clash(schema, passed, where=where, prefix=self.prefix, task=self.task)

    def passed(self, names: Sequence[str]) -> list[str]:
        """The columns to pass through, in the shard's order."""
        return [name for name in names if self.columns is None or name in self.columns]

    def needed(self, names: Sequence[str]) -> list[str]:
        """The columns to read, in the shard's order."""
        texts = {self.text, self.text_pair}
        return [name for name in names if name in texts or name in self.passed(names)]


class SplitSource(Datasource):
    """Reads each split as one block whose schema metadata names the split."""

    def __init__(
        self, splits: Sequence[Split], reading: Reading, attempts: Attempts | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._splits = splits
        self._reading = reading
        self._attempts = attempts

    def estimate_inmemory_data_size(self) -> int:
        """Uncompressed bytes of all splits."""
        return sum(split.size_bytes for split in self._splits)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a split, whatever parallelism Ray would like."""
        return [ReadTask(self._task(split), _metadata(split)) for split in self._splits]

    def _task(self, split: Split) -> Callable[[], Iterable[pa.Table]]:
        return partial(_read, split, self._reading, self._attempts)


def _metadata(split: Split) -> BlockMetadata:
    return BlockMetadata(
        num_rows=split.num_rows, size_bytes=split.size_bytes, input_files=None, exec_stats=None
    )


def _read(split: Split, reading: Reading, attempts: Attempts | None) -> Iterable[pa.Table]:
    try:
        with attempts.one("reading", split.id) if attempts else nullcontext():
            block = read_block(split, reading)
    except TooManyDeathsError as error:
        block = fault_block(split, one_line(error))
    yield block


def read_block(split: Split, reading: Reading) -> pa.Table:
    """A split's rows, or if it cannot be read a block that says why: Ray would stop the whole job.

    Raises:
        StorageError: the place of the shards cannot be reached.
    """
    start = time.perf_counter()
    try:
        block = read_split(split, reading)
    except Exception as error:  # a hostile file may raise anything
        raise_if_outage(error, storage.join(split.root, split.shard))
        return fault_block(split, one_line(error))
    return add_stats(block, {"read_s": time.perf_counter() - start})


def read_split(split: Split, reading: Reading) -> pa.Table:
    """The rows of a split, as they stand in the shard, with the split named in the metadata.

    Raises:
        SchemaError: a column is missing or of another type.
        DataError: the rows need more memory than they may, or the shard is not the one planned.
        OSError, pyarrow.ArrowException: the shard cannot be read, or a page's checksum is wrong.
    """
    uri = storage.join(split.root, split.shard)
    with storage.open_input(uri) as file:
        shard = pq.ParquetFile(
            file, page_checksum_verification=True, coerce_int96_timestamp_unit="us"
        )
        reading.check(shard.schema_arrow, uri)
        table = _read_groups(shard, split, reading)
        table = _with_nanoseconds(table, shard, file, split)
    raise_if_changed(split)
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), BLOCK_SPLIT: split.to_json()}
    )


def _read_groups(shard: pq.ParquetFile, split: Split, reading: Reading) -> pa.Table:
    """A split's row groups; stops where they take more memory than they may.

    A few hundred bytes of dictionary and run lengths can stand for any number of gigabytes, and
    nothing in a footer tells so.
    """
    limit = reading.max_bytes
    row_groups = _row_groups(split)
    columns = reading.needed(shard.schema_arrow.names)
    try:
        with ceiling(WORK_ROOM * limit + SPARE_BYTES) if limit is not None else nullcontext():
            table = _rows_of(shard, row_groups, columns)
    except MemoryError:
        table = None
    if table is None or (limit is not None and table.nbytes > limit):
        table = None  # let go of it before the pool gives back what it holds
        pa.default_memory_pool().release_unused()
        raise DataError(
            f"{split.shard}: row groups {row_groups.start} to {row_groups.stop - 1} take more "
            f"memory than input.max_split_bytes={limit}; write the shard with smaller row groups, "
            "or raise the limit if the workers have the memory"
        )
    return table


def _rows_of(shard: pq.ParquetFile, row_groups: range, columns: list[str]) -> pa.Table:
    try:
        return shard.read_row_groups(list(row_groups), columns=columns, use_threads=False)
    except pa.ArrowNotImplementedError:
        # A list or struct of dictionaries comes in chunks, which Arrow does not put together
        # (https://github.com/apache/arrow/issues/32723). A row group is one chunk as a rule.
        groups = [shard.read_row_group(i, columns=columns, use_threads=False) for i in row_groups]
        return pa.concat_tables(groups).combine_chunks()


def _with_nanoseconds(
    table: pa.Table, shard: pq.ParquetFile, file: pa.NativeFile, split: Split
) -> pa.Table:
    """The same, but for columns of INT96 timestamps from which microseconds would take digits.

    INT96 holds any year to the nanosecond, which no type of Arrow does. Nanoseconds in 64 bits end
    in 2262, and 9999-12-31 is a usual value; microseconds finer than that are not.
    """
    finer = pq.ParquetFile(file, metadata=shard.metadata, page_checksum_verification=True)
    for coarse, fine in zip(shard.schema_arrow, finer.schema_arrow, strict=True):
        if coarse.type == fine.type or coarse.name not in table.column_names:
            continue
        exact = _rows_of(finer, _row_groups(split), [coarse.name])[coarse.name]
        try:
            same = table[coarse.name].cast(fine.type).equals(exact)
        except pa.ArrowInvalid:  # a year that nanoseconds do not hold
            continue
        if not same:
            place = table.column_names.index(coarse.name)
            table = table.set_column(place, fine, exact)
    return table


def _row_groups(split: Split) -> range:
    return range(split.first_row_group, split.first_row_group + split.num_row_groups)


def raise_if_changed(split: Split) -> None:
    """Raise DataError if a shard is no longer the one that was planned."""
    uri = storage.join(split.root, split.shard)
    try:
        changed = storage.version_of(uri) != split.shard_version
    except FileNotFoundError:
        raise DataError(f"{split.shard} vanished while it was scored") from None
    if changed:
        raise DataError(f"{split.shard} changed while it was scored: run again")


def fault_block(split: Split, reason: str) -> pa.Table:
    """A stand-in for a split that failed: one row, because Ray drops blocks that have none."""
    return pa.table({"fault": [reason]}).replace_schema_metadata(
        {BLOCK_SPLIT: split.to_json(), BLOCK_FAULT: reason}
    )


def add_stats(block: pa.Table, stats: Mapping[str, float]) -> pa.Table:
    """The block, its metadata saying what a stage did for it, beside what earlier stages did."""
    merged = json.dumps(stats_of(block) | dict(stats))
    return block.replace_schema_metadata({**block.schema.metadata, BLOCK_STATS: merged})


def stats_of(block: pa.Table) -> dict[str, float]:
    """What the stages so far said of their work on a block: seconds and counts by name."""
    return dict(json.loads(block.schema.metadata.get(BLOCK_STATS, b"{}")))


def split_of(block: pa.Table) -> Split:
    """The split whose rows a block holds."""
    return Split.from_json(block.schema.metadata[BLOCK_SPLIT])


def fault_of(block: pa.Table) -> str | None:
    """Why a block holds no rows of its split, or None."""
    reason = block.schema.metadata.get(BLOCK_FAULT)
    return None if reason is None else reason.decode()
