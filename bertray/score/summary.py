"""How far a run is, and what it did."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bertray.schema import NOTHING_TO_SCORE, OK
from bertray.score.sink import Receipt

STAGES = ("read", "tokenize", "transfer", "compute", "write")


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
        stats: seconds and counts of this run's stages, added up over splits and actors.
        seconds: wall clock of this run's pipeline, actors' start included; 0 if nothing was to do.
        status_counts: rows by prediction status.
        label_counts: rows by predicted label.
        quarantined: shards that are not in the output, each with ``shard`` and ``reason``.
    """

    num_rows: int = 0
    num_rows_scored: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    status_counts: Counter[str] = field(default_factory=Counter)
    label_counts: Counter[str] = field(default_factory=Counter)
    quarantined: list[dict[str, str]] = field(default_factory=list)

    def stages(self) -> dict[str, str]:
        """Where this run's time went, in words; seconds are added up over tasks and actors."""
        stats = self.stats
        busy = {name: stats[f"{name}_s"] for name in STAGES}
        total = sum(busy.values())
        if not total:
            return {}
        # An actor does its three in turn, or the longest of them hides the others; of reading and
        # writing tasks there are twice as many as actors.
        in_actor = busy["tokenize"] + busy["transfer"] + busy["compute"]
        slowest = max(in_actor, busy["read"] / 2, busy["write"] / 2)
        at_limit = (
            max(busy, key=lambda name: busy[name]) if slowest == in_actor else "read or write"
        )
        return {
            "busy with": ", ".join(f"{name} {value / total:.0%}" for name, value in busy.items())
            + f"; limited by {at_limit}",
            "of torch's matmul rate": f"{stats['num_flops'] / max(stats['matmul_flops'], 1.0):.0%}",
            "padding": f"{1 - stats['num_tokens'] / max(stats['num_padded_tokens'], 1):.1%}"
            " of the tokens computed",
            "repeated or empty texts": f"{stats['num_rows'] - stats['num_distinct']:,.0f}",
        }

    @property
    def num_rows_quarantined(self) -> int:
        """Rows that held a text and yet got no prediction."""
        harmless = {OK, *NOTHING_TO_SCORE}
        return sum(n for status, n in self.status_counts.items() if status not in harmless)


def summarize(
    receipts: Sequence[Receipt],
    *,
    new: Sequence[Receipt],
    seconds: float,
    bad: list[dict[str, str]],
) -> Summary:
    """Add up receipts; ``new`` are this run's."""
    summary = Summary(
        num_rows=sum(receipt.num_rows for receipt in receipts),
        num_rows_scored=sum(receipt.num_rows for receipt in new),
        seconds=seconds,
        quarantined=bad,
    )
    for receipt in new:
        summary.stats.update(receipt.stats)
    for receipt in receipts:
        summary.status_counts.update(receipt.status_counts)
        summary.label_counts.update(receipt.label_counts)
    return summary
