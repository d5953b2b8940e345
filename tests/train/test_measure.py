"""What picks an epoch, and what is said of it, follows from the task."""

import numpy as np
import pytest

from bertray.config import Training
from bertray.errors import ConfigError
from bertray.evaluate.metrics import METRICS
from bertray.evaluate.thresholds import tune_thresholds
from bertray.schema import Scale, Task
from bertray.train.measure import measure, metric_of


@pytest.mark.parametrize(
    ("task", "first"),
    [("single_label", "accuracy"), ("multi_label", "macro_f1"), ("regression", "rmse")],
)
def test_each_task_has_a_metric_of_its_own_and_refuses_anothers(task: Task, first: str) -> None:
    assert metric_of(Training(), task) == first
    for metric in METRICS[task]:
        assert metric_of(Training(metric=metric), task) == metric
    others = {name for metrics in METRICS.values() for name in metrics} - set(METRICS[task])
    for metric in others:
        with pytest.raises(ConfigError, match=f"training\\.metric={metric}: .*{first}"):
            metric_of(Training(metric=metric), task)


def test_independent_labels_are_measured_at_the_thresholds_that_are_kept() -> None:
    probabilities, has_label = np.array([[0.2], [0.1]]), np.array([[True], [False]])
    metrics, thresholds = measure(probabilities, has_label, task="multi_label")
    assert thresholds == tune_thresholds(probabilities, has_label)
    assert metrics["macro_f1"] == 1
    assert measure(np.eye(2), np.array([0, 1]), task="single_label")[1] is None


def test_the_loss_of_numbers_is_what_training_minimises() -> None:
    metrics, _ = measure(
        np.array([[1.0], [5.0]]), np.array([3.0, 5.0]), task="regression", scale=Scale(4.0, 2.0)
    )
    assert metrics["rmse"] == pytest.approx(2**0.5)
    assert metrics["loss"] == pytest.approx(0.5)
