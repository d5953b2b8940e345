"""The probabilities at which independent labels are given, as labelled rows have them best.

# N = rows, C = labels
"""

import numpy as np

from bertray.schema import DEFAULT_THRESHOLD


def tune_thresholds(probabilities: np.ndarray, has_label: np.ndarray) -> list[float]:
    """For each label the threshold with the highest F1 on these rows.

    Of thresholds that do equally well it is the nearest to 0.5; so a label that no row has keeps
    0.5. Between two probabilities it lies halfway, for other rows fall to either side.

    Args:
        probabilities: of shape (N, C).
        has_label: the true labels, bool of shape (N, C).

    Returns:
        C numbers; a row gets a label from its threshold on.
    """
    return [
        _best(probabilities[:, label].astype(np.float64), has_label[:, label])
        for label in range(probabilities.shape[1])
    ]


def _best(p: np.ndarray, is_true: np.ndarray) -> float:
    order = np.argsort(-p, kind="stable")
    p = np.append(p[order], 0.0)
    right = np.cumsum(is_true[order])
    borders = np.flatnonzero(p[:-1] > p[1:])  # rows of equal probability stay together
    candidates = np.append((p[borders] + p[borders + 1]) / 2, DEFAULT_THRESHOLD)
    num_given = np.searchsorted(-p[:-1], -candidates, side="right")
    num_right = np.append(0, right)[num_given]
    f1 = 2 * num_right / np.maximum(num_given + is_true.sum(), 1)
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])
