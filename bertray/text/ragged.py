"""Rows of uneven length in one flat buffer.

# N = rows, T = tokens of all rows together, B = some rows, L = the longest of them
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

TOKENS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Encoded:
    """The token ids of N rows.

    Attributes:
        input_ids: integers of shape (T,), special tokens included, rows one after the other.
        offsets: int64 of shape (N + 1,); row i is ``input_ids[offsets[i]:offsets[i + 1]]``.
        token_type_ids: int8 of shape (T,), or None if the model has no segments.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 of shape (N,)."""
        return np.diff(self.offsets)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where rows of these lengths begin and end, int64 of shape (N + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def positions_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[i], starts[i] + 1, ...``, ``lengths[i]`` of them, one row after the other."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def rows_from(encoded: Encoded, least: int) -> np.ndarray:
    """Indices of the rows that hold a token id of ``least`` or more, in order."""
    if encoded.input_ids.max(initial=0) < least:
        return np.empty(0, np.int64)
    tokens = np.flatnonzero(encoded.input_ids >= least)
    return np.unique(np.searchsorted(encoded.offsets, tokens, side="right") - 1)


def take(encoded: Encoded, rows: np.ndarray) -> Encoded:
    """Some rows, in the order of ``rows``."""
    lengths, segments = encoded.lengths[rows], encoded.token_type_ids
    offsets = offsets_of(lengths)
    taken = Encoded(
        input_ids=np.empty(offsets[-1], encoded.input_ids.dtype),
        offsets=offsets,
        token_type_ids=None if segments is None else np.empty(offsets[-1], segments.dtype),
    )
    # Where a token stands takes several times the memory of the token.
    cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], TOKENS_AT_ONCE))
    for first, last in pairwise([*np.unique(cuts), len(rows)]):
        tokens = positions_of(encoded.offsets[rows[first:last]], lengths[first:last])
        place = slice(offsets[first], offsets[last])
        taken.input_ids[place] = encoded.input_ids[tokens]
        if segments is not None and taken.token_type_ids is not None:
            taken.token_type_ids[place] = segments[tokens]
    return taken


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """The rows of all parts, one part after the other; at least one part."""
    segments = [part.token_type_ids for part in parts if part.token_type_ids is not None]
    return Encoded(
        input_ids=np.concatenate([part.input_ids for part in parts]),
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        token_type_ids=np.concatenate(segments) if segments else None,
    )


def pad(
    flat: np.ndarray, offsets: np.ndarray, rows: np.ndarray, *, value: int
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a flat buffer as a rectangle.

    Args:
        flat: shape (T,).
        offsets: int64 of shape (N + 1,).
        rows: indices of the B rows wanted.
        value: fills the right of the shorter rows.

    Returns:
        The rectangle of shape (B, L), int64, and its mask, True where a token stands.
    """
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns < lengths[:, None]
    padded = np.full(mask.shape, value, np.int64)
    padded[mask] = flat[(starts[:, None] + columns)[mask]]
    return padded, mask


def padded_inputs(
    encoded: Encoded, rows: np.ndarray, *, pad_token_id: int
) -> dict[str, np.ndarray]:
    """What a Hugging Face encoder takes for some rows: arrays of shape (B, L), int64, by name."""
    ids_BL, mask_BL = pad(encoded.input_ids, encoded.offsets, rows, value=pad_token_id)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.astype(np.int64)}
    if encoded.token_type_ids is not None:
        inputs["token_type_ids"], _ = pad(encoded.token_type_ids, encoded.offsets, rows, value=0)
    return inputs
