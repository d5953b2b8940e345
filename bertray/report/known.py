"""How scored rows compare with true labels that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from bertray.errors import DataError
from bertray.evaluate.metrics import regression_metrics
from bertray.report.scored import Scored
from bertray.schema import OK, check_label_column, scored_column_names

NUM_BINS = 10  # of equally many rows, in the reliability diagram
MOST_LABELS = 12  # of the confusion matrix: those that most rows have


@dataclass(frozen=True)
class Known:
    """What the rows with a true label say.

    Attributes:
        num_rows: how many they are.
        metrics: by name.
        labels: of the confusion matrix.
        confusion: rows by true label (first axis) and predicted one.
        confidence: mean probability of the label, by bin of equally many rows.
        accuracy: share of the bin's rows whose label is right.
    """

    num_rows: int
    metrics: dict[str, float]
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    confidence: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()


def right_rows(
    rows: pa.Table, scored: Scored, label: str, *, labels: Sequence[str] | None
) -> np.ndarray:
    """Of each row 1 if its prediction is right, 0 if it is not, NaN if nobody knows.

    Of a regression model the distance from the true number, its sign changed: the less right, the
    less.

    Args:
        rows: with the scored columns.
        scored: the folder that they are from.
        label: column of true labels.
        labels: that the model knows; None if it is not at hand.

    Raises:
        SchemaError: there is no such column, or of a type that is no label.
        DataError: its labels are none of the model's.
    """
    check_label_column(rows.schema, label, where=scored.path, key="input.label", task=scored.task)
    *predicted, status = (rows[name] for name in scored_column_names(scored.prefix, scored.task))
    ok = np.asarray(pc.equal(status, OK)) & np.asarray(rows[label].is_valid())
    right = np.full(rows.num_rows, np.nan)
    if scored.task == "regression":
        right[ok] = -np.abs(_numbers(predicted[0].filter(ok)) - _numbers(rows[label].filter(ok)))
        return right
    ours, theirs = predicted[0].filter(ok).to_pylist(), rows[label].filter(ok).to_pylist()
    if scored.task == "multi_label":
        sets = ({str(name) for name in one} for one in theirs)
        right[ok] = [set(one) == other for one, other in zip(ours, sets, strict=True)]
        return right
    names = [str(name) for name in theirs]
    if names and labels is not None and not any(name in labels for name in names):
        raise DataError(
            f"input.label={label}: its values, such as {names[0]!r}, are none of the model's "
            f"labels: {', '.join(labels[:8])}"
        )
    right[ok] = [one == other for one, other in zip(ours, names, strict=True)]
    return right


def compare_with_truth(
    rows: pa.Table, scored: Scored, label: str, *, labels: Sequence[str] | None
) -> Known | None:
    """Metrics of the rows that have a true label and a prediction; None if no row has both.

    Takes and raises what `right_rows` does.
    """
    right = right_rows(rows, scored, label, labels=labels)
    there = np.flatnonzero(~np.isnan(right))
    if not len(there):
        return None
    rows, right = rows.take(pa.array(there)), right[there]
    predicted, *others, _ = (rows[name] for name in scored_column_names(scored.prefix, scored.task))
    if scored.task == "regression":
        metrics = regression_metrics(_numbers(predicted), _numbers(rows[label]))
        metrics.pop("loss")
        return Known(len(there), metrics)
    if scored.task == "multi_label":
        return Known(len(there), {"subset accuracy": float(right.mean())})
    ours = predicted.to_pylist()
    theirs = [str(name) for name in rows[label].to_pylist()]
    confidence, accuracy = _reliability(others[0].to_numpy().astype(float), right)
    labels = _most_common(theirs, ours)
    return Known(
        num_rows=len(there),
        metrics={
            "accuracy": float(accuracy_score(theirs, ours)),
            "macro F1": float(f1_score(theirs, ours, average="macro", zero_division=0.0)),
            "mean probability of the label": float(others[0].to_numpy().mean()),
        },
        labels=labels,
        confusion=tuple(map(tuple, confusion_matrix(theirs, ours, labels=labels).tolist())),
        confidence=confidence,
        accuracy=accuracy,
    )


def _reliability(
    probabilities: np.ndarray, right: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    order = np.argsort(probabilities, kind="stable")
    bins = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    return (
        tuple(float(probabilities[part].mean()) for part in bins),
        tuple(float(right[part].mean()) for part in bins),
    )


def _most_common(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str, ...]:
    names, counts = np.unique([*theirs, *ours], return_counts=True)
    return tuple(str(name) for name in names[np.sort(np.argsort(-counts)[:MOST_LABELS])])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
