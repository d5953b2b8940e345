"""What `bertray score` shows, and the progress of all jobs that go through rows."""

import logging
from typing import TYPE_CHECKING

from rich.markup import escape

from bertray.console.view import MOST_LABELS, Facts, View, duration

if TYPE_CHECKING:
    from bertray.config import ScoreConfig
    from bertray.score.summary import Progress, Summary

logger = logging.getLogger(__name__)


class ScoreView(View):
    """Rows done of rows known, rows a second, time left; elsewhere a log line at times."""

    def __init__(self, what: str) -> None:
        super().__init__(what, unit="rows")
        self._what = what

    def update(self, progress: "Progress") -> None:
        """Show how far the run is."""
        rate = self.rate(progress.num_rows_done)
        self.bar.update(
            self.task,
            description=self._what,
            completed=progress.num_rows_done,
            total=progress.num_rows,
            note=f"· {rate:,.0f} rows/s " if rate else "",
        )
        if self.is_line_due():
            logger.info(
                "%s rows=%d/%d splits=%d/%d rows_per_s=%.0f",
                self._what,
                progress.num_rows_done,
                progress.num_rows,
                progress.num_splits_done,
                progress.num_splits,
                rate,
            )

    def finish(self, summary: "Summary", config: "ScoreConfig") -> None:
        """What stands in the output folder, and what this run did for it."""
        table = Facts(f"scored into {config.output.path}")
        table.add_row("rows", f"{summary.num_rows:,}")
        if summary.num_rows_scored:
            table.add_row("of these scored now", f"{summary.num_rows_scored:,}")
            table.add_row("rows/s", f"{summary.num_rows_scored / summary.seconds:,.0f}")
            table.add_row("tokens/s", f"{summary.stats['num_tokens'] / summary.seconds:,.0f}")
            table.add_row("time", duration(summary.seconds))
            for name, value in summary.stages().items():
                table.add_row(name, value)
        else:
            if not summary.seconds:
                reason = "every shard was done already"
            elif summary.quarantined:
                reason = "what was left to do is quarantined"
            else:
                reason = "no shard held rows"
            table.add_row("of these scored now", f"none: {reason}")
        for label, count in summary.label_counts.most_common(MOST_LABELS):
            table.add_row(escape(f"labelled {label}"), f"{count:,}")
        rest = len(summary.label_counts) - MOST_LABELS
        if rest > 0:
            table.add_row("labelled otherwise", f"{rest} more labels")
        for status, count in summary.status_counts.items():
            if status == "abstained":
                table.add_row("abstained", f"{count:,} ({count / summary.num_rows:.1%})")
            elif status != "ok":
                table.add_row(escape(f"not scored: {status}"), f"{count:,}")
        self.show(table)
        for shard in summary.quarantined:
            self.console.print(
                f"quarantined: {shard['shard']}: {shard['reason']}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
