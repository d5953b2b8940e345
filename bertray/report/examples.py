"""Scored rows that are worth a look, with what their words did to the prediction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.report.explain import Explainer, Explanation, Word
from bertray.report.known import right_rows
from bertray.report.profile import least_sure
from bertray.report.scored import Scored
from bertray.schema import ABSTAINED, OK, scored_column_names

MOST_CHARACTERS = 1_200  # of a text that are shown
FAINTEST = 0.08  # of the strongest word's attribution: weaker words are not marked
NUM_STRENGTHS = 4


@dataclass(frozen=True)
class Mark:
    """A stretch of a text as it is shown.

    Attributes:
        text: it.
        strength: from 1 to `NUM_STRENGTHS` where it speaks for the label, negative where against.
        attribution: of the word; 0 between words.
    """

    text: str
    strength: int = 0
    attribution: float = 0.0


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        kind: why it was chosen.
        value: probability of the label that is explained, or the score, as the row has it.
        marks: the text, or both texts, as far as they are shown.
        explanation: of its prediction.
        truth: its true label, where that is known.
    """

    kind: str
    value: float
    marks: tuple[tuple[Mark, ...], ...]
    explanation: Explanation
    truth: str | None


def explained(
    rows: pa.Table,
    scored: Scored,
    explainer: Explainer,
    *,
    num_rows: int,
    label: str | None,
    seed: int,
) -> list[Example]:
    """Explain some rows of each kind, the least certain first.

    Args:
        rows: a sample, with the scored columns and the texts.
        scored: the folder it is from.
        explainer: of the model that scored them.
        num_rows: of each kind; a row is shown once.
        label: column of true labels, as `name_labels` gives them.
        seed: of the random ones.
    """
    examples = []
    for kind, index in chosen_rows(rows, scored, num_rows=num_rows, label=label, seed=seed):
        row = rows.slice(index, 1).to_pylist()[0]
        texts = [row[column] for column in (scored.text, scored.text_pair) if column is not None]
        name, value = _said(row, scored, explainer.labels)
        found = explainer(*texts, label=name)
        truth = row[label] if label is not None else None
        if truth is not None:
            truth = ", ".join(truth) if isinstance(truth, list) else str(truth)
        marks = marks_of(texts, found.words)
        examples.append(Example(kind, value, marks, found, truth))
    return examples


def chosen_rows(
    rows: pa.Table,
    scored: Scored,
    *,
    num_rows: int,
    label: str | None,
    seed: int,
) -> Iterator[tuple[str, int]]:
    """Kind and number of each row to explain."""
    columns = scored_column_names(scored.prefix, scored.task)
    first, *others, status = (rows[name] for name in columns)
    ok = np.flatnonzero(np.asarray(pc.is_in(status, pa.array([OK, ABSTAINED]))))
    right = np.full(rows.num_rows, np.nan)
    if label is not None:
        right = right_rows(rows, scored, label)
    if scored.task == "regression":
        low, errors, high = "lowest score", "largest errors", "highest score"
        sureness = first.take(ok).to_numpy()
        wrong = ok[np.argsort(right[ok], kind="stable")]
    else:
        low, errors, high = "least certain", "most confident errors", "most confident"
        found = others[0].take(ok)
        sureness = found.to_numpy() if scored.task == "single_label" else least_sure(found)
        wrong = ok[np.argsort(-sureness, kind="stable")]
    order = ok[np.argsort(sureness, kind="stable")]
    kinds = {
        low: order,
        errors: wrong[right[wrong] <= 0],
        high: order[::-1],
        "random": np.random.default_rng(seed).permutation(ok),
    }
    shown: set[int] = set()
    for kind, candidates in kinds.items():
        fresh = [row for row in candidates.tolist() if row not in shown][:num_rows]
        shown.update(fresh)
        yield from ((kind, row) for row in fresh)


def marks_of(texts: list[str], words: tuple[Word, ...]) -> tuple[tuple[Mark, ...], ...]:
    """Each text cut into words and what stands between them."""
    strongest = max((abs(word.attribution) for word in words), default=0.0)
    shown = []
    for side, text in enumerate(texts):
        marks, end = [], 0
        for word in words:
            if word.of_pair != bool(side) or word.end <= end:
                continue
            if word.end > MOST_CHARACTERS:
                break
            if word.start > end:
                marks.append(Mark(text[end : word.start]))
            strength = _strength(word.attribution, strongest)
            marks.append(Mark(text[max(word.start, end) : word.end], strength, word.attribution))
            end = word.end
        if text[end:].strip():
            marks.append(Mark(" …"))
        shown.append(tuple(marks))
    return tuple(shown)


def _said(row: dict[str, Any], scored: Scored, labels: Sequence[str]) -> tuple[str | None, float]:
    """The label to explain of a row, the most probable one, and its probability; or the score."""
    if scored.task == "regression":
        return None, row[f"{scored.prefix}predicted_score"]
    probabilities = row[f"{scored.prefix}probabilities"]
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return labels[best], probabilities[best]


def _strength(attribution: float, strongest: float) -> int:
    share = abs(attribution) / strongest if strongest else 0.0
    if share < FAINTEST:
        return 0
    return int(np.ceil(share * NUM_STRENGTHS)) * (1 if attribution > 0 else -1)
