"""What `bertray explain` shows."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from bertray.console.view import MOST_NAMES, Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bertray.report.explain import Explanation

FAINTEST, STRONG = 0.08, 0.5  # of the strongest word's attribution


def show_explanation(explanation: "Explanation", texts: "Sequence[str]", *, unit: str) -> None:
    """Print the texts, words that speak for the label in green, those against it in red.

    Args:
        explanation: of a prediction.
        texts: one, or the two of a pair.
        unit: ``log-odds``, or of a regression model ``score``.
    """
    console = Console()
    strongest = max((abs(word.attribution) for word in explanation.words), default=0.0)
    for side, text in enumerate(texts):
        shown = Text(text)
        for word in explanation.words:
            share = abs(word.attribution) / strongest if strongest else 0.0
            if word.of_pair == bool(side) and share >= FAINTEST:
                colour = "green" if word.attribution > 0 else "red"
                weight = "bold " if share >= STRONG else ""
                shown.stylize(f"{weight}{colour}", word.start, word.end)
        console.print(shown)
    table = Facts("")
    table.add_row("label", f"{escape(explanation.label)}, {explanation.probability:.4g}")
    words = sorted(explanation.words, key=lambda word: -abs(word.attribution))[:MOST_NAMES]
    listed = ", ".join(f"{_quoted(word.text)} {word.attribution:+.2f}" for word in words)
    table.add_row("strongest words", escape(listed))
    table.add_row(
        "", f"what each adds to the {unit}: above 0 (green) for the label, below (red) against it"
    )
    change = explanation.value - explanation.baseline
    table.add_row(
        "all words together", f"{change:+.2f} {unit} over the same text with every word masked"
    )
    if not explanation.complete:
        table.add_row("off that by", f"{explanation.gap:+.3f} after {explanation.num_steps} steps")
    if not explanation.whole:
        table.add_row("not read", "what is behind the longest input of the model")
    console.print(table, crop=False)


def _quoted(word: str) -> str:
    """A word of punctuation alone in quotes: a comma would be lost among those of the list."""
    return word if any(map(str.isalnum, word)) else f"'{word}'"
