"""How sure a model must be of a label for a wanted precision, and how many rows that costs."""

import numpy as np

from bertray.schema import Cutoff

PRECISIONS = (0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
SURE = 1.96  # one standard normal value in 40 lies above; searching for the best doubles that


def find_cutoffs(probabilities: np.ndarray, label_ids: np.ndarray) -> tuple[Cutoff, ...]:
    """For each of `PRECISIONS` that can be had the threshold that leaves most rows their label.

    A few rows that are all right say little of others. So it is not their share of right labels
    that must reach the precision, but what that share is at least: the lower bound of Wilson
    (1927), which needs 381 rows without a mistake for 0.99. About one set of labelled rows in
    twenty gives a threshold that misses the precision on others.

    Args:
        probabilities: as scoring gives them, of shape (rows, labels).
        label_ids: the true labels, integers of shape (rows,).
    """
    top = probabilities.max(axis=1).astype(np.float64)
    order = np.argsort(-top, kind="stable")
    right = np.cumsum((probabilities.argmax(axis=1) == label_ids)[order])
    kept = np.arange(1, len(order) + 1)
    below = np.append(top[order][1:], 0.0)
    borders = np.flatnonzero(top[order] > below)  # rows of equal probability stay together
    share = right / kept
    bound = _least(share, kept)
    cutoffs = []
    for precision in PRECISIONS:
        enough = borders[bound[borders] >= precision]
        if len(enough):
            last = enough[-1]
            whole = last == len(order) - 1
            threshold = 0.0 if whole else float(top[order[last]] + below[last]) / 2
            coverage = float(kept[last] / len(order))
            cutoffs.append(Cutoff(precision, threshold, coverage, float(share[last])))
    return tuple(cutoffs)


def _least(share: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Wilson's lower bound of shares of so many rows."""
    spread = SURE * np.sqrt(share * (1 - share) / count + (SURE / (2 * count)) ** 2)
    return np.asarray((share + SURE**2 / (2 * count) - spread) / (1 + SURE**2 / count))
