"""How scored rows compare with true labels that stand beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from bertray.errors import DataError
from bertray.evaluate.metrics import regression_metrics
from bertray.report.scored import Scored
from bertray.schema import OK, check_column, check_label_column, scored_column_names

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


def name_labels(
    rows: pa.Table, scored: Scored, label: str, *, labels: Sequence[str] | None
) -> pa.Table:
    """The rows with their true labels by name, as predicted ones are, or as float64.

    Integers that are no names of the model's count as its label ids, as in evaluation.

    Args:
        rows: of the folder, with that column.
        scored: the folder.
        label: column of true labels.
        labels: that the model knows; None if it is not at hand.

    Raises:
        SchemaError: there is no such column, or of a type that is no label.
        DataError: its labels are none of the model's, or null within a list.
    """
    check_column(rows.schema, label, where=scored.path, key="input.label")
    column, place = rows[label], rows.column_names.index(label)
    if scored.task == "regression":
        kind = pa.float64()
    else:
        kind = pa.list_(pa.string()) if scored.task == "multi_label" else pa.string()
    if pa.types.is_null(column.type):
        return rows.set_column(place, label, pa.nulls(len(rows), kind))
    check_label_column(rows.schema, label, where=scored.path, key="input.label", task=scored.task)
    if scored.task == "regression":
        numbers = column.cast(kind, safe=False)
        numbers = pc.if_else(pc.is_finite(numbers), numbers, None)
        return rows.set_column(place, label, numbers)
    is_list = scored.task == "multi_label"
    if is_list and pc.list_flatten(column).null_count:
        raise DataError(
            f"input.label={label}: a list holds a null in place of a label; take it out"
        )
    names = _names_of(pc.list_flatten(column) if is_list else column, labels, label)
    named: list[Any] = [
        [names[item] for item in one] if isinstance(one, list) else names.get(one)
        for one in column.to_pylist()
    ]
    return rows.set_column(place, label, pa.array(named, kind))


def _names_of(
    column: pa.ChunkedArray, labels: Sequence[str] | None, label: str
) -> dict[object, str | None]:
    found = pc.unique(column)
    names = dict(zip(found.to_pylist(), found.cast(pa.string()).to_pylist(), strict=True))
    if labels is None or not any(names.values()):
        return names
    if pa.types.is_integer(found.type) and not set(labels) & set(names.values()):
        ids = {one for one in names if one is not None and 0 <= one < len(labels)}
        names |= {one: labels[one] for one in ids}
    if not set(labels) & set(names.values()):
        some = next(name for name in names.values() if name)
        raise DataError(
            f"input.label={label}: its values, such as {some!r}, are none of the model's labels: "
            f"{', '.join(labels[:8])}"
        )
    return names


def right_rows(rows: pa.Table, scored: Scored, label: str) -> np.ndarray:
    """Of each row 1 if its prediction is right, 0 if it is not, NaN if nobody knows.

    Of a regression model the distance from the true number, its sign changed: the less right, the
    less.

    Args:
        rows: with the scored columns and true labels, as `name_labels` gives them.
        scored: the folder that they are from.
        label: column of true labels.
    """
    *predicted, status = (rows[name] for name in scored_column_names(scored.prefix, scored.task))
    ok = np.asarray(pc.equal(status, OK)) & np.asarray(rows[label].is_valid())
    right = np.full(rows.num_rows, np.nan)
    ours, theirs = predicted[0].filter(ok), rows[label].filter(ok)
    if scored.task == "regression":
        right[ok] = -np.abs(ours.to_numpy() - theirs.to_numpy())
    elif scored.task == "multi_label":
        pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        right[ok] = [set(one) == set(other) for one, other in pairs]
    else:
        right[ok] = pc.equal(ours, theirs)
    return right


def compare_with_truth(rows: pa.Table, scored: Scored, label: str) -> Known | None:
    """Metrics of the rows that have a true label and a prediction; None if no row has both.

    Takes what `right_rows` does.
    """
    right = right_rows(rows, scored, label)
    there = np.flatnonzero(~np.isnan(right))
    if not len(there):
        return None
    rows, right = rows.take(pa.array(there)), right[there]
    predicted, *others, _ = (rows[name] for name in scored_column_names(scored.prefix, scored.task))
    if scored.task == "regression":
        metrics = regression_metrics(
            predicted.to_numpy().astype(np.float64), rows[label].to_numpy()
        )
        metrics.pop("loss")
        return Known(len(there), metrics)
    if scored.task == "multi_label":
        return Known(len(there), {"subset accuracy": float(right.mean())})
    ours, theirs = predicted.to_pylist(), rows[label].to_pylist()
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
