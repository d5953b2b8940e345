"""One block, one file, put atomically; and a receipt that goes to the driver.

The receipts are the last stage of the Ray Data pipeline: the driver counts them as they come, so
that progress is what stands on disk, and it never holds rows.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertray import __version__, storage
from bertray.errors import StorageError
from bertray.schema import scored_column_names
from bertray.score import plan
from bertray.score.plan import Split
from bertray.score.source import (
    BLOCK_FAULT,
    BLOCK_NOTES,
    BLOCK_SPLIT,
    BLOCK_STATS,
    fault_of,
    split_of,
    stats_of,
)


@dataclass(frozen=True)
class Receipt:
    """What became of one split.

    Attributes:
        split_id: `Split.id`.
        output: name of the scored file.
        num_rows: rows in it; 0 with a fault.
        stats: what the stages of this run did for it: seconds and counts by name.
        status_counts: rows by prediction status.
        label_counts: rows by predicted label.
        fault: why there is no scored file, or None.
        notes: warnings of the actor, for the driver to log.
    """

    split_id: str
    output: str
    num_rows: int
    stats: dict[str, float]
    status_counts: dict[str, int]
    label_counts: dict[str, int]
    fault: str | None = None
    notes: Sequence[str] = ()

    def to_table(self) -> pa.Table:
        """One row, for the way to the driver."""
        return pa.table({"receipt": [json.dumps(asdict(self))]})

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Undo `to_table`."""
        return cls(**json.loads(text))

    @classmethod
    def from_footer(cls, split: Split, footer: dict[bytes, bytes]) -> "Receipt":
        """The receipt of a split that an earlier run committed."""
        return cls(
            split_id=split.id,
            output=split.output,
            num_rows=split.num_rows,
            stats={},
            status_counts=json.loads(footer[plan.STATUS_COUNTS]),
            label_counts=json.loads(footer[plan.LABEL_COUNTS]),
        )


@dataclass(frozen=True)
class ShardSink:
    """Writes scored blocks below one output folder.

    Attributes:
        output: the folder or URI.
        model_digest: goes into each footer.
        settings_digest: likewise.
        engine: likewise: device class, backend and number type, which decide the last bits.
        prefix: of the scored columns.
    """

    output: str
    model_digest: str
    settings_digest: str
    engine: str
    prefix: str

    def __call__(self, block: pa.Table) -> pa.Table:
        """Commit one block and give its receipt as a table of one row."""
        split, fault = split_of(block), fault_of(block)
        if fault is not None:
            return Receipt(split.id, split.output, 0, {}, {}, {}, fault).to_table()
        return self.write(block, split).to_table()

    def write(self, block: pa.Table, split: Split) -> Receipt:
        """Put a block's rows at the split's output name, footer and all.

        Raises:
            StorageError: rows were lost on the way here, or the file cannot be put.
        """
        if block.num_rows != split.num_rows:
            raise StorageError(
                f"{split.shard}: {block.num_rows} rows arrived, the footer says {split.num_rows}; "
                "the shard changed while it was read: run again"
            )
        start = time.perf_counter()
        receipt = self._receipt(block, split)
        uri = storage.join(self.output, split.output)
        footer = self._footer(receipt, split)
        with storage.staging(uri) as staged:
            metadata = {
                key: value
                for key, value in (block.schema.metadata or {}).items()
                if key not in (BLOCK_SPLIT, BLOCK_FAULT, BLOCK_STATS, BLOCK_NOTES)
            }
            # Pinned, so that the same rows give the same bytes.
            pq.write_table(
                block.replace_schema_metadata({**metadata, **footer}),
                staged,
                version="2.6",
                compression="zstd",
                compression_level=3,
                row_group_size=128 * 1024,
                write_page_checksum=True,
            )
            if not storage.publish(staged, uri) and not self._is_there(uri, split):
                # What is there is another version's: an older one's, unless we are the late ones.
                if storage.version_of(storage.join(split.root, split.shard)) != split.shard_version:
                    raise StorageError(f"{split.shard}: changed while it was scored; run again")
                storage.publish(staged, uri, overwrite=True)
        seconds = {"write_s": time.perf_counter() - start}
        return replace(receipt, stats=receipt.stats | seconds)

    def _is_there(self, uri: str, split: Split) -> bool:
        footer = plan.read_footer(uri)
        return footer is not None and plan.is_commit(
            footer,
            split,
            model_digest=self.model_digest,
            settings_digest=self.settings_digest,
        )

    def _receipt(self, block: pa.Table, split: Split) -> Receipt:
        label, _, _, status = scored_column_names(self.prefix)
        return Receipt(
            split_id=split.id,
            output=split.output,
            num_rows=block.num_rows,
            stats=stats_of(block),
            notes=json.loads((block.schema.metadata or {}).get(BLOCK_NOTES, b"[]")),
            status_counts=_count(block.column(status)),
            label_counts=_count(block.column(label).drop_null()),
        )

    def _footer(self, receipt: Receipt, split: Split) -> dict[bytes, bytes]:
        return {
            plan.SPLIT_ID: receipt.split_id.encode(),
            plan.SHARD: split.shard.encode(),
            plan.MODEL_DIGEST: self.model_digest.encode(),
            plan.SETTINGS_DIGEST: self.settings_digest.encode(),
            plan.ENGINE: self.engine.encode(),
            plan.STATUS_COUNTS: json.dumps(receipt.status_counts).encode(),
            plan.LABEL_COUNTS: json.dumps(receipt.label_counts).encode(),
            plan.VERSION: __version__.encode(),
        } | _halvings(receipt)


def _halvings(receipt: Receipt) -> dict[bytes, bytes]:
    """Named only where memory ran out: the last bits may not be those of another run."""
    count = receipt.stats.get("num_halvings", 0)
    return {plan.NUM_HALVINGS: str(int(count)).encode()} if count else {}


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    """Rows by value, most first; ties by name, so that equal rows give equal bytes."""
    pairs = Counter(
        {pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()}
    )
    return dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0])))
