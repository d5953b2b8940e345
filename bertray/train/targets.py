"""What rows are to be learnt as: label columns to arrays, and which rows are held out.

# N = rows, C = labels
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.model_selection import train_test_split

from bertray.config import TrainData
from bertray.errors import DataError
from bertray.schema import Scale, Task, is_list, to_matrix
from bertray.text.columns import as_column, is_blank, is_null, not_utf8


def task_of(wanted: Task | Literal["auto"], kind: pa.DataType) -> Task:
    """The task that a label column of this Arrow type is for, unless one is asked for."""
    if wanted != "auto":
        return wanted
    return "multi_label" if is_list(kind) else "single_label"


def normalized(labels: pa.ChunkedArray, task: Task) -> pa.ChunkedArray:
    """The same labels as string or int64, as lists of those, or as float64 to be learnt as such."""
    if task == "regression":
        return labels.cast(pa.float64(), safe=False)
    kind = labels.type.value_type if task == "multi_label" else labels.type
    if task == "multi_label" and pa.types.is_null(kind):
        return labels.cast(pa.list_(kind))
    item = pa.int64() if pa.types.is_integer(kind) else pa.string()
    return labels.cast(pa.list_(item) if task == "multi_label" else item)


def num_missing(labels: pa.ChunkedArray) -> int:
    """Rows whose label, or one of whose labels, is null, blank, not valid UTF-8 or not finite.

    A list may well be empty.
    """
    if not is_list(labels.type):
        return int(_is_missing(labels).sum())
    rows = np.repeat(np.arange(len(labels)), _lengths(labels))
    bad = rows[_is_missing(pc.list_flatten(labels))]
    return int(labels.null_count) + len(np.unique(bad))


def _is_missing(labels: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(labels.type):
        column = as_column(labels)
        return np.asarray(is_null(column) | is_blank(column) | not_utf8(column))
    missing = labels.is_null()
    if pa.types.is_floating(labels.type):
        missing = pc.or_(missing, pc.invert(pc.fill_null(pc.is_finite(labels), False)))
    return np.asarray(missing.to_numpy())


def to_targets(
    training: pa.ChunkedArray, validation: pa.ChunkedArray, data: TrainData
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names in label-id order, and the targets of both parts.

    Integers are in order by number, strings by code point: the same on every machine. A number to
    be learnt as such has the name of its column.

    Args:
        training: as `normalized` gives them.
        validation: likewise.
        data: the config's section.

    Returns:
        The names; then label ids or numbers of shape (N,), or bools of shape (N, C) where rows hold
        lists.

    Raises:
        DataError: too few labels, or one that no training row has.
    """
    if pa.types.is_floating(training.type):
        if not len(training):
            raise DataError(f"data.train={data.train}: no rows; name a place with rows")
        return (data.label,), training.to_numpy(), validation.to_numpy()
    lists = is_list(training.type)
    items = [pc.list_flatten(part) if lists else part for part in (training, validation)]
    known = sorted(pc.unique(items[0]).to_pylist())
    if len(known) < (1 if lists else 2):
        found = f"only the label {str(known[0])!r}" if known else "no rows"
        if lists:
            found = "no label in any row" if len(training) else "no rows"
        raise DataError(
            f"data.train={data.train}: column {data.label!r} holds {found}, a classifier needs at "
            f"least {'one label' if lists else 'two labels'}; set data.label to the column to be "
            "learnt, or add rows"
        )
    unknown = sorted(set(pc.unique(items[1]).to_pylist()) - set(known))
    if unknown:
        raise DataError(
            f"data.validation={data.validation}: labels that no training row has: "
            f"{some(unknown)}; add such rows to data.train, or take these out"
        )
    value_set = pa.array(known, items[0].type)
    targets = [pc.index_in(part, value_set).to_numpy().astype(np.int64) for part in items]
    if lists:
        targets = [
            to_matrix(ids, _lengths(part), num_labels=len(known))
            for ids, part in zip(targets, (training, validation), strict=True)
        ]
    return tuple(str(label) for label in known), targets[0], targets[1]


def scale_of(numbers: np.ndarray, data: TrainData) -> Scale:
    """Mean and deviation of the numbers to train on.

    Raises:
        DataError: they do not differ, or by more than a float can hold.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scale = Scale(float(numbers.mean()), float(numbers.std()))
    if numbers.min() == numbers.max() or not np.isfinite(scale.std):
        raise DataError(
            f"data.train={data.train}: column {data.label!r} goes from {numbers.min():g} to "
            f"{numbers.max():g} in the rows to train on, expected numbers that differ and whose "
            "squares are finite; set data.label to the column to be learnt"
        )
    return scale


def hold_out(targets: np.ndarray, data: TrainData, *, task: Task, seed: int) -> np.ndarray:
    """True for the rows to validate on, a share of each label's; its only row stays in training.

    Where a row has one label, a label of two rows or more has one to train and one to validate on,
    however small the share; the common ones make up for it. Where rows have several, one to train
    on is all that is sure.

    Raises:
        DataError: there are too few rows.
    """
    held = _PICK[task](targets, data.validation_fraction, seed=seed)
    if held is None or not held.any() or held.all():
        raise DataError(
            f"data.train={data.train}: {len(targets)} rows are too few to hold out "
            f"data.validation_fraction={data.validation_fraction:g} of each label; "
            "add rows, or set data.validation"
        )
    return held


def _stratified(label_ids: np.ndarray, share: float, *, seed: int) -> np.ndarray | None:
    """None if there are too few rows."""
    counts = np.bincount(label_ids)
    rows = np.flatnonzero(counts[label_ids] > 1)
    num_labels = int((counts > 1).sum())
    num_held = max(round(share * len(rows)), num_labels)
    if not len(rows) or len(rows) - num_held < num_labels:
        return None
    _, chosen = train_test_split(
        rows, test_size=num_held, stratify=label_ids[rows], random_state=seed
    )
    held = np.zeros(len(label_ids), bool)
    held[chosen] = True
    order = np.random.default_rng(seed).permutation(rows)
    for side in (True, False):
        _swap_in(held, order, label_ids, side=side)
    return held


def _swap_in(held: np.ndarray, order: np.ndarray, label_ids: np.ndarray, *, side: bool) -> None:
    """Bring a row of each label to a side that has none, in place of one of a label with more."""
    here, there = order[held[order] == side], order[held[order] != side]
    met, firsts = np.unique(label_ids[here], return_index=True)
    labels, candidates = np.unique(label_ids[there], return_index=True)
    missing = there[candidates[~np.isin(labels, met)]]
    spare = np.delete(here, firsts)[: len(missing)]
    held[missing], held[spare] = side, not side


def _share_of_each(has_label: np.ndarray, share: float, *, seed: int) -> np.ndarray | None:
    """Rarest label first: the rows of the common ones can still make up for what it takes."""
    order = np.random.default_rng(seed).permutation(len(has_label))
    groups = np.column_stack([has_label, ~has_label.any(axis=1)])  # rows of no label are one too
    held, decided = np.zeros((2, len(has_label)), bool)
    counts = groups.sum(axis=0)
    for group in np.argsort(counts, kind="stable"):
        rows = order[groups[order, group]]
        free = rows[~decided[rows]]
        num_held = max(round(share * len(rows)), 1) if len(rows) > 1 else 0
        held[free[: max(num_held - int(held[rows].sum()), 0)]] = True
        decided[free] = True
    for group in np.flatnonzero(counts):
        rows = order[groups[order, group]]
        if held[rows].all():
            held[rows[0]] = False
    return held


def _at_random(numbers: np.ndarray, share: float, *, seed: int) -> np.ndarray | None:
    held = np.zeros(len(numbers), bool)
    num_held = max(round(share * len(numbers)), 1)
    held[np.random.default_rng(seed).permutation(len(numbers))[:num_held]] = True
    return held


_PICK = {"single_label": _stratified, "multi_label": _share_of_each, "regression": _at_random}


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())


def some(values: Sequence[Any]) -> str:
    """Values as messages show them, and how many more there are."""
    shown = ", ".join(repr(str(value)) for value in values[:5]) or "none"
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown
