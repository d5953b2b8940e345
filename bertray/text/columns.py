"""Text columns as Arrow gives them: one shape for all, what cannot be read, what repeats."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str | None]


def as_column(texts: Texts) -> pa.LargeStringArray:
    """Any column of texts, or a sequence of them, as one array.

    Large strings, because the texts of one block may be over 2 GB together. The bytes are not
    looked at: `not_utf8` says which rows cannot be decoded.
    """
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        return pa.array(texts, pa.large_string())
    if texts.type != pa.large_string():
        texts = texts.cast(pa.large_string())
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def is_null(column: pa.LargeStringArray) -> np.ndarray:
    """True where there is no text, of shape (rows,)."""
    return _to_numpy(column.is_null())


def is_blank(column: pa.LargeStringArray) -> np.ndarray:
    """True where a text is empty or nothing but white space, as Python's `str.isspace` has it."""
    empty = pc.equal(pc.binary_length(column), 0)
    try:
        space = pc.utf8_is_space(column)
    except pa.ArrowInvalid:  # raised for the whole column where one row is not UTF-8
        space = pc.utf8_is_space(pc.if_else(pa.array(not_utf8(column)), "?", column))
    return _to_numpy(pc.fill_null(pc.or_(empty, space), False))


def not_utf8(column: pa.LargeStringArray) -> np.ndarray:
    """True where the bytes are not UTF-8: Parquet does not check what a writer calls a string."""
    broken = np.zeros(len(column), bool)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Only a block that holds such a row pays for a look at each.
        for row, text in enumerate(column.cast(pa.large_binary())):
            try:
                (text.as_py() or b"").decode()
            except UnicodeDecodeError:
                broken[row] = True
    return broken


def distinct(columns: Sequence[pa.LargeStringArray]) -> tuple[list[pa.Array], np.ndarray]:
    """The rows that differ, and where each went.

    Args:
        columns: the texts, or the texts and their pairs; without nulls.

    Returns:
        The columns with each row once, and for every row the index of its twin in there, integers
        of shape (rows,).
    """
    encoded = [column.dictionary_encode() for column in columns]
    if len(encoded) == 1:
        return [encoded[0].dictionary], _to_numpy(encoded[0].indices)
    left, right = (_to_numpy(column.indices).astype(np.int64) for column in encoded)
    _, first, twin = np.unique(
        left * len(encoded[1].dictionary) + right, return_index=True, return_inverse=True
    )
    return [column.take(pa.array(first)) for column in columns], twin


def _to_numpy(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False))
