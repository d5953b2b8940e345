"""One live line of progress, and what all summaries look like.

On a terminal one live line; elsewhere (a log, a job) a plain line at most every half minute.
"""

from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.table import Table

MOST_LABELS = 12
MOST_NAMES = 6


def facts(title: str) -> Table:
    """Names and what they are, to be filled."""
    table = Table(
        title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def duration(seconds: float) -> str:
    """Minutes and seconds, or seconds alone."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


class View:
    """One live line on a terminal, kept up to date by a job; nothing elsewhere."""

    def __init__(self, what: str, *, unit: str) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[note]}· elapsed"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.task = self.bar.add_task(f"{what}: preparing", total=None, unit=unit, note="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, table: Table) -> None:
        """Print a summary on stdout, below what the live line leaves."""
        self.bar.stop()
        Console().print(table)
