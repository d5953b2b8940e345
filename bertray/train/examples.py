"""Tokenized, labelled rows: what crosses to every worker, once a node, as flat arrays."""

from dataclasses import dataclass

import numpy as np

from bertray.text.ragged import Encoded, offsets_of, positions_of, take


@dataclass(frozen=True)
class Examples:
    """N rows to train or validate on, in row-id order.

    Attributes:
        encoded: their token ids, a sequence a row; of rows read in windows a sequence a window,
            those of a row one after the other.
        targets: as `Labelled` has them.
        row_ids: int64 of shape (N,).
        windows: int64 of shape (N + 1,); row i is the sequences from ``windows[i]`` up to
            ``windows[i + 1]``. None where each row is one.
        teacher_logits: float32 of shape (N, labels); None without a teacher.
    """

    encoded: Encoded
    targets: np.ndarray
    row_ids: np.ndarray
    windows: np.ndarray | None = None
    teacher_logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 of shape (N,)."""
        if self.windows is None:
            return self.encoded.lengths
        return np.diff(self.encoded.offsets[self.windows])

    @property
    def longest(self) -> np.ndarray:
        """Tokens of each row's longest sequence, int64 of shape (N,)."""
        if self.windows is None or not len(self):
            return self.encoded.lengths
        return np.maximum.reduceat(self.encoded.lengths, self.windows[:-1])

    @property
    def num_windows(self) -> np.ndarray:
        """Sequences per row, int64 of shape (N,)."""
        return np.ones(len(self), np.int64) if self.windows is None else np.diff(self.windows)

    def sequences_of(self, rows: np.ndarray) -> np.ndarray:
        """The sequences of some rows, in the order given."""
        if self.windows is None:
            return rows
        starts, ends = self.windows[rows], self.windows[rows + 1]
        return positions_of(starts, ends - starts)


def select(examples: Examples, rows: np.ndarray) -> Examples:
    """Some of the rows, in the order given."""
    windows = None if examples.windows is None else offsets_of(np.diff(examples.windows)[rows])
    teacher = examples.teacher_logits
    return Examples(
        encoded=take(examples.encoded, examples.sequences_of(rows)),
        targets=examples.targets[rows],
        row_ids=examples.row_ids[rows],
        windows=windows,
        teacher_logits=teacher[rows] if teacher is not None else None,
    )
