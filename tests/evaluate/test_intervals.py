"""Intervals are those of the metrics of resampled rows, however many rows there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from bertray.config import Intervals
from bertray.evaluate import intervals
from bertray.evaluate.intervals import Interval, intervals_of, resampled_metrics
from bertray.evaluate.metrics import (
    classification_metrics,
    more_classification_metrics,
    more_multi_label_metrics,
    multi_label_metrics,
    regression_metrics,
)
from bertray.model.bundle import Bundle
from bertray.schema import Scale, Task


def bundle(task: Task, **others: Any) -> Bundle:
    return Bundle("m", "m", Path(), labels=(), task=task, max_length=8, digest="d", **others)


LABELS = bundle("single_label")
FEW = Intervals(num_resamples=25, level=0.8, seed=3)


def found_by(
    p: np.ndarray, targets: np.ndarray, model: Bundle, settings: Intervals
) -> dict[str, Interval]:
    return intervals_of(resampled_metrics(p, targets, model, settings), level=settings.level)


def rows_drawn(num_rows: int) -> list[np.ndarray]:
    """The rows of each resample, where each is a group of its own."""
    draws = intervals._Draws(num_rows, FEW)
    times = draws._times_RG[:, draws._group_N].astype(int)
    return [np.repeat(np.arange(num_rows), count) for count in times]


def expected(metrics: list[dict[str, float]]) -> dict[str, list[float]]:
    values = {name: [one[name] for one in metrics] for name in metrics[0]}
    return {name: list(np.quantile(found, [0.1, 0.9])) for name, found in values.items()}


def check(found: dict[str, tuple[float, float]], metrics: list[dict[str, float]]) -> None:
    wanted = expected(metrics)
    assert found
    for name, interval in found.items():
        assert interval == pytest.approx(wanted[name]), name


def test_of_single_labels() -> None:
    random = np.random.default_rng(0)
    p, y = random.dirichlet(np.ones(4), 60), random.integers(0, 3, 60)  # nobody has the last label
    found = found_by(p, y, LABELS, FEW)
    metrics = [
        classification_metrics(p[rows], y[rows]) | more_classification_metrics(p[rows], y[rows])
        for rows in rows_drawn(60)
    ]
    check(found, metrics)
    assert set(found) == set(metrics[0])
    rows, best = rows_drawn(60)[0], p.argmax(axis=1)
    assert metrics[0]["mcc"] == pytest.approx(matthews_corrcoef(y[rows], best[rows]))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        recall = balanced_accuracy_score(y[rows], best[rows])
    assert metrics[0]["balanced_accuracy"] == pytest.approx(recall)
    weighted = f1_score(y[rows], best[rows], average="weighted", zero_division=0.0)
    assert metrics[0]["weighted_f1"] == pytest.approx(weighted)


def test_of_independent_labels() -> None:
    random = np.random.default_rng(0)
    p, has_label = random.random((50, 3)), random.random((50, 3)) < [0.5, 0.2, 0.0]
    thresholds = (0.5, 0.4, 0.999)
    found = found_by(p, has_label, bundle("multi_label", thresholds=thresholds), FEW)
    arguments = [(p[rows], has_label[rows], thresholds) for rows in rows_drawn(50)]
    metrics = [multi_label_metrics(*one) | more_multi_label_metrics(*one) for one in arguments]
    check(found, metrics)
    assert set(found) == set(metrics[0])


def test_of_numbers_far_from_zero() -> None:
    random = np.random.default_rng(0)
    targets = 1e6 + random.standard_normal(40)
    scores = (targets + 0.5 * random.standard_normal(40)).astype(np.float32)
    found = found_by(scores, targets, bundle("regression", scale=Scale(0.0, 2.0)), FEW)
    metrics = [regression_metrics(scores[r], targets[r], std=2.0) for r in rows_drawn(40)]
    check(found, metrics)
    assert set(metrics[0]) - set(found) == {"spearman"}


def test_nineteen_in_twenty_intervals_hold_what_is_true_of_all_rows() -> None:
    settings = Intervals(num_resamples=200)
    random, num_rows, hits = np.random.default_rng(0), 3_000, 0  # more rows than groups
    for _ in range(100):
        right = random.random(num_rows) < 0.8
        low, high = found_by(
            np.eye(2)[right.astype(int)], np.ones(num_rows, int), LABELS, settings
        )["accuracy"]
        assert high - low == pytest.approx(4 * np.sqrt(0.16 / num_rows), rel=0.3)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 100 <= 1


def test_the_seed_decides_and_no_resamples_give_no_intervals() -> None:
    p, y = np.random.default_rng(0).dirichlet(np.ones(2), 30), np.arange(30) % 2
    one, same, other = (found_by(p, y, LABELS, Intervals(seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert found_by(p, y, LABELS, Intervals(num_resamples=0)) == {}
    one_row = np.array([1.0]), np.array([2.0])
    assert found_by(*one_row, bundle("regression"), Intervals())["mae"] == (1.0, 1.0)
