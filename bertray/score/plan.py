"""Input shards to splits, and which of them are still to do.

A split is a run of row groups of one shard: what one actor call handles and one output file holds.
Its output's footer names it, so an output folder says itself which splits are done.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.errors import DataError, SchemaError
from bertray.storage import FileInfo

SUFFIX = ".parquet"
FOOTERS_AT_ONCE = 16  # reading a footer is waiting, on S3 above all

# What the footer of a scored file says; values are text.
SPLIT_ID = b"bertray.split_id"
SHARD = b"bertray.shard"
MODEL_DIGEST = b"bertray.model_digest"
SETTINGS_DIGEST = b"bertray.settings_digest"
ENGINE = b"bertray.engine"
NUM_HALVINGS = b"bertray.num_halvings"  # of the token budget
STATUS_COUNTS = b"bertray.status_counts"
LABEL_COUNTS = b"bertray.label_counts"
VERSION = b"bertray.version"


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

    @property
    def num_rows(self) -> int:
        """Rows of all splits."""
        return sum(split.num_rows for split in self.splits)


def plan_splits(
    uri: str,
    *,
    check_schema: Callable[[pa.Schema, str], None],
    max_split_rows: int,
    key: str = "input.path",
) -> Plan:
    """List the shards of ``uri``, read their footers side by side, and cut them into splits.

    Args:
        uri: a Parquet file, folder, glob or URI.
        check_schema: called with a shard's Arrow schema and name; raises SchemaError if unfit.
        max_split_rows: a shard with more rows is cut on row-group borders. A row group is never
            cut, so a split may hold more.
        key: the setting that named ``uri``, for messages.

    Raises:
        StorageError: ``uri`` cannot be listed.
        DataError: no shard is there, or none can be read.
        SchemaError: no shard has the columns wanted.
    """
    root, files = storage.list_files(uri, suffix=SUFFIX, key=key)
    if not files:
        raise DataError(f"{key}={uri}: no *{SUFFIX} files in there")

    def cut(file: FileInfo) -> list[Split] | Exception:
        try:
            return _cut(root, file, check_schema=check_schema, max_split_rows=max_split_rows)
        except (SchemaError, OSError, pa.ArrowException) as error:
            return error

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        results = list(threads.map(cut, files))
    errors = [(f, r) for f, r in zip(files, results, strict=True) if isinstance(r, Exception)]
    if len(errors) == len(files):
        first = errors[0][1]
        if isinstance(first, SchemaError):
            raise first
        raise DataError(
            f"{key}={uri}: none of {len(files)} shards can be read; the first, "
            f"{errors[0][0].path}: {one_line(first)}"
        )
    splits = [split for result in results if not isinstance(result, Exception) for split in result]
    splits.sort(key=lambda split: split.output)
    for one, other in pairwise(splits):
        if one.output == other.output:
            raise DataError(
                f"{key}={uri}: {one.shard} and {other.shard} would both be scored into "
                f"{one.output}; rename one, or raise input.max_split_rows"
            )
    bad = tuple(BadShard(file.path, one_line(error)) for file, error in errors)
    return Plan(tuple(splits), bad)


def committed_splits(
    splits: Iterable[Split], output: str, *, model_digest: str, settings_digest: str
) -> dict[str, dict[bytes, bytes]]:
    """Which splits the output folder holds already: split id to footer metadata.

    The footer is the commit: a file under the right name with another split id (its shard has
    changed), model or settings does not count.
    """
    if not storage.exists(output):
        return {}
    _, files = storage.list_files(output, suffix=SUFFIX, key="output.path")
    there = {file.path for file in files}

    def footer(split: Split) -> dict[bytes, bytes] | None:
        return read_footer(storage.join(output, split.output))

    candidates = [split for split in splits if split.output in there]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(footer, candidates))
    return {
        split.id: metadata
        for split, metadata in zip(candidates, footers, strict=True)
        if metadata is not None
        and is_commit(metadata, split, model_digest=model_digest, settings_digest=settings_digest)
    }


def is_commit(
    footer: dict[bytes, bytes], split: Split, *, model_digest: str, settings_digest: str
) -> bool:
    """Whether a footer says that its file is this split's, by this model and these settings."""
    return (
        footer.get(SPLIT_ID) == split.id.encode()
        and footer.get(MODEL_DIGEST) == model_digest.encode()
        and footer.get(SETTINGS_DIGEST) == settings_digest.encode()
    )


def outdated_outputs(plan: Plan, output: str) -> list[str]:
    """Scored files of shards that are still there but are cut into other splits now.

    A shard that grew past ``input.max_split_rows`` leaves its old, single output behind, whose
    rows would be read twice. Outputs of shards that are gone are not touched.
    """
    _, files = storage.list_files(output, suffix=SUFFIX, key="output.path")
    current = {split.output for split in plan.splits}
    shards = {split.shard.encode() for split in plan.splits}
    others = [file.path for file in files if file.path not in current]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = threads.map(lambda path: read_footer(storage.join(output, path)), others)
        return [
            path
            for path, footer in zip(others, footers, strict=True)
            if footer and SPLIT_ID in footer and footer.get(SHARD) in shards
        ]


def read_footer(uri: str) -> dict[bytes, bytes] | None:
    """The footer's key-value metadata, or None if there is no readable Parquet file."""
    try:
        with storage.open_input(uri) as file:
            return dict(pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException):
        return None


def one_line(error: BaseException) -> str:
    """An error's message for a manifest: its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cut(
    root: str,
    file: FileInfo,
    *,
    check_schema: Callable[[pa.Schema, str], None],
    max_split_rows: int,
) -> list[Split]:
    uri = storage.join(root, file.path)
    with storage.open_input(uri) as source:
        footer = pq.read_metadata(source)
    check_schema(footer.schema.to_arrow_schema(), uri)
    rows = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    sizes = [footer.row_group(index).total_byte_size for index in range(footer.num_row_groups)]
    runs = _runs(rows, max_split_rows)
    stem = file.path.removesuffix(SUFFIX)
    return [
        Split(
            root=root,
            shard=file.path,
            shard_version=file.version,
            shard_size_bytes=file.size_bytes,
            first_row_group=first,
            num_row_groups=end - first,
            num_rows=sum(rows[first:end]),
            size_bytes=sum(sizes[first:end]),
            output=file.path if len(runs) == 1 else f"{stem}-{number:05d}{SUFFIX}",
        )
        for number, (first, end) in enumerate(runs)
    ]


def _runs(rows: Sequence[int], max_rows: int) -> list[tuple[int, int]]:
    """Neighbouring row groups as [first, end) runs of at most ``max_rows``; at least one run."""
    runs = []
    first = total = 0
    for index, count in enumerate(rows):
        if index > first and total + count > max_rows:
            runs.append((first, index))
            first, total = index, 0
        total += count
    return [*runs, (first, len(rows))]
