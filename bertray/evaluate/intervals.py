"""How far metrics would be off if other rows had been labelled: the percentile bootstrap.

Rows are dealt at random to some thousand groups, and groups are drawn in place of rows: of as many
rows as groups that is the ordinary bootstrap, and of millions it takes no longer. What a metric is
made of is added up once a group, where scikit-learn would go through all rows for each resample. So
metrics that are no function of sums have no interval: areas under curves, correlations of ranks,
the calibration error.

# N = rows, C = labels, G = groups, R = resamples
"""

import numpy as np

from bertray.config import Intervals
from bertray.evaluate.metrics import brier_of_rows, loss_of_rows, lrap_of_rows
from bertray.model.bundle import Bundle
from bertray.schema import has_labels

GROUPS = 2_000

Interval = tuple[float, float]


def resampled_metrics(
    predictions: np.ndarray, targets: np.ndarray, bundle: Bundle, settings: Intervals
) -> dict[str, np.ndarray]:
    """Of each metric that is a function of sums, its value on each resample: shape (R,).

    Two models' values on as many rows are of the same resamples.

    Args:
        predictions: as `LabelledRows` has them.
        targets: likewise.
        bundle: the model.
        settings: how often, and the seed.
    """
    if bundle.task == "regression":
        std = bundle.scale.std if bundle.scale is not None else 1.0
        return _of_numbers(predictions, targets, settings, std=std)
    if bundle.task == "multi_label":
        return _of_independent_labels(predictions, targets, bundle.thresholds, settings)
    return _of_labels(predictions, targets, settings)


def intervals_of(resampled: dict[str, np.ndarray], *, level: float) -> dict[str, Interval]:
    """Between which values the level's share of the resamples lies; none without resamples."""
    tail = (1 - level) / 2
    found = {
        name: np.quantile(of_resamples, [tail, 1 - tail])
        for name, of_resamples in resampled.items()
        if len(of_resamples)
    }
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _of_labels(
    probabilities: np.ndarray, label_ids: np.ndarray, settings: Intervals
) -> dict[str, np.ndarray]:
    draws = _Draws(len(label_ids), settings)
    predicted, num_labels = probabilities.argmax(axis=1), probabilities.shape[1]
    rows, right = np.arange(len(label_ids)), np.flatnonzero(predicted == label_ids)
    right_RC = draws.counts(right, label_ids[right], num_labels)
    predicted_RC = draws.counts(rows, predicted, num_labels)
    has_RC = draws.counts(rows, label_ids, num_labels)
    accuracy = right_RC.sum(axis=1) / draws.size
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean(right_RC / np.maximum(has_RC, 1), has_RC > 0),
        "micro_f1": accuracy,
        **_f1(right_RC, predicted_RC, has_RC),
        "mcc": _mcc(right_RC, predicted_RC, has_RC),
        "brier": draws.mean(brier_of_rows(probabilities, label_ids)),
        "loss": draws.mean(loss_of_rows(probabilities, label_ids)),
    }


def _of_independent_labels(
    probabilities: np.ndarray,
    has_label: np.ndarray,
    thresholds: tuple[float, ...] | None,
    settings: Intervals,
) -> dict[str, np.ndarray]:
    draws = _Draws(len(has_label), settings)
    predicted = has_labels(probabilities, thresholds)
    right_RC, predicted_RC, has_RC = (
        draws.counts(rows, label_ids, has_label.shape[1])
        for rows, label_ids in map(np.nonzero, (predicted & has_label, predicted, has_label))
    )
    either = (predicted_RC + has_RC).sum(axis=1)
    return {
        **_f1(right_RC, predicted_RC, has_RC),
        "micro_f1": np.where(either > 0, 2 * right_RC.sum(axis=1) / np.maximum(either, 1), 1.0),
        "subset_accuracy": draws.mean((predicted == has_label).all(axis=1)),
        "lrap": draws.mean(lrap_of_rows(probabilities, has_label)),
        "brier": draws.mean(brier_of_rows(probabilities, has_label)),
        "loss": draws.mean(loss_of_rows(probabilities, has_label)),
    }


def _of_numbers(
    scores: np.ndarray, targets: np.ndarray, settings: Intervals, *, std: float
) -> dict[str, np.ndarray]:
    draws = _Draws(len(targets), settings)
    errors = scores.astype(np.float64) - targets
    squared = draws.mean(np.square(errors))
    # Distances to the mean, lest squares of large numbers hide how they differ.
    x, y = scores - scores.mean(dtype=np.float64), targets - targets.mean()
    x_R, y_R = draws.mean(x), draws.mean(y)
    spread = (draws.mean(x * x) - x_R**2) * (draws.mean(y * y) - y_R**2)
    together = draws.mean(x * y) - x_R * y_R
    return {
        "rmse": np.sqrt(squared),
        "mae": draws.mean(np.abs(errors)),
        "pearson": np.where(spread > 0, together / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0),
        "loss": squared / std**2,
    }


class _Draws:
    """Resamples of N rows; ``size`` is how many rows each has."""

    def __init__(self, num_rows: int, settings: Intervals) -> None:
        random = np.random.default_rng(settings.seed)
        self._num_groups = min(num_rows, GROUPS)
        self._group_N = random.permutation(num_rows) % self._num_groups
        even = np.full(self._num_groups, 1 / self._num_groups)
        times = random.multinomial(self._num_groups, even, size=settings.num_resamples)
        self._times_RG = times.astype(np.float64)
        self.size = self._times_RG @ np.bincount(self._group_N)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Of a value of each row: shape (R,)."""
        sums = np.bincount(self._group_N, weights=values, minlength=self._num_groups)
        return np.asarray(self._times_RG @ sums / self.size)

    def counts(self, rows: np.ndarray, label_ids: np.ndarray, num_labels: int) -> np.ndarray:
        """How often each label comes with these rows: shape (R, C)."""
        places = self._group_N[rows] * num_labels + label_ids
        counts = np.bincount(places, minlength=self._num_groups * num_labels)
        return np.asarray(self._times_RG @ counts.reshape(self._num_groups, num_labels))


def _f1(right: np.ndarray, predicted: np.ndarray, has: np.ndarray) -> dict[str, np.ndarray]:
    f1 = 2 * right / np.maximum(predicted + has, 1)
    weighted = (f1 * has).sum(axis=1) / np.maximum(has.sum(axis=1), 1)
    return {"macro_f1": _mean(f1, predicted + has > 0), "weighted_f1": weighted}


def _mcc(right: np.ndarray, predicted: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K, as scikit-learn has it; 0 where it is not defined."""
    count = has.sum(axis=1)
    together = right.sum(axis=1) * count - (predicted * has).sum(axis=1)
    spreads = [count**2 - np.square(counts).sum(axis=1) for counts in (predicted, has)]
    spread = np.sqrt(spreads[0] * spreads[1])
    return np.where(spread > 0, together / np.where(spread > 0, spread, 1.0), 0.0)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Over the labels that count; 1 where none does."""
    count = where.sum(axis=1)
    total = np.where(where, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)
