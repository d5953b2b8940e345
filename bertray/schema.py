"""Input columns and output columns: which Arrow types are taken, what scoring appends."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bertray.errors import SchemaError

OK = "ok"
NULL_TEXT = "null text"
EMPTY_TEXT = "empty text"
NOT_UTF8 = "the text is not valid UTF-8"
NOT_FINITE = "the model gave a value that is not finite"

# The row held nothing to classify. Any other status but OK is a fault: a quarantined row.
NOTHING_TO_SCORE = frozenset({NULL_TEXT, EMPTY_TEXT})

SCORED_COLUMNS = (
    "predicted_label",
    "predicted_probability",
    "probabilities",
    "prediction_status",
)


@dataclass(frozen=True)
class Predictions:
    """What the engine says of N rows, in input order.

    Attributes:
        probabilities: float32 of shape (N, num_labels), in label-id order; rows sum to 1. A row
            without a prediction holds NaN.
        status: N strings, ``"ok"`` or why there is no prediction.
    """

    probabilities: np.ndarray
    status: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.status)


def no_predictions(*, num_labels: int) -> Predictions:
    """What an engine says of no rows."""
    return Predictions(np.empty((0, num_labels), np.float32), ())


def scored_column_names(prefix: str) -> tuple[str, ...]:
    """The four scored columns under ``output.prefix``."""
    return tuple(f"{prefix}{name}" for name in SCORED_COLUMNS)


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


def check_label_column(schema: pa.Schema, column: str, *, where: str, key: str) -> None:
    """Raise SchemaError unless ``column`` stands in ``schema`` once, as a label can be."""
    check_column(schema, column, where=where, key=key)
    kind = schema.field(column).type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise SchemaError(
            f"{where}: column {column!r} is {kind}, expected string, integer or boolean; "
            f"set {key} to the column that holds the label"
        )


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


def check_no_clash(schema: pa.Schema, passed: Sequence[str], *, where: str, prefix: str) -> None:
    """Raise SchemaError if a passed-through column is doubled or bears a scored column's name."""
    counts = Counter(name for name in schema.names if name in set(passed))
    doubled = sorted(name for name, count in counts.items() if count > 1)
    if doubled:
        raise SchemaError(f"{where}: column names stand there twice: {', '.join(doubled)}")
    clash = [name for name in scored_column_names(prefix) if name in counts]
    if clash:
        raise SchemaError(
            f"{where}: the scored columns would overwrite {', '.join(clash)}; "
            "set output.prefix, or leave these columns out of input.columns"
        )


def append_predictions(
    table: pa.Table, predictions: Predictions, *, labels: Sequence[str], prefix: str = ""
) -> pa.Table:
    """The table with the four scored columns at its right, metadata kept.

    Args:
        table: the rows that were classified.
        predictions: as many, in the same order.
        labels: label names in label-id order.
        prefix: put before the scored columns' names.
    """
    probabilities = np.ascontiguousarray(predictions.probabilities, dtype=np.float32)
    status = pa.array(predictions.status, pa.string())
    missing = np.isnan(probabilities).any(axis=1)
    best = np.where(missing, 0, np.nan_to_num(probabilities).argmax(axis=1))
    top = probabilities[np.arange(len(best)), best]
    offsets = np.arange(len(best) + 1, dtype=np.int32) * probabilities.shape[1]
    columns = (
        pa.array(labels, pa.string()).take(pa.array(best, mask=missing)),
        pa.array(top, pa.float32(), mask=missing),
        pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(probabilities.ravel()), mask=pa.array(missing)
        ),
        status,
    )
    for name, column in zip(scored_column_names(prefix), columns, strict=True):
        table = table.append_column(name, column)
    return table
