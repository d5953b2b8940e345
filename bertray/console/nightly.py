"""What `bertray nightly` shows."""

from typing import TYPE_CHECKING

from rich.markup import escape

from bertray.console.view import Facts, duration

if TYPE_CHECKING:
    from bertray.nightly.run import Outcome


def table_of(outcome: "Outcome") -> Facts:
    """What the night brought, and where to read of it."""
    night = outcome.night
    if night is None:
        table = Facts("nothing new: every shard was scored and reported before")
    else:
        table = Facts(f"night {night.id}")
        table.add_row("new rows", f"{night.num_rows_new:,} of {night.num_rows:,}")
        table.add_row("model", escape(night.model))
        table.add_row("time", duration(night.seconds))
        table.add_row("verdict", escape(night.trouble or "all well"))
        for note in night.notes:
            table.add_row("", escape(note))
    table.add_row("page", escape(outcome.page))
    table.add_row("all nights", escape(outcome.index))
    return table
