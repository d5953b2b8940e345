"""What `bertray doctor` shows."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bertray.doctor import Finding


def show_findings(findings: "Iterable[Finding]") -> bool:
    """Print each finding as it comes; False if one of them would fail a job."""
    console = Console()
    fine = True
    for finding in findings:
        fine = fine and finding.ok
        mark, style = ("ok", "green") if finding.ok else ("!!", "bold red")
        console.print(
            f"{mark}  {finding.what}: {finding.found}",
            style=style,
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if finding.advice:
            console.print(f"    {finding.advice}", highlight=False, markup=False, soft_wrap=True)
    return fine
