"""What `bertray report` shows."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bertray.console.view import Facts

if TYPE_CHECKING:
    from bertray.report.run import Report


def show_report(report: "Report") -> None:
    """Print what drifted, and where the page lies."""
    table = Facts(f"report on {report.num_rows:,} rows")
    if report.num_quarantined:
        table.add_row("shards left out", f"{report.num_quarantined:,}")
    for one in report.verdicts:
        found = f"{one.divergence:.4f} bits, threshold {one.threshold:.4f}"
        table.add_row(one.signal, f"[yellow]drifted[/]: {found}" if one.drifted else found)
    if report.num_examples:
        table.add_row("rows explained", f"{report.num_examples:,}")
    table.add_row("page", escape(report.page))
    Console().print(table, crop=False)
