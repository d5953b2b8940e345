"""What picks an epoch, and what is said of it, follows from the task."""

import numpy as np
import pytest

from bertray.config import Training
from bertray.errors import ConfigError
from bertray.evaluate.calibration import calibrated
from bertray.evaluate.metrics import (
    METRICS,
    MORE_METRICS,
    label_areas,
    mean_areas,
    more_classification_metrics,
    more_multi_label_metrics,
)
from bertray.evaluate.thresholds import tune_thresholds
from bertray.schema import Scale, Task, has_labels
from bertray.train.measure import check_calibration, measure, metric_of


@pytest.mark.parametrize(
    ("task", "first"),
    [("single_label", "accuracy"), ("multi_label", "macro_f1"), ("regression", "rmse")],
)
def test_each_task_has_a_metric_of_its_own_and_refuses_anothers(task: Task, first: str) -> None:
    assert metric_of(Training(), task) == first
    own = {*METRICS[task], *MORE_METRICS[task]}
    for metric in own:
        assert metric_of(Training(metric=metric), task) == metric
    others = {name for metrics in METRICS.values() for name in metrics} - own
    for metric in others:
        with pytest.raises(ConfigError, match=f"training\\.metric={metric}: .*{first}"):
            metric_of(Training(metric=metric), task)


def test_an_epoch_can_be_picked_by_what_an_evaluation_says() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 3, 60)
    p = random.dirichlet(np.ones(3), 60)
    has_label = random.random((60, 3)) < 0.4
    said = more_classification_metrics(p, ids) | mean_areas(label_areas(p, ids))
    for metric in MORE_METRICS["single_label"]:
        found = measure(p, ids, task="single_label", metric=metric).metrics
        assert list(found) == [*METRICS["single_label"], metric]
        assert found[metric] == said[metric]
    for metric in MORE_METRICS["multi_label"]:
        made = measure(p, has_label, task="multi_label", metric=metric)
        said = more_multi_label_metrics(p, has_label, made.thresholds)
        said |= mean_areas(label_areas(p, has_label))
        assert made.metrics[metric] == said[metric]
    of_one = measure(p, np.zeros(60, int), task="single_label", metric="roc_auc")
    assert of_one.metrics["roc_auc"] == 0


def test_independent_labels_are_measured_at_the_thresholds_that_are_kept() -> None:
    probabilities, has_label = np.array([[0.2], [0.1]]), np.array([[True], [False]])
    found = measure(probabilities, has_label, task="multi_label")
    assert list(found.thresholds or ()) == tune_thresholds(probabilities, has_label)
    assert found.metrics["macro_f1"] == 1
    assert measure(np.eye(2), np.array([0, 1]), task="single_label").thresholds is None


def test_thresholds_are_those_of_calibrated_probabilities_and_part_the_same_rows() -> None:
    random = np.random.default_rng(0)
    has_label = random.random((200, 2)) < 0.3
    p = 1 / (1 + np.exp(-3 * (has_label - 0.8 + random.standard_normal(has_label.shape))))
    plain = measure(p, has_label, task="multi_label")
    found = measure(p, has_label, task="multi_label", calibration="vector")
    assert found.calibration is not None
    after = calibrated(p, found.calibration, task="multi_label")
    assert (has_labels(after, found.thresholds) == has_labels(p, plain.thresholds)).all()
    assert found.metrics == plain.metrics


def test_how_sure_to_be_is_measured_on_calibrated_probabilities() -> None:
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1.0, 2_000)
    ids = (random.random(2_000) > top).astype(int)
    odds = np.column_stack([top, 1 - top]) ** 3
    p = odds / odds.sum(axis=1, keepdims=True)
    plain, found = (
        measure(p, ids, task="single_label", calibration=method)
        for method in ("none", "temperature")
    )
    assert plain.calibration is None
    assert found.calibration is not None
    assert found.calibration.factors[0] == pytest.approx(1 / 3, rel=0.1)
    for one, other in zip(plain.cutoffs, found.cutoffs, strict=True):
        assert one.coverage == other.coverage  # two labels keep their order
        assert one.threshold > other.threshold


def test_numbers_cannot_be_calibrated() -> None:
    check_calibration("none", "regression")
    with pytest.raises(ConfigError, match=r"calibration\.method=vector: .*a number"):
        check_calibration("vector", "regression")


def test_the_loss_of_numbers_is_what_training_minimises() -> None:
    metrics = measure(
        np.array([[1.0], [5.0]]), np.array([3.0, 5.0]), task="regression", scale=Scale(4.0, 2.0)
    ).metrics
    assert metrics["rmse"] == pytest.approx(2**0.5)
    assert metrics["loss"] == pytest.approx(0.5)
