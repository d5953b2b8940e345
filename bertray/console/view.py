"""One live line of progress, and what all summaries look like.

On a terminal one live line; elsewhere (a log, a job) a plain line at most every half minute.
"""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.text import Text

if TYPE_CHECKING:
    from bertray.lease import Holder

logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0
MOST_LABELS = 12
MOST_NAMES = 6


class Facts:
    """A title, and names with what they are, a line each.

    A line is never broken, however long, so that a path in it can be copied.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: list[tuple[str, str]] = []

    def add_row(self, name: str, value: str) -> None:
        """One more line, in Rich's markup."""
        self._rows.append((name, value))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        if self._title:
            yield Text(self._title, style="italic", no_wrap=True, overflow="ignore")
        names = [Text.from_markup(name, style="dim", emoji=False) for name, _ in self._rows]
        width = max((name.cell_len for name in names), default=0)
        for name, (_, value) in zip(names, self._rows, strict=True):
            name.pad_right(width - name.cell_len)
            line = Text("  ", no_wrap=True, overflow="ignore")
            yield line.append(name).append("    ").append(Text.from_markup(value, emoji=False))


def duration(seconds: float) -> str:
    """Minutes and seconds, or seconds alone."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


class View:
    """One live line on a terminal, kept up to date by a job; elsewhere a log line at times."""

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
        self._said = time.monotonic()
        self._start: tuple[float, int] | None = None
        self.task = self.bar.add_task(f"{what}: preparing", total=None, unit=unit, note="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def wait(self, holder: "Holder") -> None:
        """Say for whom the run waits."""
        logger.warning(
            "another run is at work on this output (%s, process %d, since %s); waiting for its end",
            holder.host,
            holder.pid,
            holder.started,
        )

    def is_line_due(self) -> bool:
        """Whether to log how far the job is; asked for as often as one likes."""
        now = time.monotonic()
        if self.live or now - self._said < LOG_EVERY_S:
            return False
        self._said = now
        return True

    def rate(self, num_done: int) -> float:
        """Units a second since this was first asked for; 0 then."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, num_done
        began, done_then = self._start
        return (num_done - done_then) / (now - began) if now > began else 0.0

    def show(self, table: RenderableType) -> None:
        """Print a summary on stdout, below what the live line leaves."""
        self.bar.stop()
        Console().print(table, crop=False)
