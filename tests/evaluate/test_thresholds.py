"""No threshold at all does better than the one that is chosen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from bertray.evaluate.thresholds import tune_thresholds

# Few values, so that many rows are equal; 0 and 1 among them.
rows = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        arrays(np.float32, (count, 2), elements=st.sampled_from([0, 0.1, 0.3, 0.5, 0.7, 1])),
        arrays(bool, (count, 2)),
    )
)


def f1(p: np.ndarray, is_true: np.ndarray, threshold: float) -> float:
    given = p >= threshold
    return float(2 * (given & is_true).sum() / max(given.sum() + is_true.sum(), 1))


@given(rows)
def test_every_label_has_the_best_f1_that_there_is(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, has_label = case
    for label, found in enumerate(tune_thresholds(probabilities, has_label)):
        p, is_true = probabilities[:, label], has_label[:, label]
        assert 0 < found < 1 or not is_true.any()
        best = max(f1(p, is_true, threshold) for threshold in (0.05, 0.2, 0.4, 0.5, 0.6, 0.9))
        assert f1(p, is_true, found) == best


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_one_half_stays_where_nothing_does_better() -> None:
    p = column(0.9, 0.6, 0.4, 0.1)
    assert tune_thresholds(p, column(1, 1, 0, 0) > 0) == [0.5]
    assert tune_thresholds(p, column(0, 0, 0, 0) > 0) == [0.5]  # no row has the label
    assert tune_thresholds(p[:1], column(1) > 0) == [0.5]


def test_a_threshold_lies_halfway_between_the_rows_that_it_parts() -> None:
    p = column(0.3, 0.2, 0.1, 0.1)
    assert tune_thresholds(p, column(1, 1, 0, 0) > 0) == [0.15000000000000002]
    assert tune_thresholds(p, column(1, 1, 1, 1) > 0) == [0.05]
    assert tune_thresholds(column(0.9, 0.8, 0.6), column(1, 0, 0) > 0) == [0.8500000000000001]


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken() -> None:
    # Giving the label to the first row or to all of them has an F1 of 2/3.
    p, is_true = column(0.9, 0.3, 0.25, 0.2), column(1, 0, 0, 1) > 0
    for threshold in (0.6, 0.1):
        assert f1_score(is_true, p >= threshold) == f1(p, is_true, threshold)
    assert tune_thresholds(p, is_true) == [0.5]
    # Rows of one probability are not parted.
    assert tune_thresholds(column(0.2, 0.2, 0.1), column(1, 0, 0) > 0) == [0.15000000000000002]
