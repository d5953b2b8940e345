"""Logits whose probabilities say how often they turn out right; in scoring as in evaluation.

# N = rows, C = labels
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from bertray.schema import Calibration, Task

NEAR_ZERO = float(np.finfo(np.float32).tiny)  # smaller probabilities are 0 in 32 bits
NEAR_ONE = float(np.finfo(np.float32).epsneg)  # likewise the least that is missing to 1


def calibrate(logits_NC: Tensor, calibration: Calibration, *, task: Task) -> Tensor:
    """Temperature and vector scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    A row's softmax does not see a number that is added to all its logits, and a factor for each
    label would. So the factors are applied to log-probabilities (Kull et al. 2019,
    https://arxiv.org/abs/1910.12656); one factor for all labels does the same either way.
    """
    if task == "single_label":
        logits_NC = logits_NC.log_softmax(dim=-1)
    factors, offsets = (
        torch.tensor(values, dtype=logits_NC.dtype, device=logits_NC.device)
        for values in (calibration.factors, calibration.offsets)
    )
    return logits_NC * factors + offsets


def to_logits(probabilities: np.ndarray, *, task: Task) -> np.ndarray:
    """Logits that have these probabilities; of one label a row with any number added to them.

    Args:
        probabilities: of shape (N, C). In 32 bits the sure ones are no longer told apart: logits of
            independent labels end at 16.6.
        task: ``single_label`` or ``multi_label``.

    Returns:
        float64 of shape (N, C), finite.
    """
    p = probabilities.astype(np.float64)
    logits = np.log(np.maximum(p, NEAR_ZERO))
    if task == "multi_label":
        logits -= np.log(np.maximum(1 - p, NEAR_ONE))
    return np.asarray(logits)


def move_thresholds(
    thresholds: Sequence[float], new: Calibration, *, old: Calibration | None = None
) -> tuple[float, ...]:
    """The thresholds of independent labels that part rows as they did before.

    Args:
        thresholds: of C labels.
        new: the calibration that they are for.
        old: the one that they were for, if any.
    """
    logits = to_logits(np.array(thresholds), task="multi_label")
    if old is not None:
        logits = (logits - np.array(old.offsets)) / np.array(old.factors)
    moved = expit(logits * np.array(new.factors) + np.array(new.offsets))
    return tuple(float(threshold) for threshold in moved)
