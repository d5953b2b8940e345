"""One block, one file, put atomically; and a receipt that goes to the driver.

The receipts are the last stage of the Ray Data pipeline: the driver counts them as they come, so
that progress is what stands on disk, and it never holds rows.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertray import __version__, storage
from bertray.errors import DataError, StorageError
from bertray.schema import (
    Task,
    append_predictions,
    is_list,
    no_predictions,
    scored_column_names,
)
from bertray.score import commits
from bertray.score.commits import Digests, Receipt, is_commit, read_footer
from bertray.score.contract import raise_if_taken
from bertray.score.ledger import Attempts, TooManyDeathsError
from bertray.score.plan import Split, one_line, side_by_side
from bertray.score.source import (
    BLOCK_FAULT,
    BLOCK_NOTES,
    BLOCK_SPLIT,
    BLOCK_STATS,
    Reading,
    fault_of,
    raise_if_changed,
    read_block,
    split_of,
    stats_of,
)

CONTENDERS = 5  # tries to put one file while others put theirs


@dataclass(frozen=True)
class ShardSink:
    """Writes scored blocks below one output folder.

    Attributes:
        output: the folder or URI.
        digests: go into each footer.
        engine: likewise: device class, backend and number type, which decide the last bits.
        prefix: of the scored columns.
        keep_bad_rows: write rows whose text the model could not classify; else nothing is
            written of their split.
        attempts: bounds how often a split may kill its worker; None outside of a cluster.
        task: of the model, which says what the scored columns are.
    """

    output: str
    digests: Digests
    engine: str
    prefix: str
    keep_bad_rows: bool
    attempts: Attempts | None
    task: Task = "single_label"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Commit one block and give its receipt as a table of one row."""
        split, fault = split_of(block), fault_of(block)
        if fault is not None:
            return Receipt.of_fault(split, fault).to_table()
        try:
            with self.attempts.one("writing", split.id) if self.attempts else nullcontext():
                return self.write(block, split).to_table()
        except (DataError, TooManyDeathsError) as error:
            return Receipt.of_fault(split, one_line(error)).to_table()

    def write_empty(
        self, splits: Sequence[Split], *, reading: Reading, labels: Sequence[str]
    ) -> list[Receipt]:
        """Give shards without rows their scored twins; Ray Data hands on no empty blocks."""

        def one(split: Split) -> Receipt:
            block = read_block(split, reading)
            if fault_of(block) is None:
                passed = block.select(reading.passed(block.column_names))
                nothing = no_predictions(num_labels=len(labels))
                block = append_predictions(
                    passed, nothing, labels=labels, task=self.task, prefix=self.prefix
                )
            return Receipt.from_table(self(block))

        return side_by_side(one, splits)

    def write(self, block: pa.Table, split: Split) -> Receipt:
        """Put a block's rows at the split's output name, footer and all.

        Raises:
            DataError: rows were lost, or the shard changed meanwhile.
            StorageError: the file cannot be put.
        """
        start = time.perf_counter()
        if block.num_rows != split.num_rows:
            raise DataError(
                f"{block.num_rows} rows arrived, the footer says {split.num_rows}; "
                "the shard changed while it was read: run again"
            )
        receipt = self._receipt(block, split)
        if receipt.bad_rows and not self.keep_bad_rows:
            reasons = ", ".join(f"{reason} ({n} rows)" for reason, n in receipt.bad_rows.items())
            return replace(receipt, num_rows=0, fault=f"rows without a prediction: {reasons}")
        uri = storage.join(self.output, split.output)
        try:
            version = self._put(block, receipt, split, uri)
        except OSError as error:
            raise StorageError(
                f"{uri}: cannot be written: {storage.reason_of(error)}; "
                "what is done is safe: mend that and run again"
            ) from error
        seconds = {"write_s": time.perf_counter() - start}
        return replace(receipt, version=version, stats={**receipt.stats, **seconds})

    def _put(self, block: pa.Table, receipt: Receipt, split: Split, uri: str) -> str:
        """Make the file appear, or find it there; gives its version."""
        with storage.staging(uri) as staged:
            metadata = {
                key: value
                for key, value in (block.schema.metadata or {}).items()
                if key not in (BLOCK_SPLIT, BLOCK_FAULT, BLOCK_STATS, BLOCK_NOTES)
            }
            # Pinned, so that the same rows give the same bytes.
            pq.write_table(
                block.replace_schema_metadata({**metadata, **self._footer(receipt, split)}),
                staged,
                version="2.6",
                compression="zstd",
                compression_level=3,
                row_group_size=128 * 1024,
                write_page_checksum=True,
            )
            self._raise_if_unwanted(split)
            for _ in range(CONTENDERS):
                if storage.publish(staged, uri):
                    return storage.version_of(uri)
                version = storage.version_of(uri)
                if is_commit(read_footer(uri), split, self.digests):
                    return version
                # What is there is another version's: an older one's, unless we are the late ones.
                self._raise_if_unwanted(split)
                if storage.publish(staged, uri, replaces=version):
                    return storage.version_of(uri)
        raise StorageError(f"{uri}: others write there again and again; is another job at work?")

    def _raise_if_unwanted(self, split: Split) -> None:
        """A worker that was cut off for a while puts nothing into a folder that has moved on."""
        raise_if_taken(self.output, self.digests)
        raise_if_changed(split)

    def _receipt(self, block: pa.Table, split: Split) -> Receipt:
        *_, status = scored_column_names(self.prefix, self.task)
        return Receipt(
            split_id=split.id,
            output=split.output,
            version="",
            num_rows=block.num_rows,
            stats=stats_of(block),
            notes=json.loads((block.schema.metadata or {}).get(BLOCK_NOTES, b"[]")),
            status_counts=_count(block.column(status)),
            label_counts=self._label_counts(block),
        )

    def _label_counts(self, block: pa.Table) -> dict[str, int]:
        if self.task == "regression":
            return {}
        label, *_ = scored_column_names(self.prefix, self.task)
        labels = block.column(label)
        return _count((pc.list_flatten(labels) if is_list(labels.type) else labels).drop_null())

    def _footer(self, receipt: Receipt, split: Split) -> dict[bytes, bytes]:
        return {
            commits.SPLIT_ID: receipt.split_id.encode(),
            commits.SHARD: split.shard.encode(),
            commits.MODEL_DIGEST: self.digests.model.encode(),
            commits.SETTINGS_DIGEST: self.digests.settings.encode(),
            commits.ENGINE: self.engine.encode(),
            commits.STATUS_COUNTS: json.dumps(receipt.status_counts).encode(),
            commits.LABEL_COUNTS: json.dumps(receipt.label_counts).encode(),
            commits.VERSION: __version__.encode(),
        } | _halvings(receipt)


def _halvings(receipt: Receipt) -> dict[bytes, bytes]:
    """Named only where memory ran out: the last bits may not be those of another run."""
    count = receipt.stats.get("num_halvings", 0)
    return {commits.NUM_HALVINGS: str(int(count)).encode()} if count else {}


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    """Rows by value, most first; ties by name, so that equal rows give equal bytes."""
    pairs = Counter(
        {pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()}
    )
    return dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0])))
