"""Metrics say what scikit-learn's own say, and never fall over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from bertray.evaluate import metrics as module
from bertray.evaluate.metrics import (
    METRICS,
    brier_of_rows,
    class_table,
    classification_metrics,
    label_areas,
    label_table,
    lrap_of_rows,
    mean_areas,
    more_classification_metrics,
    multi_label_metrics,
    regression_metrics,
)


@given(seed=st.integers(0, 2**16), num_rows=st.integers(1, 40), num_labels=st.integers(2, 6))
def test_metrics_are_finite_and_within_their_bounds(
    seed: int, num_rows: int, num_labels: int
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(num_labels), num_rows)
    metrics = classification_metrics(probabilities, random.integers(0, num_labels, num_rows))
    assert set(metrics) == set(METRICS["single_label"])
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


TRUE = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
PROBABILITIES = np.array(
    [[0.9, 0.6, 0.2, 0.1], [0.3, 0.8, 0.1, 0.1], [0.1, 0.2, 0.1, 0.1], [0.6, 0.4, 0.3, 0.1]],
    np.float32,
)


@pytest.mark.parametrize("thresholds", [None, [0.7, 0.3, 0.15, 0.5], [0.95, 0.95, 0.95, 0.95]])
def test_metrics_of_independent_labels_are_those_of_scikit_learn(
    thresholds: list[float] | None,
) -> None:
    predicted = np.greater_equal(PROBABILITIES, thresholds or 0.5)
    met = [0, 1, 2]  # no row has the last one, nor gets it
    metrics = multi_label_metrics(PROBABILITIES, TRUE, thresholds)
    assert set(metrics) == set(METRICS["multi_label"])
    assert metrics["subset_accuracy"] == accuracy_score(TRUE, predicted)
    for average in ("micro", "macro"):
        expected = f1_score(TRUE[:, met], predicted[:, met], average=average, zero_division=0.0)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    lrap = label_ranking_average_precision_score(TRUE, PROBABILITIES)
    assert metrics["lrap"] == pytest.approx(lrap)
    assert metrics["loss"] == pytest.approx(
        np.mean([log_loss(TRUE[:, k], PROBABILITIES[:, k], labels=[0, 1]) for k in range(4)])
    )
    table = label_table(PROBABILITIES, TRUE, labels="abcd", thresholds=thresholds)
    expected = precision_recall_fscore_support(TRUE, predicted, average=None, zero_division=0.0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert [row[name] for row in table.values()] == pytest.approx(list(values))
    assert [row["threshold"] for row in table.values()] == (thresholds or [0.5] * 4)


def test_label_ranking_by_hand() -> None:
    # Ranks of the true labels: 1 and 3 of the first row (mean of 1/1 and 2/3), 1, none, 1 and 2.
    expected = ((1 + 2 / 3) / 2 + 1 + 1 + 1) / 4
    assert multi_label_metrics(PROBABILITIES, TRUE, None)["lrap"] == pytest.approx(expected)


def test_label_ranking_is_that_of_scikit_learn_however_much_is_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    has_label = random.random((200, 7)) < 0.3
    probabilities = random.integers(0, 6, has_label.shape) / 5  # many are as high as each other
    wanted = label_ranking_average_precision_score(has_label, probabilities)
    assert lrap_of_rows(probabilities, has_label).mean() == pytest.approx(wanted)
    monkeypatch.setattr(module, "COMPARED_AT_ONCE", 30)
    assert lrap_of_rows(probabilities, has_label).mean() == pytest.approx(wanted)


@given(seed=st.integers(0, 2**16), num_rows=st.integers(1, 9), num_labels=st.integers(1, 4))
def test_metrics_of_independent_labels_are_finite_and_within_their_bounds(
    seed: int, num_rows: int, num_labels: int
) -> None:
    random = np.random.default_rng(seed)
    has_label = random.random((num_rows, num_labels)) < random.random()
    probabilities = random.integers(0, 3, has_label.shape) / 2
    metrics = multi_label_metrics(probabilities, has_label, None)
    assert all(0 <= value <= 1 for name, value in metrics.items() if name != "loss")
    assert np.isfinite(metrics["loss"])


def test_where_no_row_has_or_gets_a_label_all_is_right() -> None:
    metrics = multi_label_metrics(np.zeros((2, 1)), np.zeros((2, 1), bool), None)
    assert metrics == {"macro_f1": 1, "micro_f1": 1, "subset_accuracy": 1, "lrap": 1, "loss": 0}


def test_metrics_of_numbers_are_those_of_numpy_and_in_the_datas_unit() -> None:
    scores, targets = np.array([110, 95, 130, 90], np.float32), np.array([100.0, 90, 140, 95])
    metrics = regression_metrics(scores, targets, std=20.0)
    assert set(metrics) == set(METRICS["regression"])
    assert metrics["mae"] == pytest.approx(7.5)
    assert metrics["rmse"] == pytest.approx(np.sqrt(62.5))
    assert metrics["loss"] == pytest.approx(62.5 / 400)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(scores, targets)[0, 1])
    ranks = np.corrcoef([3, 2, 4, 1], [3, 1, 4, 2])[0, 1]
    assert metrics["spearman"] == pytest.approx(ranks)


@pytest.mark.parametrize(("scores", "targets"), [([1], [2]), ([1, 1], [1, 2]), ([1, 2], [3, 3])])
def test_a_correlation_that_is_not_defined_is_zero(scores: list[int], targets: list[int]) -> None:
    metrics = regression_metrics(np.array(scores), np.array(targets))
    assert (metrics["pearson"], metrics["spearman"]) == (0, 0)
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("num_labels", [2, 4])
def test_areas_and_brier_are_those_of_scikit_learn(num_labels: int) -> None:
    random = np.random.default_rng(0)
    p, y = random.dirichlet(np.ones(num_labels), 80).astype(np.float32), np.arange(80) % num_labels
    one_hot = np.eye(num_labels, dtype=bool)[y]
    areas = mean_areas(label_areas(p, y))
    assert areas["roc_auc"] == pytest.approx(roc_auc_score(one_hot, p, average="macro"))
    assert areas["pr_auc"] == pytest.approx(average_precision_score(one_hot, p, average="macro"))
    assert label_areas(p, one_hot) == label_areas(p, y)
    brier = more_classification_metrics(p, y)["brier"]
    assert brier == pytest.approx(brier_score_loss(y, p, labels=range(num_labels)), rel=1e-5)
    assert brier_of_rows(p, one_hot).mean() == pytest.approx(np.square(p - one_hot).mean())


def test_a_label_without_an_area_is_left_out_of_the_mean() -> None:
    p, y = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]), np.array([0, 1])
    assert label_areas(p, y) == {"roc_auc": [1.0, 1.0, None], "pr_auc": [1.0, 1.0, None]}
    assert mean_areas(label_areas(p, y)) == {"roc_auc": 1.0, "pr_auc": 1.0}
    assert mean_areas(label_areas(p[:1], y[:1])) == {}


def test_each_label_has_its_precision_recall_and_rows() -> None:
    p = np.array([[0.6, 0.4, 0], [0.4, 0.6, 0], [0.7, 0.3, 0]])
    table = class_table(p, np.array([0, 1, 1]), labels=["no", "yes", "never"])
    assert table["no"] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "rows": 1}
    assert table["yes"] == {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "rows": 2}
    assert table["never"] == dict.fromkeys(("precision", "recall", "f1", "rows"), 0)
