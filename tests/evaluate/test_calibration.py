"""Probabilities come to say how often they turn out right, and labels stay what they were."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax

from bertray.evaluate.calibration import calibrated, fit_calibration, reliability
from bertray.evaluate.metrics import classification_metrics, loss_of_rows
from bertray.evaluate.picture import draw_reliability
from bertray.model.calibration import move_thresholds
from bertray.schema import Calibration, Task, has_labels

NUM_ROWS, NUM_LABELS = 5_000, 4
METHODS = ["temperature", "vector"]


def drawn(task: Task, *, factor: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of logits times a factor, and labels drawn from those without it."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.standard_normal((NUM_ROWS, NUM_LABELS))
    if task == "multi_label":
        has_label = random.random(logits.shape) < expit(logits)
        return expit(factor * logits).astype(np.float32), has_label
    label_ids = (softmax(logits, axis=1).cumsum(axis=1) < random.random((NUM_ROWS, 1))).sum(axis=1)
    return softmax(factor * logits, axis=1).astype(np.float32), label_ids


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("method", METHODS)
def test_calibration_takes_back_what_made_a_model_too_sure(task: Task, method) -> None:
    probabilities, targets = drawn(task, factor=3.0)
    found = fit_calibration(probabilities, targets, method=method, task=task)
    assert len(found.factors) == (1 if method == "temperature" else NUM_LABELS)
    assert found.factors == pytest.approx(np.full(len(found.factors), 1 / 3), rel=0.1)
    others, their_targets = drawn(task, factor=3.0, seed=1)
    before = reliability(others, their_targets).ece
    after = reliability(calibrated(others, found, task=task), their_targets).ece
    assert found.ece_before > 0.1
    assert found.ece_after < found.ece_before / 5
    assert after < before / 5
    if method == "temperature":
        assert found.offsets == (0.0,)
        one, two = (
            p.argmax(axis=1) if task == "single_label" else p >= 0.5
            for p in (others, calibrated(others, found, task=task))
        )
        assert (one == two).all()


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_a_vector_also_takes_back_that_a_label_is_given_too_often(task: Task) -> None:
    probabilities, targets = drawn(task)
    too_often = Calibration("vector", (1.0,) * NUM_LABELS, (2.0, 0.0, 0.0, 0.0), 0.0, 0.0)
    biased = calibrated(probabilities, too_often, task=task)
    losses = {"none": loss_of_rows(biased, targets).mean()}
    for method in METHODS:
        found = fit_calibration(biased, targets, method=method, task=task)
        losses[method] = loss_of_rows(calibrated(biased, found, task=task), targets).mean()
    fair = loss_of_rows(probabilities, targets).mean()
    assert losses["vector"] == pytest.approx(fair, abs=2e-3)
    assert losses["vector"] < losses["temperature"] - 0.01 < losses["none"]
    offsets = np.array(found.offsets)
    assert offsets[0] - offsets[1:] == pytest.approx(-2.0, abs=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_well_calibrated_model_is_left_alone(method) -> None:
    found = fit_calibration(*drawn("single_label"), method=method, task="single_label")
    assert found.factors == pytest.approx(np.ones(len(found.factors)), abs=0.1)
    assert found.offsets == pytest.approx(np.zeros(len(found.offsets)), abs=0.2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("probability", [1.0, 0.9])
def test_rows_that_are_all_right_and_labels_that_no_row_has_change_no_factor_without_end(
    method, probability: float
) -> None:
    rest = (1 - probability) / 2
    probabilities = np.array([[probability, rest, rest], [rest, probability, rest]], np.float32)
    for task, targets in (
        ("single_label", np.array([0, 1])),
        ("multi_label", np.array([[1, 0, 0], [0, 1, 0]], bool)),
    ):
        found = fit_calibration(probabilities, targets, method=method, task=task)
        assert 0 < min(found.factors) <= max(found.factors) < 10
        assert np.abs(found.offsets).max() < 10
        assert np.isfinite(calibrated(probabilities, found, task=task)).all()


logits_st = arrays(np.float64, (6, 3), elements=st.integers(-40, 40).map(lambda one: one / 4))


@given(logits=logits_st, factor=st.floats(0.01, 20))
def test_a_temperature_changes_no_label(logits: np.ndarray, factor: float) -> None:
    calibration = Calibration("temperature", (factor,), (0.0,), 0.0, 0.0)
    probabilities = softmax(logits, axis=1)
    after = calibrated(probabilities, calibration, task="single_label")
    # A row's largest logit may stand there twice, or at such a factor nearly so.
    assert (after[np.arange(6), logits.argmax(axis=1)] == after.max(axis=1)).all()
    assert after.sum(axis=1) == pytest.approx(1)
    assert (after >= 0).all()


@given(
    logits=logits_st,
    thresholds=st.lists(st.sampled_from([0.05, 0.3, 0.47, 0.9]), min_size=3, max_size=3),
    factors=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    offsets=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_thresholds_move_with_the_probabilities_of_independent_labels(
    logits: np.ndarray, thresholds: list[float], factors: list[float], offsets: list[float]
) -> None:
    new = Calibration("vector", tuple(factors), tuple(offsets), 0.0, 0.0)
    probabilities = expit(logits)
    after = calibrated(probabilities, new, task="multi_label")
    moved = move_thresholds(thresholds, new)
    before = has_labels(probabilities, thresholds)
    assert (has_labels(after, moved) == before).all()
    # Calibrated anew, it is the thresholds of the first calibration that move.
    other = Calibration("temperature", (0.7,), (0.0,), 0.0, 0.0)
    again = calibrated(probabilities, other, task="multi_label")
    assert (has_labels(again, move_thresholds(moved, other, old=new)) == before).all()


def test_the_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.35, 0.65]])
    found = reliability(probabilities, np.array([0, 1, 0, 1]))
    # In (14/15, 1]: two rows of 0.95, half of them right. In (8/15, 9/15]: 0.6, in the next: 0.65.
    assert found.rows.nonzero()[0].tolist() == [8, 9, 14]
    assert found.right[[8, 9, 14]].tolist() == [1, 1, 0.5]
    assert found.ece == pytest.approx((2 * 0.45 + 0.4 + 0.35) / 4)
    several = reliability(np.array([[0.0, 1.0]]), np.array([[True, True]]))
    assert several.rows.sum() == 2
    assert several.ece == pytest.approx(0.5)


def test_accuracy_stays_and_the_loss_falls_with_a_temperature() -> None:
    probabilities, label_ids = drawn("single_label", factor=4.0)
    found = fit_calibration(probabilities, label_ids, method="temperature", task="single_label")
    after = calibrated(probabilities, found, task="single_label")
    old, new = (classification_metrics(p, label_ids) for p in (probabilities, after))
    assert new["accuracy"] == old["accuracy"]
    assert new["loss"] < old["loss"] / 1.5


def test_any_reliability_can_be_drawn() -> None:
    one = reliability(*drawn("single_label"))
    empty = replace(one, rows=np.zeros_like(one.rows))
    for sides in ({"the model": one}, {"the model": one, "calibrated": empty}):
        assert draw_reliability(sides).startswith(b"\x89PNG")
