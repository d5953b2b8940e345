"""How far a run is, and what it did."""

from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bertray.config import Input
from bertray.errors import DataError
from bertray.score.commits import Receipt, is_bad
from bertray.score.plan import Plan
from bertray.score.pool import PoolPlan

IN_ACTOR = ("tokenize", "transfer", "compute")
STAGES = ("read", *IN_ACTOR, "write")


@dataclass(frozen=True)
class Progress:
    """How far a run is; rows count once their file stands in the output folder."""

    num_rows_done: int
    num_rows: int
    num_splits_done: int
    num_splits: int


@dataclass
class Summary:
    """What a run did, and what the output folder holds now.

    Attributes:
        num_rows: rows in the output folder.
        num_rows_scored: of these, rows that this run put there.
        splits_scored: ids of their splits.
        stats: seconds and counts of this run's stages, added up over splits and actors.
        pool: what this run's pipeline was made of; None if nothing was to do.
        seconds: wall clock of this run's pipeline, actors' start included; 0 if nothing was to do.
        status_counts: rows by prediction status.
        label_counts: rows by predicted label; a row of several labels counts for each. None where
            the model gives a number.
        quarantined: shards that are not in the output, each with ``shard`` and ``reason``.
        vanished: scored files of shards that are no longer in the input.
    """

    num_rows: int = 0
    num_rows_scored: int = 0
    splits_scored: set[str] = field(default_factory=set)
    stats: Counter[str] = field(default_factory=Counter)
    pool: PoolPlan | None = None
    seconds: float = 0.0
    status_counts: Counter[str] = field(default_factory=Counter)
    label_counts: Counter[str] = field(default_factory=Counter)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)

    def stages(self) -> dict[str, str]:
        """Where this run's time went, in words; seconds are added up over tasks and actors."""
        stats = self.stats
        busy = {name: stats[f"{name}_s"] for name in STAGES}
        total = sum(busy.values())
        if self.pool is None or not total:
            return {}
        # With one call at once an actor does its three in turn, else the longest hides the others.
        together = sum if self.pool.calls_per_actor == 1 else max
        in_actor = together(busy[name] for name in IN_ACTOR) / self.pool.max_actors
        by_helpers = max(("read", "write"), key=lambda name: busy[name])
        at_limit = (
            by_helpers
            if busy[by_helpers] / self.pool.max_helpers > in_actor
            else max(IN_ACTOR, key=lambda name: busy[name])
        )
        computed = max(stats["num_padded_tokens"], 1)
        rate = f"{stats['num_flops'] / max(stats['matmul_flops'], 1.0):.0%}"
        again = f"{stats['num_tokens_again'] / computed:.1%} of the tokens"
        return {
            "busy with": ", ".join(f"{name} {value / total:.0%}" for name, value in busy.items())
            + f"; limited by {at_limit}",
            **({"of torch's matmul rate": rate} if stats["num_flops"] else {}),
            "padding": f"{1 - stats['num_tokens'] / computed:.1%} of the tokens computed",
            **({"in doubt, computed again": again} if stats["num_tokens_again"] else {}),
            "repeated or empty texts": f"{stats['num_rows'] - stats['num_distinct']:,.0f}",
        }

    def record(self, *, versions: dict[str, str]) -> dict[str, Any]:
        """What a run leaves of itself beside its output.

        Args:
            versions: of the packages that it ran with.
        """
        return {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "rows": self.num_rows,
            "rows_scored": self.num_rows_scored,
            "stats": dict(self.stats),
            "pool": asdict(self.pool) if self.pool is not None else None,
            "notes": self.stages(),
            "versions": versions,
        }

    @property
    def num_rows_quarantined(self) -> int:
        """Rows that held a text and yet got no prediction."""
        return sum(n for status, n in self.status_counts.items() if is_bad(status))


class Tally:
    """Adds up receipts as they come, and says when too much is bad."""

    def __init__(self, plan: Plan) -> None:
        self.summary = Summary()
        self.receipts: list[Receipt] = []
        self._plan = plan
        self._num_faults = len(plan.bad_shards)

    def add(self, receipt: Receipt, *, is_new: bool) -> None:
        """Take up one receipt; ``is_new`` if this run scored the split."""
        summary = self.summary
        summary.num_rows += receipt.num_rows
        summary.status_counts.update(receipt.status_counts)
        summary.label_counts.update(receipt.label_counts)
        if is_new:
            summary.num_rows_scored += receipt.num_rows
            summary.splits_scored.add(receipt.split_id)
            summary.stats.update(receipt.stats)
        self._num_faults += receipt.fault is not None
        self.receipts.append(replace(receipt, stats={}, notes=()))

    def progress(self) -> Progress:
        """How far the run is."""
        plan = self._plan
        return Progress(self.summary.num_rows, plan.num_rows, len(self.receipts), len(plan.splits))

    def splits_by_state(self) -> dict[str, int]:
        """How many are pending, done and quarantined; a shard that has no plan counts as one."""
        num_splits, num_faults = len(self._plan.splits), self._num_faults
        return {
            "pending": num_splits - len(self.receipts),
            "done": len(self.receipts) - (num_faults - len(self._plan.bad_shards)),
            "quarantined": num_faults,
        }

    def num_rows_of(self, output: str) -> int:
        """Rows of the split whose file has this name."""
        splits = self._plan.splits  # sorted by that name
        return splits[bisect_left(splits, output, key=lambda split: split.output)].num_rows

    def check(self, source: Input) -> None:
        """Raise DataError if more is bad than the settings bear."""
        bad_rows = self.summary.num_rows_quarantined
        if source.on_bad_shard == "fail" and self._num_faults:
            raise DataError(f"{self._first_fault()} (input.on_bad_shard=fail)")
        if source.on_bad_row == "fail" and bad_rows:
            first = next(receipt for receipt in self.receipts if receipt.bad_rows)
            raise DataError(
                f"{first.output}: {sum(first.bad_rows.values())} rows without a prediction: "
                f"{', '.join(first.bad_rows)} (input.on_bad_row=fail)"
            )
        num_splits = len(self._plan.splits) + len(self._plan.bad_shards)
        if self._num_faults > source.max_bad_share * num_splits:
            raise DataError(
                f"{self._num_faults} of {num_splits} splits cannot be scored, more than "
                f"input.max_bad_share={source.max_bad_share:g}; one is {self._first_fault()}"
            )
        if bad_rows > source.max_bad_share * self._plan.num_rows:
            raise DataError(
                f"{bad_rows} of {self._plan.num_rows} rows have no prediction, more than "
                f"input.max_bad_share={source.max_bad_share:g}: "
                f"{', '.join(filter(is_bad, self.summary.status_counts))}"
            )

    def _first_fault(self) -> str:
        faults = [f"{bad.shard}: {bad.reason}" for bad in self._plan.bad_shards]
        faults += [f"{one.output}: {one.fault}" for one in self.receipts if one.fault is not None]
        return faults[0]
