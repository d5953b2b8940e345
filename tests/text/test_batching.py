import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.model.forward import MAX_PADDING, MIN_TOKENS
from bertray.model.settings import DEFAULT_BATCH_TOKENS
from bertray.text.batching import plan_batches

lengths_st = st.lists(st.integers(1, 600), max_size=200).map(np.array)


@given(
    lengths=lengths_st, max_tokens=st.integers(1, 2000), max_padding=st.sampled_from([0.03, 1.0])
)
def test_each_row_is_in_one_batch_within_the_budget(lengths, max_tokens, max_padding):
    lengths = lengths.astype(np.int64)
    batches = plan_batches(lengths, max_tokens=max_tokens, max_padding=max_padding, min_tokens=256)
    assert sorted(np.concatenate([*batches, np.empty(0, int)])) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * lengths[batch].max()
        assert padded <= max_tokens or len(batch) == 1
        if padded > 256 and len(batch) > 1:
            assert lengths[batch].sum() >= (1 - max_padding) * padded
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_equal_lengths_keep_their_order():
    batches = plan_batches(np.array([3, 5, 3, 5, 3]), max_tokens=10)
    assert [batch.tolist() for batch in batches] == [[1, 3], [0, 2, 4]]


@given(lengths=lengths_st, max_tokens=st.integers(1, 2000))
def test_without_padding_all_rows_of_a_batch_have_one_length(lengths, max_tokens):
    lengths = lengths.astype(np.int64)
    for batch in plan_batches(lengths, max_tokens=max_tokens, max_padding=0.0):
        assert len(set(lengths[batch])) == 1
    batches = plan_batches(np.array([3, 5, 3, 4, 5, 3]), max_tokens=10, max_padding=0.0)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3], [0, 2, 5]]


def test_a_row_over_the_budget_goes_alone():
    batches = plan_batches(np.array([4, 50, 60]), max_tokens=10)
    assert [batch.tolist() for batch in batches] == [[2], [1], [0]]


@pytest.mark.parametrize("median", [22, 64, 200])
@pytest.mark.parametrize("num_rows", [2_000, 16_000])
def test_padding_is_at_most_three_percent_of_a_split(median, num_rows):
    chance = np.random.default_rng(0)
    lengths = np.exp(chance.normal(np.log(median), 0.7, num_rows)).clip(3, 512).astype(np.int64)
    budget = DEFAULT_BATCH_TOKENS["cpu"]  # on CUDA most families are not padded
    batches = plan_batches(
        lengths, max_tokens=budget, max_padding=MAX_PADDING, min_tokens=MIN_TOKENS
    )
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert 1 - lengths.sum() / padded <= 0.03
