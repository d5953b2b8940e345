"""What `bertray status` and `bertray score --dry-run` show."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bertray.console.view import MOST_NAMES, Facts, duration

if TYPE_CHECKING:
    from bertray.score.status import Status


def show_status(status: "Status") -> None:
    """Print where the work on an output folder stands, and what a run would do."""
    console = Console()
    table = Facts(f"{status.output}, scored from {status.input}")
    table.add_row("model", escape(status.model))
    table.add_row("done", f"{status.num_rows_done:,} of {status.num_rows:,} rows")
    table.add_row("", f"{status.num_splits_done:,} of {status.num_splits:,} splits")
    for reason, count in status.bad_rows.items():
        table.add_row(escape(f"no prediction: {reason}"), f"{count:,}")
    if status.holder is not None:
        holder = status.holder
        at_work = f"{holder.host}, process {holder.pid}, since {holder.started}"
        table.add_row("at work", escape(at_work))
    table.add_row("a run would", escape(_next_step(status)))
    console.print(table, crop=False)
    bad = [f"quarantined: {shard.shard}: {shard.reason}" for shard in status.quarantined]
    _print_some(console, bad, style="red")
    for what, names in (
        ("its shard has changed", status.stale),
        ("its shard is cut otherwise now", status.outdated),
        ("its shard is gone; output.prune=true removes it", status.vanished),
    ):
        _print_some(console, [f"{name}: {what}" for name in names], style="yellow")


def _print_some(console: Console, lines: list[str], *, style: str) -> None:
    """The first lines, and how many more there are: a screen holds no more."""
    for line in lines[:MOST_NAMES]:
        console.print(line, style=style, markup=False, soft_wrap=True)
    if len(lines) > MOST_NAMES:
        console.print(f"... and {len(lines) - MOST_NAMES:,} more", style=style)


def _next_step(status: "Status") -> str:
    """What a run would do, in words."""
    rows = status.num_rows - status.num_rows_done
    splits = status.num_splits - status.num_splits_done
    if splits:
        time_needed = f", about {duration(status.seconds)}" if status.seconds is not None else ""
        return f"score {rows:,} rows in {splits:,} splits{time_needed}"
    if status.quarantined:
        return "try the quarantined shards again"
    if status.outdated or not status.complete:
        return "write the manifest and _SUCCESS"
    return "do nothing: all is done"
