"""How often probabilities turn out right, and what is to be done to them that they say so.

# N = rows, C = labels
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from bertray.config import CalibrationMethod
from bertray.model.calibration import to_logits
from bertray.model.engine import read_logits
from bertray.schema import Calibration, Task

NUM_BINS = 15
MOST_ROWS = 200_000  # to fit on: they tell a factor to a part in some hundreds
LEAST_FACTOR = 1e-3  # above 0, or labels would change places


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width by their probability, from 0 to 1.

    Attributes:
        rows: predictions in each bin.
        confidence: mean probability of each; 0 where it is empty.
        right: share of each that is right; 0 where it is empty.
    """

    rows: np.ndarray
    confidence: np.ndarray
    right: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of the two over all predictions.

        Naeini et al. 2015, as Guo et al. 2017 (https://arxiv.org/abs/1706.04599) have it, with 15
        bins.
        """
        gap = np.abs(self.confidence - self.right)
        return float((self.rows * gap).sum() / max(self.rows.sum(), 1))


def reliability(probabilities: np.ndarray, targets: np.ndarray) -> Reliability:
    """Sort predictions into bins.

    Args:
        probabilities: of shape (N, C).
        targets: label ids of shape (N,): the prediction of a row is its most probable label. Or
            bool of shape (N, C): each label of each row is a prediction that the row has it.
    """
    if targets.ndim == 2:
        confidence, is_right = probabilities.ravel(), targets.ravel()
    else:
        confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    rows = np.bincount(bins, minlength=NUM_BINS)
    confidence, right = (
        np.bincount(bins, weights=values, minlength=NUM_BINS) / np.maximum(rows, 1)
        for values in (confidence, is_right)
    )
    return Reliability(rows, confidence, right)


def fit_calibration(
    probabilities: np.ndarray, targets: np.ndarray, *, method: CalibrationMethod, task: Task
) -> Calibration:
    """The temperature, or the factors and offsets, under which the true labels are most likely.

    The maximum has one place, for the loss is convex in both. That nothing is to be changed has the
    weight of one row (a normal prior), so that rows that are all right, or a label that no row has,
    send no factor to infinity.

    Args:
        probabilities: of the model without calibration, of shape (N, C).
        targets: label ids of shape (N,), or bool of shape (N, C).
        method: ``temperature`` or ``vector``.
        task: ``single_label`` or ``multi_label``.
    """
    every = -(-len(targets) // MOST_ROWS)
    logits_NC, true_NC = to_logits(probabilities[::every], task=task), targets[::every]
    num_rows, num_labels = logits_NC.shape
    if task == "single_label":
        true_NC = np.eye(num_labels, dtype=bool)[true_NC]
    one = method == "temperature"
    num_factors = 1 if one else num_labels

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        factors, offsets = found[:num_factors], 0.0 if one else found[num_factors:]
        scaled_NC = logits_NC * factors + offsets
        if task == "single_label":
            log_p_NC = log_softmax(scaled_NC, axis=1)
            value, p_NC = -log_p_NC[true_NC].sum(), np.exp(log_p_NC)
        else:
            value = np.logaddexp(0.0, np.where(true_NC, -scaled_NC, scaled_NC)).sum()
            p_NC = expit(scaled_NC)
        by_logit_NC = p_NC - true_NC
        by_factor = (by_logit_NC * logits_NC).sum(axis=None if one else 0)
        slope = np.append(by_factor, [] if one else by_logit_NC.sum(axis=0))
        off = found - unchanged
        return (value + off @ off / 2) / num_rows, (slope + off) / num_rows

    unchanged = np.append(np.ones(num_factors), np.zeros(0 if one else num_labels))
    bounds = [(LEAST_FACTOR, None)] * num_factors + [(None, None)] * (0 if one else num_labels)
    found = minimize(loss, unchanged, jac=True, method="L-BFGS-B", bounds=bounds).x
    factors, offsets = found[:num_factors], found[num_factors:]
    calibration = Calibration(
        method,
        tuple(float(value) for value in factors),
        (0.0,) if one else tuple(float(value) for value in offsets),
        ece_before=reliability(probabilities, targets).ece,
        ece_after=0.0,
    )
    after = calibrated(probabilities, calibration, task=task)
    return replace(calibration, ece_after=reliability(after, targets).ece)


def calibrated(probabilities: np.ndarray, calibration: Calibration, *, task: Task) -> np.ndarray:
    """What scoring makes of probabilities of shape (N, C) with a calibration; the same type."""
    logits = torch.from_numpy(to_logits(probabilities, task=task))
    return read_logits(logits, task=task, calibration=calibration).astype(probabilities.dtype)
