"""What validation rows say of an epoch, by task."""

import numpy as np

from bertray.config import Training
from bertray.errors import ConfigError
from bertray.evaluate.metrics import (
    METRICS,
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
)
from bertray.evaluate.thresholds import tune_thresholds
from bertray.schema import Scale, Task


def metric_of(training: Training, task: Task) -> str:
    """The metric that picks the epoch to keep.

    Raises:
        ConfigError: the task has no such metric.
    """
    known = list(METRICS[task])
    metric = training.metric or known[0]
    if metric not in known:
        raise ConfigError(
            f"training.metric={metric}: what is learnt here is {task}, whose metrics are "
            f"{', '.join(known)}; set one of these, or training.task"
        )
    return metric


def measure(
    predictions: np.ndarray, targets: np.ndarray, *, task: Task, scale: Scale | None = None
) -> tuple[dict[str, float], list[float] | None]:
    """Metrics by name; of independent labels also the thresholds that were tuned for them.

    Those metrics are of the very rows that the thresholds were tuned on, and so a little too good
    for labels that few rows have; `bertray evaluate` on other rows tells.
    """
    if task == "multi_label":
        thresholds = tune_thresholds(predictions, targets)
        return multi_label_metrics(predictions, targets, thresholds), thresholds
    if scale is not None:
        return regression_metrics(predictions[:, 0], targets, std=scale.std), None
    return classification_metrics(predictions, targets), None
