"""What validation rows say of an epoch, by task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bertray.config import CalibrationMethod, Training
from bertray.errors import ConfigError
from bertray.evaluate.calibration import calibrated, fit_calibration
from bertray.evaluate.cutoffs import find_cutoffs
from bertray.evaluate.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    MORE_METRICS,
    classification_metrics,
    label_areas,
    mean_areas,
    more_classification_metrics,
    more_multi_label_metrics,
    multi_label_metrics,
    regression_metrics,
)
from bertray.evaluate.thresholds import tune_thresholds
from bertray.model.calibration import move_thresholds
from bertray.schema import Calibration, Cutoff, Scale, Task


@dataclass(frozen=True)
class Measured:
    """What validation rows say of a model, and how its predictions are to be read.

    Attributes:
        metrics: by name, of the model without calibration.
        thresholds: of independent labels, as these rows have them best.
        calibration: that was asked for.
        cutoffs: how sure the model must be for a wanted precision; where rows have one label.
    """

    metrics: dict[str, float]
    thresholds: tuple[float, ...] | None = None
    calibration: Calibration | None = None
    cutoffs: tuple[Cutoff, ...] = ()


def metric_of(training: Training, task: Task) -> str:
    """The metric that picks the epoch to keep.

    Raises:
        ConfigError: the task has no such metric.
    """
    known = [*METRICS[task], *MORE_METRICS[task]]
    metric = training.metric or known[0]
    if metric not in known:
        raise ConfigError(
            f"training.metric={metric}: what is learnt here is {task}, whose metrics are "
            f"{', '.join(known)}; set one of these, or training.task"
        )
    return metric


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """One of the metrics so that more is better, and what is no number the least there is."""
    score = metrics[metric] if HIGHER_IS_BETTER[metric] else -metrics[metric]
    return -math.inf if math.isnan(score) else score


def check_calibration(method: CalibrationMethod, task: Task) -> None:
    """Raise ConfigError where there are no probabilities to calibrate."""
    if method != "none" and task == "regression":
        raise ConfigError(
            f"calibration.method={method}: what is learnt here is a number, and probabilities "
            "alone can be calibrated; leave it out"
        )


def measure(
    predictions: np.ndarray,
    targets: np.ndarray,
    *,
    task: Task,
    metric: str = "loss",
    scale: Scale | None = None,
    calibration: CalibrationMethod = "none",
) -> Measured:
    """Measure, ``metric`` too, and fit to these rows what there is to fit.

    What is fitted is measured on the very rows it was fitted to, and so a little too good for
    labels that few rows have; `bertray evaluate` on other rows tells.
    """
    if task == "regression":
        std = scale.std if scale is not None else 1.0
        return Measured(regression_metrics(predictions[:, 0], targets, std=std))
    found, p = None, predictions
    if calibration != "none":
        found = fit_calibration(p, targets, method=calibration, task=task)
        p = calibrated(p, found, task=task)
    if task == "single_label":
        metrics = classification_metrics(predictions, targets)
        if metric not in metrics:
            more = more_classification_metrics(predictions, targets)
            metrics[metric] = _one_of(more, metric, predictions, targets)
        return Measured(metrics, calibration=found, cutoffs=find_cutoffs(p, targets))
    thresholds = tuple(tune_thresholds(predictions, targets))
    metrics = multi_label_metrics(predictions, targets, thresholds)
    if metric not in metrics:
        more = more_multi_label_metrics(predictions, targets, thresholds)
        metrics[metric] = _one_of(more, metric, predictions, targets)
    if found is not None:
        thresholds = move_thresholds(thresholds, found)
    return Measured(metrics, thresholds, found)


def _one_of(
    more: Mapping[str, float], metric: str, predictions: np.ndarray, targets: np.ndarray
) -> float:
    """A metric of these, or an area; 0 where all rows agree in each label, and there is none."""
    if metric in more:
        return more[metric]
    return mean_areas(label_areas(predictions, targets)).get(metric, 0.0)
