"""Which rows a coarse number type leaves in doubt, to be computed again in a finer one.

# N = rows, C = labels
"""

from collections.abc import Sequence

import numpy as np

from bertray.model.backend import Dtype
from bertray.schema import DEFAULT_THRESHOLD, Task

FINER: dict[Dtype, Dtype] = {"float16": "bfloat16", "int8": "float32"}

# 8 bits move a probability by some hundredths at most, and few by more than half of this. So a
# label changes where two are as near as that, which few rows are.
CLOSE = 0.05


def in_doubt(
    probabilities_NC: np.ndarray,
    *,
    dtype: Dtype,
    task: Task,
    thresholds: Sequence[float] | None,
    abstain_below: float | None = None,
) -> np.ndarray:
    """Of float16 the rows that are not finite, for its range is small; of int8 the close calls.

    Args:
        probabilities_NC: as ``dtype`` has them; NaN where a row has none.
        dtype: one of those in `FINER`.
        task: what they are probabilities of.
        thresholds: of independent labels; 0.5 by default.
        abstain_below: the least probability of a label that is given, where rows have one.

    Returns:
        bool of shape (N,).
    """
    if dtype == "float16":
        return np.asarray(~np.isfinite(probabilities_NC).all(axis=1))
    if task == "regression":
        return np.zeros(len(probabilities_NC), bool)
    if task == "multi_label":
        least = DEFAULT_THRESHOLD if thresholds is None else np.asarray(thresholds)
        return np.asarray((np.abs(probabilities_NC - least) < CLOSE / 2).any(axis=1))
    second, first = np.partition(probabilities_NC, -2, axis=1)[:, -2:].T
    doubt = first - second < CLOSE
    if abstain_below is not None:
        # Near 1 probabilities move less, and most rows of a good model are there.
        doubt |= np.abs(first - abstain_below) < min(CLOSE, 1 - abstain_below) / 2
    return np.asarray(doubt)
