"""What an output folder holds: the footer of each scored file is its commit.

Whoever finds a file under a split's name whose footer names that split, this model and these
settings knows that the split is done. Nothing else can say so, and nothing else can disagree.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.schema import NO_FAULT, SCORED_COLUMNS, Task, scored_column_names
from bertray.score.plan import SUFFIX, Split, raise_if_outage, side_by_side
from bertray.storage import FileInfo

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
class Digests:
    """Whose work counts: that of one model under one group of settings.

    Attributes:
        model: of the model's files.
        settings: of the settings that change what is written.
    """

    model: str
    settings: str


@dataclass(frozen=True)
class Receipt:
    """What became of one split.

    Attributes:
        split_id: `Split.id`.
        output: name of the scored file.
        version: of the scored file, as a listing gives it; empty with a fault.
        num_rows: rows in it; 0 with a fault.
        status_counts: rows by prediction status.
        label_counts: rows by predicted label; a row of several labels counts for each. None where
            the model gives a number.
        stats: what the stages of this run did for it: seconds and counts by name.
        fault: why there is no scored file, or None.
        notes: warnings of the actor, for the driver to log.
    """

    split_id: str
    output: str
    version: str
    num_rows: int
    status_counts: dict[str, int]
    label_counts: dict[str, int]
    stats: Mapping[str, float]
    fault: str | None = None
    notes: Sequence[str] = ()

    @property
    def bad_rows(self) -> dict[str, int]:
        """Rows by status that hold a text and yet got no prediction."""
        return {status: n for status, n in self.status_counts.items() if is_bad(status)}

    def to_table(self) -> pa.Table:
        """One row, for the way to the driver."""
        return pa.table({"receipt": [json.dumps(asdict(self))]})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Receipt":
        """Undo `to_table`."""
        return cls(**json.loads(table["receipt"][0].as_py()))

    @classmethod
    def of_fault(cls, split: Split, reason: str) -> "Receipt":
        """The receipt of a split that could not be scored."""
        return cls(split.id, split.output, "", 0, {}, {}, {}, fault=reason)


def is_bad(status: str) -> bool:
    """Whether a row of this status held a text and yet got no prediction."""
    return status not in NO_FAULT


def read_footer(uri: str) -> dict[bytes, bytes] | None:
    """The footer's key-value metadata, or None if there is no readable Parquet file.

    Raises:
        StorageError: the place cannot be reached, so that nobody knows what is there.
    """
    try:
        with storage.open_input(uri) as file:
            return dict(pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException) as error:
        raise_if_outage(error, uri)
        return None


def is_commit(footer: Mapping[bytes, bytes] | None, split: Split, digests: Digests) -> bool:
    """Whether a footer says that its file is this split's, by this model and these settings."""
    return (
        footer is not None
        and footer.get(SPLIT_ID) == split.id.encode()
        and footer.get(MODEL_DIGEST) == digests.model.encode()
        and footer.get(SETTINGS_DIGEST) == digests.settings.encode()
    )


def list_outputs(output: str) -> dict[str, FileInfo]:
    """The scored files below an output folder, by name; none if there is no such folder."""
    if not storage.exists(output):
        return {}
    _, files = storage.list_files(output, suffix=SUFFIX, key="output.path")
    return {file.path: file for file in files}


def committed(
    splits: Iterable[Split], output: str, outputs: Mapping[str, FileInfo], digests: Digests
) -> Iterator[Receipt]:
    """Receipts of those splits whose commit the output folder holds, by reading footers.

    Args:
        splits: to look for.
        output: the folder.
        outputs: what a listing found there.
        digests: whose work counts.
    """
    candidates = [split for split in splits if split.output in outputs]

    def look(split: Split) -> Receipt | None:
        footer = read_footer(storage.join(output, split.output))
        if footer is None or not is_commit(footer, split, digests):
            return None
        return Receipt(
            split_id=split.id,
            output=split.output,
            version=outputs[split.output].version,
            num_rows=split.num_rows,
            status_counts=json.loads(footer[STATUS_COUNTS]),
            label_counts=json.loads(footer[LABEL_COUNTS]),
            stats={},
        )

    return (receipt for receipt in side_by_side(look, candidates) if receipt is not None)


def shards_of(output: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each scored file's name with that of its shard, as the footer says; other files left out."""
    footers = side_by_side(lambda name: read_footer(storage.join(output, name)), names)
    for name, footer in zip(names, footers, strict=True):
        if footer and SPLIT_ID in footer:
            yield name, footer.get(SHARD, b"").decode()


def task_of(output: str, names: Iterable[str], *, prefix: str) -> Task:
    """What the model of a folder does, by the scored columns; of one label while there are none.

    Args:
        output: the folder.
        names: of scored files; others are passed over.
        prefix: of the scored columns.
    """
    for name in names:
        uri = storage.join(output, name)
        try:
            with storage.open_input(uri) as file:
                columns = tuple(pq.read_schema(file).names)
        except (OSError, pa.ArrowException) as error:
            raise_if_outage(error, uri)
            continue
        for task in SCORED_COLUMNS:
            scored = scored_column_names(prefix, task)
            if columns[-len(scored) :] == scored:
                return task
    return "single_label"
