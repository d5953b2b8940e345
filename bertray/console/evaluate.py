"""What `bertray evaluate` shows."""

from typing import TYPE_CHECKING

from rich.markup import escape

from bertray.console.view import Facts

if TYPE_CHECKING:
    from bertray.config import EvaluateConfig
    from bertray.evaluate.evaluation import Evaluation


def table_of(result: "Evaluation", config: "EvaluateConfig") -> Facts:
    """The metrics, and where they were written."""
    table = Facts(f"evaluated {config.model.path} on {config.data.path}")
    table.add_row("rows", f"{result.num_rows:,}")
    for reason, count in result.left_out.items():
        table.add_row(escape(f"left out: {reason}"), f"{count:,}")
    for name, value in result.metrics.items():
        interval = result.intervals.get(name)
        between = f"  ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        table.add_row(name, f"{value:.4f}{between}")
    if result.copy is not None:
        copy, before = result.copy, result.metrics
        table.add_row("calibrated copy", escape(copy.path))
        for name, value in copy.metrics.items():
            table.add_row(f"its {name}", f"{value:.4f}, was {before[name]:.4f}")
    if result.verdict is not None:
        verdict = result.verdict
        said = "promoted" if verdict.is_passed else "refused"
        table.add_row("gate", escape(f"{verdict.version} {said}"))
        for rule in verdict.rules:
            mark = "" if rule.holds else "[bold red]broken[/] "
            table.add_row("", f"{mark}{escape(str(rule))}")
    table.add_row("written to", escape(config.output.path))
    return table
