"""The threshold for a wanted precision keeps it on other rows, and costs no more than it must."""

from collections import Counter

import numpy as np
import pytest

from bertray.evaluate.cutoffs import PRECISIONS, find_cutoffs


def drawn(num_rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two labels, right as often as the probabilities say."""
    random = np.random.default_rng(seed)
    top = random.uniform(0.5, 1.0, num_rows)
    is_right = random.random(num_rows) < top
    return np.column_stack([top, 1 - top]).astype(np.float32), np.where(is_right, 0, 1)


def test_one_set_of_labelled_rows_in_twenty_gives_a_threshold_that_misses_its_precision() -> None:
    others, their_labels = drawn(200_000, seed=999)
    top, right = others.max(axis=1), others.argmax(axis=1) == their_labels
    found, missed = Counter(), Counter()
    for seed in range(100):
        for cutoff in find_cutoffs(*drawn(1_000, seed=seed)):
            found[cutoff.precision] += 1
            missed[cutoff.precision] += right[top >= cutoff.threshold].mean() < cutoff.precision
    assert found[0.9] > 90
    for precision in PRECISIONS:
        assert missed[precision] / 100 <= 0.07


def test_coverage_and_precision_are_those_of_the_rows_that_keep_their_label() -> None:
    probabilities, label_ids = drawn(20_000, seed=0)
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label_ids
    found = find_cutoffs(probabilities, label_ids)
    assert [cutoff.precision for cutoff in found] == sorted(cutoff.precision for cutoff in found)
    for cutoff in found:
        kept = top >= np.float64(cutoff.threshold)
        assert cutoff.coverage == pytest.approx(kept.mean())
        assert cutoff.found == pytest.approx(right[kept].mean())
        assert cutoff.found >= cutoff.precision
    # Where p is spread evenly, 0.9 is the mean from 0.8 on, which 40% of the rows reach.
    at_90 = next(cutoff for cutoff in found if cutoff.precision == 0.9)
    assert at_90.coverage == pytest.approx(0.4, abs=0.03)


def test_where_all_rows_are_right_every_row_keeps_its_label() -> None:
    probabilities = np.tile([0.6, 0.4], (400, 1)).astype(np.float32)
    found = find_cutoffs(probabilities, np.zeros(400, int))
    assert [(c.threshold, c.coverage, c.found) for c in found] == [(0.0, 1.0, 1.0)] * len(found)
    # 400 rows without a mistake bear out 0.99, and no 0.995.
    assert [cutoff.precision for cutoff in found][-1] == 0.99


def test_a_few_rows_bear_out_nothing_and_rows_of_one_probability_stay_together() -> None:
    assert find_cutoffs(np.tile([0.9, 0.1], (5, 1)), np.zeros(5, int)) == ()
    mixed = np.tile([0.9, 0.1], (1_000, 1))
    assert find_cutoffs(mixed, np.arange(1_000) % 2) == ()  # one half is wrong, in any order
