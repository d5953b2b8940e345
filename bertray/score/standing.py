"""Where the work on an output folder stands: what is done, missing, outdated, left over.

Scoring goes on from here, a dry run and `bertray status` show it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from bertray import storage
from bertray.config import Input
from bertray.score.commits import Digests, Receipt, committed, list_outputs, shards_of
from bertray.score.index import Index
from bertray.score.plan import Plan, Split, plan_splits
from bertray.storage import FileInfo

# Footers give the size of encoded columns. Decoded they take more room: a split is cut so that it
# keeps well below the limit that reading stops at.
DECODED_OVER_ENCODED = 4


@dataclass(frozen=True)
class Standing:
    """The plan of a run, and what the output folder holds of it.

    Attributes:
        plan: all splits of the input.
        done: receipts of those that are committed.
        pending: the others.
        stale: of the pending ones, names of scored files of an older version of their shard.
        outdated: scored files of shards that are still there but are cut into other splits now.
            Their rows would be read twice; a run removes them at its end.
        vanished: scored files of shards that are gone. Only ``output.prune`` removes them.
        index: for the next plan.
    """

    plan: Plan
    done: tuple[Receipt, ...]
    pending: tuple[Split, ...]
    stale: tuple[str, ...]
    outdated: tuple[str, ...]
    vanished: tuple[str, ...]
    index: Index

    def of_empty_folder(self) -> "Standing":
        """The same plan when all that the folder held has been removed."""
        pending = self.plan.splits
        return replace(self, done=(), pending=pending, stale=(), outdated=(), vanished=())


def take_stock(
    source: Input, output: str, digests: Digests, *, check_schema: Callable[[pa.Schema, str], None]
) -> Standing:
    """List input and output, and read the footers that the index does not know.

    Args:
        source: the shards.
        output: the folder of the scored ones; need not exist.
        digests: whose work counts.
        check_schema: as `plan_splits` takes it.

    Raises:
        UserError: as `plan_splits`.
    """
    outputs = list_outputs(output)
    index = Index(output, digests)
    index.read(outputs)
    plan = plan_splits(
        storage.absolute(source.path),
        check_schema=check_schema,
        max_split_rows=source.max_split_rows,
        max_split_bytes=source.max_split_bytes // DECODED_OVER_ENCODED,
        known=index.splits_by_shard(),
    )
    receipts = {split.id: index.receipt(split) for split in plan.splits}
    unknown = [split for split in plan.splits if receipts[split.id] is None]
    by_split = {split.id: split for split in unknown}
    for receipt in committed(unknown, output, outputs, digests):
        receipts[receipt.split_id] = receipt
        index.add(by_split[receipt.split_id], receipt)
    pending = tuple(split for split in plan.splits if receipts[split.id] is None)
    outdated, vanished = _left_over(plan, output, outputs, index)
    return Standing(
        plan=plan,
        done=tuple(receipt for receipt in receipts.values() if receipt is not None),
        pending=pending,
        stale=tuple(split.output for split in pending if split.output in outputs),
        outdated=outdated,
        vanished=vanished,
        index=index,
    )


def _left_over(
    plan: Plan, output: str, outputs: dict[str, FileInfo], index: Index
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Scored files that are no split's: of shards that are cut otherwise now, of shards gone."""
    current = {split.output for split in plan.splits}
    shards = {split.shard for split in plan.splits}
    unreadable = {bad.shard for bad in plan.bad_shards}
    others = [name for name in outputs if name not in current]
    made_of = {name: shard for name in others if (shard := index.shard(name)) is not None}
    made_of |= shards_of(output, [name for name in others if name not in made_of])
    outdated = tuple(sorted(name for name, shard in made_of.items() if shard in shards))
    gone = {name for name, shard in made_of.items() if shard not in shards | unreadable}
    return outdated, tuple(sorted(gone))
