"""Input shards to splits.

A split is a run of row groups of one shard: what one actor call handles and one output file holds.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.errors import DataError, SchemaError, StorageError
from bertray.storage import FileInfo

SUFFIX = ".parquet"
MOST_ROWS_OF_A_GROUP = 1 << 27  # their scored columns alone take some gigabytes
AT_ONCE = 16  # threads that read footers: that is waiting, on S3 above all

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Split:
    """A run of row groups of one shard.

    Attributes:
        root: folder or URI that ``shard`` and ``output`` are relative to, on the input side.
        shard: the Parquet file.
        shard_version: changes when the shard's content does.
        shard_size_bytes: the whole file's length.
        first_row_group: where the run begins.
        num_row_groups: how many it holds.
        shard_row_groups: how many the whole shard has.
        num_rows: rows of these row groups.
        size_bytes: their uncompressed size.
        output: name of the scored file, relative to the output folder.
    """

    root: str
    shard: str
    shard_version: str
    shard_size_bytes: int
    first_row_group: int
    num_row_groups: int
    shard_row_groups: int
    num_rows: int
    size_bytes: int
    output: str

    @property
    def id(self) -> str:
        """Hash of what is to be scored: it changes when the shard does, not when the lake moves."""
        parts = (
            self.shard,
            self.shard_size_bytes,
            self.shard_version,
            self.first_row_group,
            self.num_row_groups,
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """For the metadata of the block that carries this split's rows."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Split":
        """Undo `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class BadShard:
    """A shard that cannot be scored, and why."""

    shard: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All the work of a run, done or not.

    Attributes:
        splits: sorted by output name.
        bad_shards: what could not be planned.
    """

    splits: tuple[Split, ...]
    bad_shards: tuple[BadShard, ...]

    @cached_property
    def num_rows(self) -> int:
        """Rows of all splits."""
        return sum(split.num_rows for split in self.splits)


def plan_splits(
    uri: str,
    *,
    check_schema: Callable[[pa.Schema, str], None],
    max_split_rows: int,
    max_split_bytes: int | None = None,
    known: Mapping[str, Sequence[Split]] = MappingProxyType({}),
    key: str = "input.path",
) -> Plan:
    """List the shards of ``uri``, read their footers side by side, and cut them into splits.

    Args:
        uri: a Parquet file, folder, glob or URI.
        check_schema: called with a shard's Arrow schema and name; raises SchemaError if unfit.
        max_split_rows: a shard with more rows is cut on row-group borders. A row group is never
            cut, so a split may hold more.
        max_split_bytes: likewise for uncompressed bytes.
        known: splits by shard that an earlier run planned. If a shard is still the same and they
            cover it, its footer is not read again.
        key: the setting that named ``uri``, for messages.

    Raises:
        StorageError: ``uri`` cannot be listed, or a shard cannot be reached.
        DataError: no shard is there, or none can be read.
        SchemaError: no shard has the columns wanted.
    """
    root, files = storage.list_files(uri, suffix=SUFFIX, key=key)
    if not files:
        raise DataError(storage.none_found(uri, suffix=SUFFIX, key=key))

    def cut(file: FileInfo) -> Sequence[Split] | Exception:
        if _shown(file.path) != file.path:
            return DataError("its name is not UTF-8, so no manifest can hold it; rename it")
        splits = known.get(file.path, ())
        if _covered(file, splits):
            return [replace(split, root=root) for split in splits]
        uri = storage.join(root, file.path)
        try:
            with storage.open_input(uri) as source:
                footer = pq.read_metadata(source)
            check_schema(footer.schema.to_arrow_schema(), uri)
            return _cut(root, file, footer, max_split_rows, max_split_bytes or sys.maxsize)
        except Exception as error:  # a hostile footer may raise anything
            raise_if_outage(error, uri)
            return error

    results = side_by_side(cut, files)
    errors = [(f, r) for f, r in zip(files, results, strict=True) if isinstance(r, Exception)]
    if len(errors) == len(files):
        first = errors[0][1]
        if isinstance(first, SchemaError):
            raise first
        raise DataError(
            f"{key}={uri}: none of {len(files)} shards can be read; the first, "
            f"{_shown(errors[0][0].path)}: {one_line(first)}"
        )
    splits = [split for result in results if not isinstance(result, Exception) for split in result]
    splits.sort(key=lambda split: split.output)
    for one, other in pairwise(splits):
        if one.output == other.output:
            raise DataError(
                f"{key}={uri}: {one.shard} and {other.shard} would both be scored into "
                f"{one.output}; rename one (for a new output, a larger input.max_split_rows will "
                "do as well)"
            )
    bad = tuple(BadShard(_shown(file.path), one_line(error)) for file, error in errors)
    return Plan(tuple(splits), bad)


def one_line(error: BaseException) -> str:
    """An error's message for a manifest: its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def raise_if_outage(error: BaseException, uri: str) -> None:
    """Raise StorageError if an error speaks of the place that ``uri`` names, not of the file.

    A file that cannot be read is quarantined, one that we may not read too. A place that cannot
    be reached stops the run, or every shard of it would be.
    """
    if storage.is_outage(error) and not isinstance(error, PermissionError):
        raise StorageError(
            f"{uri}: cannot be reached: {storage.reason_of(error)}; what is done is safe: run again"
        ) from error


def side_by_side(look: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``look`` at each item in some threads."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(look, items))


def _shown(path: str) -> str:
    """A path as UTF-8 text; local disks take any bytes as a name."""
    return path.encode(errors="backslashreplace").decode()


def _covered(file: FileInfo, splits: Sequence[Split]) -> bool:
    """Whether splits are of this very file, and all of it."""
    end = 0
    for split in splits:
        same = (split.shard_version, split.shard_size_bytes) == (file.version, file.size_bytes)
        if not same or split.first_row_group != end:
            return False
        end += split.num_row_groups
    return bool(splits) and end == splits[0].shard_row_groups


def _cut(
    root: str, file: FileInfo, footer: pq.FileMetaData, max_rows: int, max_bytes: int
) -> list[Split]:
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if not all(0 <= count <= MOST_ROWS_OF_A_GROUP for count in rows):
        count = next(count for count in rows if not 0 <= count <= MOST_ROWS_OF_A_GROUP)
        raise DataError(
            f"{file.path}: the footer claims {count} rows in one row group, at most "
            f"{MOST_ROWS_OF_A_GROUP} can be scored; write the shard with smaller row groups"
        )
    sizes = [group.total_byte_size for group in groups]
    runs = _runs(rows, sizes, max_rows, max_bytes)
    stem = file.path.removesuffix(SUFFIX)
    return [
        Split(
            root=root,
            shard=file.path,
            shard_version=file.version,
            shard_size_bytes=file.size_bytes,
            first_row_group=first,
            num_row_groups=end - first,
            shard_row_groups=len(groups),
            num_rows=sum(rows[first:end]),
            size_bytes=sum(sizes[first:end]),
            output=file.path if len(runs) == 1 else f"{stem}-{number:05d}{SUFFIX}",
        )
        for number, (first, end) in enumerate(runs)
    ]


def _runs(
    rows: Sequence[int], sizes: Sequence[int], max_rows: int, max_bytes: int
) -> list[tuple[int, int]]:
    """Neighbouring row groups as [first, end) runs of at most so much; at least one run."""
    runs = []
    first = num_rows = num_bytes = 0
    for index, (count, size) in enumerate(zip(rows, sizes, strict=True)):
        if index > first and (num_rows + count > max_rows or num_bytes + size > max_bytes):
            runs.append((first, index))
            first, num_rows, num_bytes = index, 0, 0
        num_rows += count
        num_bytes += size
    return [*runs, (first, len(rows))]
