"""How good predictions are, on scikit-learn and SciPy.

# N = rows, C = labels
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from bertray.schema import DEFAULT_THRESHOLD, Task, has_labels

# Of each task's metrics, whether more is better; the first one picks an epoch unless told.
METRICS: dict[Task, dict[str, bool]] = {
    "single_label": {"accuracy": True, "macro_f1": True, "loss": False},
    "multi_label": {
        "macro_f1": True,
        "micro_f1": True,
        "subset_accuracy": True,
        "lrap": True,
        "loss": False,
    },
    "regression": {
        "rmse": False,
        "mae": False,
        "pearson": True,
        "spearman": True,
        "loss": False,
    },
}
# What takes longer, or says much the same: an epoch can be picked by these too.
_OF_PROBABILITIES = {"weighted_f1": True, "brier": False, "roc_auc": True, "pr_auc": True}
MORE_METRICS: dict[Task, dict[str, bool]] = {
    "single_label": {"balanced_accuracy": True, "mcc": True, **_OF_PROBABILITIES},
    "multi_label": _OF_PROBABILITIES,
    "regression": {},
}
HIGHER_IS_BETTER = {
    name: more
    for metrics in (*METRICS.values(), *MORE_METRICS.values())
    for name, more in metrics.items()
}

# What an evaluation gives.
EVALUATED: dict[Task, tuple[str, ...]] = {
    "single_label": (*METRICS["single_label"], *MORE_METRICS["single_label"], "micro_f1", "ece"),
    "multi_label": (*METRICS["multi_label"], *MORE_METRICS["multi_label"], "ece"),
    "regression": tuple(METRICS["regression"]),
}

# The least probability that the loss takes a logarithm of: float32 rounds smaller ones to 0.
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)

COMPARED_AT_ONCE = 1 << 22  # probabilities, 32 MB of them


def classification_metrics(probabilities: np.ndarray, label_ids: np.ndarray) -> dict[str, float]:
    """Metrics of single-label predictions.

    Macro-F1 averages over the labels that occur among the true or the predicted ones, so a label
    that these rows never met counts neither way.

    Args:
        probabilities: of shape (N, C), rows sum to 1.
        label_ids: the true labels, integers of shape (N,).

    Returns:
        ``accuracy``, ``macro_f1`` and ``loss``, the mean cross-entropy in nats.

    Raises:
        ValueError: no rows, or another number of labels than of probabilities.
    """
    _check_rows(probabilities, label_ids)
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(label_ids, predicted)),
        "macro_f1": float(f1_score(label_ids, predicted, average="macro", zero_division=0.0)),
        "loss": float(loss_of_rows(probabilities, label_ids).mean()),
    }


def more_classification_metrics(
    probabilities: np.ndarray, label_ids: np.ndarray
) -> dict[str, float]:
    """What an evaluation says beside `classification_metrics`, of the same arguments.

    Returns:
        ``balanced_accuracy``, the mean recall of the labels that occur; ``micro_f1``, which is the
        accuracy; ``weighted_f1``; ``mcc``, Matthews' correlation; ``brier``.
    """
    predicted = probabilities.argmax(axis=1)
    met = np.unique(label_ids)
    return {
        "balanced_accuracy": float(recall_score(label_ids, predicted, labels=met, average="macro")),
        "micro_f1": float(accuracy_score(label_ids, predicted)),
        "weighted_f1": float(f1_score(label_ids, predicted, average="weighted", zero_division=0.0)),
        "mcc": float(matthews_corrcoef(label_ids, predicted)),
        "brier": float(brier_of_rows(probabilities, label_ids).mean()),
    }


def multi_label_metrics(
    probabilities: np.ndarray, has_label: np.ndarray, thresholds: Sequence[float] | None
) -> dict[str, float]:
    """Metrics of predictions of independent labels.

    Macro-F1 averages as `classification_metrics` does; where no row has or gets a label there is
    nothing to be wrong about, and both F1 are 1.

    Args:
        probabilities: of shape (N, C).
        has_label: the true labels, bool of shape (N, C).
        thresholds: the least probability of each label; 0.5 by default.

    Returns:
        ``subset_accuracy``, the share of rows whose labels are all right; ``micro_f1`` and
        ``macro_f1``; ``lrap``, the label ranking average precision, which no threshold changes; and
        ``loss``, the binary cross-entropy in nats, a mean over rows and labels.

    Raises:
        ValueError: no rows, or another number of labels than of probabilities.
    """
    _check_rows(probabilities, has_label)
    predicted = has_labels(probabilities, thresholds)
    right, either = _counts(predicted, has_label)
    met = either > 0
    return {
        "macro_f1": float((2 * right[met] / either[met]).mean()) if met.any() else 1.0,
        "micro_f1": float(2 * right.sum() / either.sum()) if met.any() else 1.0,
        "subset_accuracy": float((predicted == has_label).all(axis=1).mean()),
        "lrap": float(lrap_of_rows(probabilities, has_label).mean()),
        "loss": float(loss_of_rows(probabilities, has_label).mean()),
    }


def more_multi_label_metrics(
    probabilities: np.ndarray, has_label: np.ndarray, thresholds: Sequence[float] | None
) -> dict[str, float]:
    """What an evaluation says beside `multi_label_metrics`: ``weighted_f1`` and ``brier``."""
    predicted = has_labels(probabilities, thresholds)
    right, either = _counts(predicted, has_label)
    rows = has_label.sum(axis=0)
    f1 = 2 * right / np.maximum(either, 1)
    return {
        "weighted_f1": float((f1 * rows).sum() / max(rows.sum(), 1)),
        "brier": float(brier_of_rows(probabilities, has_label).mean()),
    }


def loss_of_rows(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy in nats of each row, float64; of independent labels the mean over them.

    Args:
        probabilities: of shape (N, C).
        targets: label ids of shape (N,), or bool of shape (N, C).
    """
    if targets.ndim == 1:
        true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
        return np.asarray(-np.log(np.maximum(true, LEAST_PROBABILITY)))
    true = np.where(targets, probabilities, 1 - probabilities.astype(np.float64))
    return np.asarray(-np.log(np.maximum(true, LEAST_PROBABILITY)).mean(axis=1))


def brier_of_rows(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Squared distance of each row's probabilities to the truth; arguments as of `loss_of_rows`.

    Added up over three labels or more (Brier 1950, up to 2), of one of two labels and the mean of
    independent ones up to 1: as scikit-learn has it.
    """
    if targets.ndim == 2:
        return np.asarray(np.square(probabilities.astype(np.float64) - targets).mean(axis=1))
    true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    squares = np.einsum("nc,nc->n", probabilities, probabilities, dtype=np.float64)
    return np.asarray((1 - 2 * true + squares) / (2 if probabilities.shape[1] == 2 else 1))


def lrap_of_rows(probabilities: np.ndarray, has_label: np.ndarray) -> np.ndarray:
    """Of each row the mean, over its labels, of the share of its labels among those ranked so high.

    scikit-learn's label ranking average precision is the mean of these. It goes row by row, which
    takes minutes for as many rows as this takes seconds for. Rows without a label have 1.
    """
    total = np.zeros(len(has_label))
    rows, labels = np.nonzero(has_label)
    at_once = max(COMPARED_AT_ONCE // has_label.shape[1], 1)
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        own = probabilities[some, labels[first : first + at_once]]
        as_high = probabilities[some] >= own[:, None]
        share = (as_high & has_label[some]).sum(axis=1) / as_high.sum(axis=1)
        total += np.bincount(some, weights=share, minlength=len(total))
    num_labels = has_label.sum(axis=1)
    return np.where(num_labels > 0, total / np.maximum(num_labels, 1), 1.0)


def label_areas(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list[float | None]]:
    """Areas of each label against the rest; arguments as of `loss_of_rows`.

    Returns:
        ``roc_auc``, and ``pr_auc`` as average precision: C numbers each, None where no row has the
        label or every row does.
    """
    areas: dict[str, list[float | None]] = {"roc_auc": [], "pr_auc": []}
    for label in range(probabilities.shape[1]):
        is_true = targets[:, label] if targets.ndim == 2 else targets == label
        p, varied = probabilities[:, label], is_true.any() and not is_true.all()
        areas["roc_auc"].append(float(roc_auc_score(is_true, p)) if varied else None)
        areas["pr_auc"].append(float(average_precision_score(is_true, p)) if varied else None)
    return areas


def mean_areas(areas: dict[str, list[float | None]]) -> dict[str, float]:
    """The mean of `label_areas` over the labels that have one; nothing where none does."""
    found = {name: [one for one in ones if one is not None] for name, ones in areas.items()}
    return {name: float(np.mean(ones)) for name, ones in found.items() if ones}


def class_table(
    probabilities: np.ndarray, label_ids: np.ndarray, *, labels: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Precision, recall, F1 and rows of each label of which a row has one.

    What would be a division by zero is 0, as in `label_table`.
    """
    of_labels = precision_recall_fscore_support(
        label_ids, probabilities.argmax(axis=1), labels=np.arange(len(labels)), zero_division=0.0
    )
    names = ("precision", "recall", "f1", "rows")
    return {
        label: {name: float(values[index]) for name, values in zip(names, of_labels, strict=True)}
        for index, label in enumerate(labels)
    }


def label_table(
    probabilities: np.ndarray,
    has_label: np.ndarray,
    *,
    labels: Sequence[str],
    thresholds: Sequence[float] | None,
) -> dict[str, dict[str, float | None]]:
    """Precision, recall and F1 of each independent label, with its threshold and its rows.

    What would be a division by zero is 0: the precision of a label that no row got, the recall of
    one that no row has.

    Args:
        probabilities: of shape (N, C).
        has_label: the true labels, bool of shape (N, C).
        labels: C names.
        thresholds: the least probability of each label; 0.5 by default.
    """
    predicted = has_labels(probabilities, thresholds)
    right, either = _counts(predicted, has_label)
    columns = {
        "precision": right / np.maximum(predicted.sum(axis=0), 1),
        "recall": right / np.maximum(has_label.sum(axis=0), 1),
        "f1": 2 * right / np.maximum(either, 1),
        "threshold": np.full(len(labels), DEFAULT_THRESHOLD) if thresholds is None else thresholds,
        "rows": has_label.sum(axis=0),
    }
    return {
        label: {name: float(values[index]) for name, values in columns.items()}
        for index, label in enumerate(labels)
    }


def regression_metrics(
    scores: np.ndarray, targets: np.ndarray, *, std: float = 1.0
) -> dict[str, float]:
    """Metrics of predicted numbers.

    Args:
        scores: of shape (N,).
        targets: the true numbers, of shape (N,).
        std: deviation that the model's training took for 1.

    Returns:
        ``mae`` and ``rmse`` in the data's unit; the correlations ``pearson`` and ``spearman``, 0
        where they are not defined: of a single row, or if all scores or all targets are equal; and
        ``loss``, the mean squared error as training minimises it.

    Raises:
        ValueError: no rows, or unequal numbers of them.
    """
    _check_rows(scores, targets)
    errors = scores.astype(np.float64) - targets
    varied = np.ptp(scores) > 0 and np.ptp(targets) > 0
    return {
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "mae": float(np.abs(errors).mean()),
        "pearson": float(pearsonr(scores, targets).statistic) if varied else 0.0,
        "spearman": float(spearmanr(scores, targets).statistic) if varied else 0.0,
        "loss": float(np.square(errors / std).mean()),
    }


def _counts(predicted: np.ndarray, has_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By label: rows that rightly get it; rows that get it and rows that have it, together."""
    right = (predicted & has_label).sum(axis=0)
    return right, predicted.sum(axis=0) + has_label.sum(axis=0)


def _check_rows(predictions: np.ndarray, targets: np.ndarray) -> None:
    if not len(targets) or len(targets) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} labels")
