"""Metrics say what scikit-learn's own say, and never fall over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from bertray.evaluate.metrics import HIGHER_IS_BETTER, classification_metrics


@given(seed=st.integers(0, 2**16), num_rows=st.integers(1, 40), num_labels=st.integers(2, 6))
def test_metrics_are_finite_and_within_their_bounds(
    seed: int, num_rows: int, num_labels: int
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(num_labels), num_rows)
    metrics = classification_metrics(probabilities, random.integers(0, num_labels, num_rows))
    assert set(metrics) == set(HIGHER_IS_BETTER)
    assert 0 <= metrics["accuracy"] <= 1
    assert 0 <= metrics["macro_f1"] <= 1
    assert np.isfinite(metrics["loss"])


def test_values_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    metrics = classification_metrics(probabilities, np.array([0, 1, 1]))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx(2 / 3)  # both labels have F1 2/3
    assert metrics["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8]).mean())
    assert metrics["loss"] == pytest.approx(log_loss([0, 1, 1], probabilities))


def test_a_label_that_no_row_has_does_not_lower_macro_f1() -> None:
    sure = np.eye(5)[[0, 1, 1]]
    assert classification_metrics(sure, np.array([0, 1, 1]))["macro_f1"] == 1.0


def test_a_sure_mistake_costs_much_but_not_infinitely_much() -> None:
    assert 80 < classification_metrics(np.eye(2, dtype=np.float32), np.array([1, 0]))["loss"] < 90


@pytest.mark.parametrize("num_labels", [0, 3])
def test_no_rows_or_unequal_numbers_are_refused(num_labels: int) -> None:
    rows = 0 if num_labels == 0 else 2
    with pytest.raises(ValueError, match="predictions for"):
        classification_metrics(np.ones((rows, 2)) / 2, np.zeros(num_labels, int))
