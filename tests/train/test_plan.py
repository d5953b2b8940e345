"""Every row exactly once an epoch, whatever the number of rows, workers and rows a batch."""

from collections.abc import Iterable
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.train.plan import (
    WINDOW_BATCHES,
    cut_by_length,
    deal,
    next_validation,
    num_steps_per_epoch,
    plan_epoch,
)

SIZES = st.integers(1, 40)


GROUPED = pytest.mark.parametrize("grouped", [False, True])


def random_lengths(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 128, num_rows)


@GROUPED
@given(num_rows=st.integers(0, 700), per_device=SIZES, workers=st.integers(1, 7), epoch=SIZES)
def test_each_row_is_trained_on_once_an_epoch(
    grouped: bool, num_rows: int, per_device: int, workers: int, epoch: int
) -> None:
    lengths = random_lengths(num_rows)
    batches = plan_epoch(
        lengths,
        global_batch_size=per_device * workers,
        seed=1,
        epoch=epoch,
        group_by_length=grouped,
    )
    shares = [deal(batch, lengths, num_ranks=workers) for batch in batches]
    seen = [row for share in shares for rows in share for row in rows]
    assert sorted(seen) == list(range(num_rows))
    assert len(batches) == num_steps_per_epoch(num_rows, global_batch_size=per_device * workers)
    assert all(len(share) == workers for share in shares)
    assert max((len(rows) for share in shares for rows in share), default=0) <= per_device


@GROUPED
@given(num_rows=st.integers(1, 300), batch=SIZES)
def test_at_most_one_batch_is_smaller(grouped: bool, num_rows: int, batch: int) -> None:
    batches = plan_epoch(
        random_lengths(num_rows),
        global_batch_size=batch,
        seed=0,
        epoch=0,
        group_by_length=grouped,
    )
    sizes = [len(rows) for rows in batches]
    assert sum(size < batch for size in sizes) == (num_rows % batch > 0)


def test_the_plan_is_the_same_for_any_number_of_workers_with_the_same_global_batch() -> None:
    lengths = random_lengths(500)
    one, again = (plan_epoch(lengths, global_batch_size=32, seed=3, epoch=2) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))


def test_epochs_and_seeds_shuffle_anew() -> None:
    lengths = random_lengths(500)
    first = np.concatenate(plan_epoch(lengths, global_batch_size=32, seed=0, epoch=0))
    for seed, epoch in ((0, 1), (1, 0)):
        other = np.concatenate(plan_epoch(lengths, global_batch_size=32, seed=seed, epoch=epoch))
        assert (first != other).any()


def test_grouping_by_length_leaves_little_padding() -> None:
    lengths = random_lengths(32 * WINDOW_BATCHES * 4)
    batches = plan_epoch(lengths, global_batch_size=32, seed=0, epoch=0, group_by_length=True)
    at_random = np.split(np.arange(len(lengths)), range(32, len(lengths), 32))
    assert padding(batches, lengths) < 0.15
    assert padding(at_random, lengths) > 3 * padding(batches, lengths)


def test_neighbouring_steps_see_rows_of_all_lengths() -> None:
    """Else a model whose labels go with the length would see one label for many steps."""
    lengths = random_lengths(32 * WINDOW_BATCHES * 20)
    batches = plan_epoch(lengths, global_batch_size=32, seed=0, epoch=0, group_by_length=True)
    for first in range(0, len(batches), WINDOW_BATCHES):
        window = lengths[np.concatenate(batches[first : first + WINDOW_BATCHES])]
        standard_error = lengths.std() / np.sqrt(len(window))
        assert abs(window.mean() - lengths.mean()) < 4 * standard_error


def padding(batches: list[np.ndarray], lengths: np.ndarray) -> float:
    """Tokens of padding per real token."""
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    return float(padded / lengths.sum() - 1)


@given(num_rows=st.integers(1, 100), workers=st.integers(1, 8), seed=SIZES)
def test_ranks_get_as_many_rows_and_about_as_many_tokens(
    num_rows: int, workers: int, seed: int
) -> None:
    lengths = random_lengths(num_rows, seed)
    shares = deal(np.arange(num_rows), lengths, num_ranks=workers)
    rows = [len(share) for share in shares]
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(rows) - min(rows) <= 1
    assert max(tokens) - min(tokens) <= lengths.max()


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=7),
    pass_tokens=st.integers(0, 100),
    seed=SIZES,
)
def test_passes_cost_as_little_as_any_cuts_of_rows_in_the_order_of_their_lengths(
    lengths: list[int], pass_tokens: int, seed: int
) -> None:
    longest = np.array(lengths)
    counts = np.random.default_rng(seed).integers(1, 4, len(lengths))
    rows = np.arange(len(lengths))

    def cost(passes: Iterable[np.ndarray]) -> int:
        return sum(pass_tokens + int(longest[one].max() * counts[one].sum()) for one in passes)

    found = cut_by_length(rows, longest, counts, pass_tokens=pass_tokens)
    assert sorted(np.concatenate(found).tolist()) == rows.tolist()
    order = np.argsort(-longest, kind="stable")
    places = range(1, len(order))
    cuts = chain.from_iterable(combinations(places, number) for number in range(len(order)))
    assert cost(found) == min(cost(np.split(order, cut)) for cut in cuts)


def test_rows_of_one_length_are_one_pass() -> None:
    rows = np.arange(9)
    (found,) = cut_by_length(rows, np.full(9, 30), np.ones(9, int), pass_tokens=64)
    assert found.tolist() == rows.tolist()
    assert cut_by_length(rows[:0], np.full(9, 30), np.ones(9, int), pass_tokens=64) == []


@pytest.mark.parametrize(
    ("num_steps", "every", "ends"),
    [
        (5, None, [5]),
        (5, 2, [2, 4, 5]),
        (1_001, 500, [500, 1_001]),  # one step is no part of its own
        (1_250, 500, [500, 1_000, 1_250]),
        (3, 9, [3]),
        (3, 1, [1, 2, 3]),
    ],
)
def test_parts_of_an_epoch_end_at_the_same_steps_wherever_it_is_gone_on_with(
    num_steps: int, every: int | None, ends: list[int]
) -> None:
    for done in range(num_steps):
        wanted = next(end for end in ends if end > done)
        assert next_validation(done, steps_per_epoch=num_steps, every=every) == wanted
