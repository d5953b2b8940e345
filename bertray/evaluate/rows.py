"""Predicted rows as metrics take them: flat numbers, of which millions fit into one process.

A million rows of C labels take 4 C + 4 MB, of independent labels 5 C, of numbers 12, and 4 more for
each column of slices; twice that while the blocks are put together.

# N = rows, C = labels
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.errors import DataError, SchemaError
from bertray.model.bundle import Bundle
from bertray.schema import OK, check_column, scored_column_names, to_matrix

# Evaluation never writes rows, so no column of the input can clash with the scored ones.
PREFIX = "bertray_"


@dataclass(frozen=True)
class Part:
    """The rows of one block that have a prediction and a label.

    Attributes:
        predictions: as `LabelledRows` has them.
        labels: names of the true labels, of all rows one after the other; numbers as they are.
        label_counts: of independent labels, how many each row has.
        are_ids: whether the labels stand there as integers.
        slices: by column, the rows' values as text.
        num_rows: read, with those that are not here.
        left_out: rows that are not here, by reason.
    """

    predictions: np.ndarray
    labels: pa.DictionaryArray | np.ndarray
    label_counts: np.ndarray | None
    are_ids: bool
    slices: dict[str, pa.DictionaryArray]
    num_rows: int
    left_out: Counter[str]


@dataclass(frozen=True)
class LabelledRows:
    """Rows with a prediction and a label.

    Attributes:
        predictions: probabilities, float32 of shape (N, C); of a regression model scores of shape
            (N,).
        targets: label ids, int32 of shape (N,); of independent labels bool of shape (N, C);
            numbers, float64 of shape (N,).
        slices: by column, the rows' values as text.
        num_rows: read, with those that are not here.
        left_out: rows that are not here, by reason.
    """

    predictions: np.ndarray
    targets: np.ndarray
    slices: dict[str, pa.DictionaryArray]
    num_rows: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.targets)


def check_slices(schema: pa.Schema, columns: Sequence[str], *, where: str) -> None:
    """Raise SchemaError unless each column stands in ``schema`` once, with a value a row."""
    for column in columns:
        check_column(schema, column, where=where, key="data.slices")
        kind = schema.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise SchemaError(
                f"{where}: column {column!r} is {kind}, expected one value a row; "
                "leave it out of data.slices"
            )


def take_rows(block: pa.Table, bundle: Bundle, *, label: str, slices: Sequence[str]) -> Part:
    """What metrics need of some predicted rows.

    Args:
        block: the label column, those of the slices, and the scored columns under `PREFIX`.
        bundle: whose labels they are.
        label: the column of the true labels.
        slices: columns.
    """
    *_, predicted, status = (
        block.column(name) for name in scored_column_names(PREFIX, bundle.task)
    )
    labels = block.column(label)
    if bundle.task == "regression":
        labels = labels.cast(pa.float64(), safe=False)
        labels = pc.if_else(pc.is_finite(labels), labels, None)
    is_ok = pc.equal(status, OK)
    present = pc.and_(is_ok, labels.is_valid())
    left_out = Counter(status.filter(pc.invert(is_ok)).to_pylist())
    left_out["null label"] = pc.sum(pc.and_(is_ok, labels.is_null()), min_count=0).as_py()
    predicted, labels = predicted.filter(present).combine_chunks(), labels.filter(present)
    counts = None
    if bundle.task == "multi_label":
        counts = pc.list_value_length(labels).to_numpy()
        labels = pc.list_flatten(labels)
    is_number = bundle.task == "regression"
    flat = (predicted if is_number else predicted.flatten()).to_numpy(zero_copy_only=False)
    return Part(
        predictions=flat if is_number else flat.reshape(len(predicted), len(bundle.labels)),
        labels=labels.to_numpy() if is_number else _as_text(labels),
        label_counts=counts,
        are_ids=pa.types.is_integer(labels.type),
        slices={column: _as_text(block.column(column).filter(present)) for column in slices},
        num_rows=block.num_rows,
        left_out=+left_out,
    )


def join_rows(
    parts: Sequence[Part], bundle: Bundle, *, takes_unknown: bool = False
) -> LabelledRows:
    """The rows of all parts, of which there is one at least, in their order.

    Args:
        parts: of one model.
        bundle: the model.
        takes_unknown: whether labels that it does not know come behind its own, each with a
            probability of 0 in every row; so a row that has one is predicted wrongly.

    Raises:
        DataError: a label that the model does not know, or no row.
    """
    predictions = np.concatenate([part.predictions for part in parts])
    if not len(predictions):
        raise DataError("data.path, data.label: no row there has both a text and a label")
    if bundle.task == "regression":
        targets = np.concatenate([part.labels for part in parts])
    else:
        labels = _join([part.labels for part in parts])
        if labels.null_count:
            raise DataError("data.label: a list holds a null in place of a label; take it out")
        names = pa.chunked_array([labels.dictionary])
        if all(part.are_ids for part in parts):
            names = names.cast(pa.int64())
        ids = label_ids(names, bundle.labels, takes_unknown=takes_unknown)
        targets = ids.astype(np.int32)[labels.indices.to_numpy()]
        if num_unknown := int((ids >= len(bundle.labels)).sum()):
            predictions = np.pad(predictions, ((0, 0), (0, num_unknown)))
    if bundle.task == "multi_label":
        counts = np.concatenate([part.label_counts for part in parts])
        targets = to_matrix(targets, counts, num_labels=predictions.shape[1])
    return LabelledRows(
        predictions=predictions,
        targets=targets,
        slices={
            column: _join([part.slices[column] for part in parts]) for column in parts[0].slices
        },
        num_rows=sum(part.num_rows for part in parts),
        left_out=dict(sum((part.left_out for part in parts), Counter())),
    )


def label_ids(
    labels: pa.ChunkedArray, names: tuple[str, ...], *, takes_unknown: bool = False
) -> np.ndarray:
    """Positions of true labels among the model's; integers that are no names count as ids.

    Args:
        labels: each once.
        names: of the model's labels.
        takes_unknown: whether those that it does not know are numbered on behind its own.

    Raises:
        DataError: a label that the model does not know.
    """
    text = labels.cast(pa.string())
    ids = pc.index_in(text, value_set=pa.array(names))
    if (
        ids.null_count
        and pa.types.is_integer(labels.type)
        and not set(names) & set(text.to_pylist())
    ):
        in_range = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
        ids = pc.if_else(in_range, labels.cast(pa.int64()), None)
    is_unknown = ids.is_null().to_numpy()
    if is_unknown.any() and not takes_unknown:
        unknown = text.filter(ids.is_null()).to_pylist()
        raise DataError(
            f"data.label: {len(unknown)} labels that the model does not know, such as "
            f"{unknown[0]!r}; it knows {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        )
    behind = len(names) + np.cumsum(is_unknown) - 1
    return np.where(is_unknown, behind, pc.fill_null(ids, 0).to_numpy())


def _as_text(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Each value once; nulls stay nulls."""
    return column.cast(pa.string()).combine_chunks().dictionary_encode()


def _join(parts: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    return pa.chunked_array(parts).unify_dictionaries().combine_chunks()
