"""Input columns and output columns: which Arrow types are taken, what scoring appends."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.errors import SchemaError

Task = Literal["single_label", "multi_label", "regression"]

OK = "ok"
NULL_TEXT = "null text"
EMPTY_TEXT = "empty text"
NOT_UTF8 = "the text is not valid UTF-8"
NO_TOKENS = "the tokenizer finds no tokens in the text"
UNKNOWN_ID = "the tokenizer gives a token id that the model does not have"
NOT_FINITE = "the model gave a value that is not finite"
ABSTAINED = "abstained"

# Rows that ended as they should: with a label, without one that is sure enough, or without a text.
# Any other status is a fault: a quarantined row.
NO_FAULT = frozenset({OK, ABSTAINED, NULL_TEXT, EMPTY_TEXT})

SCORED_COLUMNS: dict[Task, tuple[str, ...]] = {
    "single_label": (
        "predicted_label",
        "predicted_probability",
        "probabilities",
        "prediction_status",
    ),
    "multi_label": ("predicted_labels", "probabilities", "prediction_status"),
    "regression": ("predicted_score", "prediction_status"),
}

DEFAULT_THRESHOLD = 0.5  # of the probability of an independent label


@dataclass(frozen=True)
class Scale:
    """What a regression model's raw output stands for: so many deviations off the mean.

    Attributes:
        mean: of the numbers that it was trained on.
        std: their standard deviation.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class Calibration:
    """What brings a model's probabilities to how often they turn out right.

    Attributes:
        method: ``temperature`` or ``vector``.
        factors: of the logits, one for all labels or one each; above 0.
        offsets: added to the products, likewise.
        ece_before: expected calibration error without it, of the rows that it was fitted on.
        ece_after: likewise, with it.
    """

    method: str
    factors: tuple[float, ...]
    offsets: tuple[float, ...]
    ece_before: float
    ece_after: float


@dataclass(frozen=True)
class Cutoff:
    """How sure a model must be of a label for a wanted precision.

    Attributes:
        precision: the share of right labels that is wanted.
        threshold: the least probability of a label that is given.
        coverage: the share of labelled rows that got one at this threshold.
        found: the share of right labels among these.
    """

    precision: float
    threshold: float
    coverage: float
    found: float


@dataclass(frozen=True)
class Predictions:
    """What the engine says of N rows, in input order.

    Attributes:
        probabilities: float32 of shape (N, num_labels), in label-id order. Rows sum to 1, but for
            independent labels; of a regression model the only column is its scores. A row without
            a prediction holds NaN.
        status: N strings, ``"ok"`` or why there is no prediction.
    """

    probabilities: np.ndarray
    status: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.status)


def no_predictions(*, num_labels: int) -> Predictions:
    """What an engine says of no rows."""
    return Predictions(np.empty((0, num_labels), np.float32), ())


def scored_column_names(prefix: str, task: Task = "single_label") -> tuple[str, ...]:
    """The scored columns under ``output.prefix``; the last one is the status."""
    return tuple(f"{prefix}{name}" for name in SCORED_COLUMNS[task])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type can be read as text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def check_text_column(schema: pa.Schema, column: str, *, where: str, key: str) -> None:
    """Raise SchemaError unless ``column`` stands in ``schema`` once, as text or as nulls alone.

    Where no row has a value pandas writes a column of type null.
    """
    check_column(schema, column, where=where, key=key)
    kind = schema.field(column).type
    if not (is_text(kind) or pa.types.is_null(kind)):
        raise SchemaError(
            f"{where}: column {column!r} is {kind}, expected string; "
            f"set {key} to the column that holds the text"
        )


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds lists, whatever their items."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def check_label_column(
    schema: pa.Schema, column: str, *, where: str, key: str, task: Task = "single_label"
) -> None:
    """Raise SchemaError unless ``column`` stands in ``schema`` once, as the task's labels can be.

    Where all lists are empty pandas writes a column of lists of nulls.
    """
    check_column(schema, column, where=where, key=key)
    kind = schema.field(column).type
    if task == "multi_label":
        items = kind.value_type if is_list(kind) else None
        fits = items is not None and (
            is_text(items) or pa.types.is_integer(items) or pa.types.is_null(items)
        )
        wanted = "lists of strings or integers"
    elif task == "regression":
        is_real = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        fits, wanted = is_real or pa.types.is_integer(kind), "a number"
    else:
        fits = is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        wanted = "string, integer or boolean"
    if not fits:
        hint = f"set {key} to the column that holds the label"
        if task == "single_label" and pa.types.is_floating(kind):
            hint += ", or cast it to int64 (of numbers with gaps pandas makes a float column)"
        raise SchemaError(f"{where}: column {column!r} is {kind}, expected {wanted}; {hint}")


def to_matrix(label_ids: np.ndarray, lengths: np.ndarray, *, num_labels: int) -> np.ndarray:
    """Lists of label ids as one bool a row and label.

    Args:
        label_ids: the items of all lists, one list after the other.
        lengths: items of each of the N lists.
        num_labels: C.

    Returns:
        Of shape (N, C); an item that stands twice in its list counts once.
    """
    matrix = np.zeros((len(lengths), num_labels), bool)
    matrix[np.repeat(np.arange(len(lengths)), lengths), label_ids] = True
    return matrix


def check_column(schema: pa.Schema, column: str, *, where: str, key: str) -> None:
    """Raise SchemaError unless ``column`` stands in ``schema`` exactly once."""
    found = schema.names.count(column)
    if found > 1:
        raise SchemaError(
            f"{where}: column {column!r} stands there {found} times; rename the others"
        )
    if not found:
        listed = ", ".join(schema.names) or "none"
        raise SchemaError(
            f"{where}: no column {column!r} (columns: {listed}); set {key} to one of them"
        )


def check_no_clash(
    schema: pa.Schema,
    passed: Sequence[str],
    *,
    where: str,
    prefix: str,
    task: Task = "single_label",
) -> None:
    """Raise SchemaError if a passed-through column is doubled or bears a scored column's name."""
    counts = Counter(name for name in schema.names if name in set(passed))
    doubled = sorted(name for name, count in counts.items() if count > 1)
    if doubled:
        raise SchemaError(f"{where}: column names stand there twice: {', '.join(doubled)}")
    clash = [name for name in scored_column_names(prefix, task) if name in counts]
    if clash:
        raise SchemaError(
            f"{where}: the scored columns would overwrite {', '.join(clash)}; "
            "set output.prefix, or leave these columns out of input.columns"
        )


def append_predictions(
    table: pa.Table,
    predictions: Predictions,
    *,
    labels: Sequence[str],
    task: Task = "single_label",
    thresholds: Sequence[float] | None = None,
    abstain_below: float | None = None,
    prefix: str = "",
) -> pa.Table:
    """The table with the scored columns at its right, metadata kept.

    Args:
        table: the rows that were classified.
        predictions: as many, in the same order.
        labels: label names in label-id order.
        task: which columns these are; see `SCORED_COLUMNS`.
        thresholds: of independent labels, the least probability at which a row has each; 0.5 by
            default.
        abstain_below: a row whose most probable label is less probable keeps its probabilities, but
            gets no label; only where a row has one.
        prefix: put before the scored columns' names.
    """
    values = np.ascontiguousarray(predictions.probabilities, dtype=np.float32)
    missing = np.asarray(np.isnan(values).any(axis=1))
    status = pa.array(predictions.status, pa.string())
    if task == "regression":
        columns = [pa.array(values[:, 0], pa.float32(), mask=missing)]
    elif task == "multi_label":
        has_label = has_labels(values, thresholds)  # NaN reaches no threshold
        columns = [_names(has_label, labels, missing), _lists(values, missing)]
    else:
        best = np.where(missing, 0, np.nan_to_num(values).argmax(axis=1))
        top = values[np.arange(len(best)), best]
        unsure = np.zeros(len(top), bool)
        if abstain_below is not None:
            unsure = ~missing & (top < np.float64(abstain_below))
            status = pc.if_else(pa.array(unsure), ABSTAINED, status)
        columns = [
            pa.array(labels, pa.string()).take(pa.array(best, mask=missing | unsure)),
            pa.array(top, pa.float32(), mask=missing),
            _lists(values, missing),
        ]
    columns.append(status)
    for name, column in zip(scored_column_names(prefix, task), columns, strict=True):
        table = table.append_column(name, column)
    return table


def has_labels(probabilities: np.ndarray, thresholds: Sequence[float] | None) -> np.ndarray:
    """Which independent labels the rows have.

    Args:
        probabilities: of shape (N, C).
        thresholds: the least probability of each label; 0.5 by default.

    Returns:
        bool of shape (N, C).
    """
    least = DEFAULT_THRESHOLD if thresholds is None else np.asarray(thresholds, np.float64)
    return np.asarray(probabilities >= least)


def _names(has_label: np.ndarray, labels: Sequence[str], missing: np.ndarray) -> pa.Array:
    """A list of names for each row, in label-id order."""
    offsets = np.concatenate([[0], has_label.sum(axis=1).cumsum()]).astype(np.int32)
    names = pa.array(labels, pa.string()).take(pa.array(np.nonzero(has_label)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names, mask=pa.array(missing))


def _lists(values: np.ndarray, missing: np.ndarray) -> pa.Array:
    """A list of numbers for each row."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values.ravel()), mask=pa.array(missing)
    )
