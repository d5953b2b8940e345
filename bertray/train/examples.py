"""Tokenized, labelled rows: what crosses to every worker, once a node, as flat arrays."""

from dataclasses import dataclass

import numpy as np

from bertray.text.encoding import Encoded


@dataclass(frozen=True)
class Examples:
    """N rows to train or validate on, in row-id order.

    Attributes:
        encoded: their token ids.
        targets: as `Labelled` has them.
        row_ids: int64 of shape (N,).
    """

    encoded: Encoded
    targets: np.ndarray
    row_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.row_ids)


def select(examples: Examples, rows: np.ndarray) -> Examples:
    """Some of the rows, in the order given."""
    encoded = examples.encoded
    lengths = encoded.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Token t of the result stands where its row begins in the source, plus its place in the row.
    tokens = np.arange(offsets[-1]) + np.repeat(encoded.offsets[rows] - offsets[:-1], lengths)
    segments = encoded.token_type_ids
    return Examples(
        encoded=Encoded(
            input_ids=encoded.input_ids[tokens],
            offsets=offsets,
            token_type_ids=segments[tokens] if segments is not None else None,
        ),
        targets=examples.targets[rows],
        row_ids=examples.row_ids[rows],
    )
