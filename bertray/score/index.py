"""The index: what the footers of an output folder say, in one small file, for the next plan.

A cache and nothing more. An entry counts only while a listing shows the scored file in the very
version that was committed; what the index does not know is read from the footers. So it may be
lost, old or half written, and a run is merely slower. Reading 10,000 footers is 10,000 requests,
reading this is one, and a listing gives the rest.

_index/NAME.index   segments, Parquet that no glob of *.parquet takes for scored rows; a run writes
one now and then, and merges them when it ends
"""

import io
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import storage
from bertray.score.commits import MODEL_DIGEST, SETTINGS_DIGEST, Digests, Receipt
from bertray.score.plan import Split, side_by_side
from bertray.storage import FileInfo

logger = logging.getLogger(__name__)

FOLDER = "_index"
SEGMENT_SUFFIX = ".index"
SEGMENT_ENTRIES = 5_000
SEGMENT_SECONDS = 30.0

SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("version", pa.string()),
        ("shard", pa.string()),
        ("shard_version", pa.string()),
        ("shard_size_bytes", pa.int64()),
        ("first_row_group", pa.int32()),
        ("num_row_groups", pa.int32()),
        ("shard_row_groups", pa.int32()),
        ("num_rows", pa.int64()),
        ("size_bytes", pa.int64()),
        ("status_counts", pa.string()),
        ("label_counts", pa.string()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A split and the receipt of its commit."""

    split: Split
    receipt: Receipt


class Index:
    """The entries of one output folder under one model and one group of settings."""

    def __init__(self, output: str, digests: Digests) -> None:
        self._folder = storage.join(output, FOLDER)
        self._digests = digests
        self._segments: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._unsaved: list[Entry] = []
        self._last_save = time.monotonic()

    def read(self, outputs: Mapping[str, FileInfo]) -> None:
        """Load what earlier runs wrote down.

        Args:
            outputs: what a listing shows now; entries of other versions are forgotten.
        """
        if not outputs or not storage.exists(self._folder):
            return
        _, files = storage.list_files(self._folder, suffix=SEGMENT_SUFFIX, key="output.path")
        self._segments = [storage.join(self._folder, file.path) for file in files]
        for entries in side_by_side(self._load, self._segments):
            for entry in entries:
                there = outputs.get(entry.split.output)
                if there is not None and there.version == entry.receipt.version:
                    self._entries[entry.split.output] = entry

    def receipt(self, split: Split) -> Receipt | None:
        """The receipt of a split that is committed, as far as the index knows."""
        entry = self._entries.get(split.output)
        return entry.receipt if entry is not None and entry.receipt.split_id == split.id else None

    def receipts(self) -> dict[str, Receipt]:
        """The receipts of all commits that the index knows, by scored file."""
        return {output: entry.receipt for output, entry in self._entries.items()}

    def shard(self, output: str) -> str | None:
        """The shard that a scored file was made of, as far as the index knows."""
        entry = self._entries.get(output)
        return entry.split.shard if entry is not None else None

    def splits_by_shard(self) -> dict[str, list[Split]]:
        """Splits that were committed, in order within each shard."""
        splits = defaultdict(list)
        for entry in sorted(self._entries.values(), key=lambda entry: entry.split.first_row_group):
            splits[entry.split.shard].append(entry.split)
        return splits

    def add(self, split: Split, receipt: Receipt) -> None:
        """Take up one commit, without writing."""
        entry = Entry(split, replace(receipt, stats={}, notes=()))
        self._entries[split.output] = entry
        self._unsaved.append(entry)

    def save_some(self) -> None:
        """Write a segment if there is much to lose, or if the last one is some time ago."""
        late = time.monotonic() - self._last_save > SEGMENT_SECONDS
        if late or len(self._unsaved) >= SEGMENT_ENTRIES:
            self._save(self._unsaved)
            self._unsaved = []

    def close(self) -> None:
        """Write what is not written yet, and merge all segments into one."""
        if not self._unsaved and len(self._segments) < 2:
            return
        old, self._segments, self._unsaved = self._segments, [], []
        self._save([entry for _, entry in sorted(self._entries.items())])
        if self._segments:
            _remove(old)

    def _save(self, entries: list[Entry]) -> None:
        """A new segment. Failing to write one costs the next plan some time, and nothing else."""
        self._last_save = time.monotonic()
        names = (MODEL_DIGEST, self._digests.model), (SETTINGS_DIGEST, self._digests.settings)
        table = pa.Table.from_pylist(
            [_to_row(entry) for entry in entries], schema=SCHEMA
        ).replace_schema_metadata(dict(names))
        sink = io.BytesIO()
        # Versions and names hardly repeat; the other columns do.
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=9,
            use_dictionary=["shard", "status_counts", "label_counts"],
        )
        uri = storage.join(self._folder, f"{uuid.uuid4().hex}{SEGMENT_SUFFIX}")
        try:
            storage.put_bytes(uri, sink.getvalue())
            self._segments.append(uri)
        except Exception as error:  # each cloud's client has errors of its own
            logger.warning("%s: cannot be written, the next run will plan slower: %s", uri, error)

    def _load(self, uri: str) -> list[Entry]:
        """A segment's entries; none if it is another model's, damaged, or gone by now."""
        data = storage.get_bytes(uri)
        if data is None:
            return []
        try:
            table = pq.read_table(pa.BufferReader(data))
            found = table.schema.metadata or {}
            mine = {
                MODEL_DIGEST: self._digests.model.encode(),
                SETTINGS_DIGEST: self._digests.settings.encode(),
            }
            if not mine.items() <= found.items() or not table.schema.equals(SCHEMA):
                return []
            return [_from_row(row) for row in table.to_pylist()]
        except (pa.ArrowException, OSError, ValueError, TypeError):
            return []


def _remove(segments: list[str]) -> None:
    for segment in segments:
        try:
            storage.remove(segment)
        except Exception as error:  # each cloud's client has errors of its own
            logger.warning("%s: cannot be removed: %s", segment, error)


def _to_row(entry: Entry) -> dict[str, object]:
    split, receipt = entry.split, entry.receipt
    return {
        "output": split.output,
        "version": receipt.version,
        "shard": split.shard,
        "shard_version": split.shard_version,
        "shard_size_bytes": split.shard_size_bytes,
        "first_row_group": split.first_row_group,
        "num_row_groups": split.num_row_groups,
        "shard_row_groups": split.shard_row_groups,
        "num_rows": split.num_rows,
        "size_bytes": split.size_bytes,
        "status_counts": json.dumps(receipt.status_counts),
        "label_counts": json.dumps(receipt.label_counts),
    }


def _from_row(row: dict[str, object]) -> Entry:
    statuses, labels = json.loads(str(row.pop("status_counts"))), row.pop("label_counts")
    version = str(row.pop("version"))
    split = Split(root="", **row)  # type: ignore[arg-type]
    receipt = Receipt(
        split_id=split.id,
        output=split.output,
        version=version,
        num_rows=split.num_rows,
        status_counts=statuses,
        label_counts=json.loads(str(labels)),
        stats={},
    )
    return Entry(split, receipt)
