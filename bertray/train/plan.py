"""Which rows make up each step, and which of them each worker takes. numpy only.

The plan of an epoch depends on the rows, the global batch and the seed, never on the number of
workers: N workers take the same steps as one worker with the N-fold batch. Batches are drawn at
random, and what rows of uneven length would cost in padding is saved within a batch: it is computed
in passes of rows of like length.
"""

import numpy as np

# Of so many neighbouring steps the rows are grouped by length where that is asked for: AdamW's
# momentum (0.9) forgets in ten, so a window is seen whole. Sixteen would leave half the padding.
WINDOW_BATCHES = 8


def plan_epoch(
    lengths: np.ndarray,
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool = False,
) -> list[np.ndarray]:
    """Shuffle rows, and cut them into batches.

    Args:
        lengths: tokens per row, integers of shape (rows,).
        global_batch_size: rows per step, all workers together.
        seed: of the training.
        epoch: counted from 0; each has its own shuffle.
        group_by_length: whether a batch holds rows of similar length; else it is drawn at random.

    Returns:
        Index arrays in step order; together they hold each row once. All are of
        ``global_batch_size`` rows, but for one smaller one if that does not divide the rows.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    if not group_by_length:
        return _cut(order, global_batch_size)
    batches: list[np.ndarray] = []
    for rows in _cut(order, WINDOW_BATCHES * global_batch_size):
        window = _cut(rows[np.argsort(-lengths[rows], kind="stable")], global_batch_size)
        batches += [window[index] for index in random.permutation(len(window))]
    return batches


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def num_steps_per_epoch(num_rows: int, *, global_batch_size: int) -> int:
    """Batches that `plan_epoch` cuts so many rows into."""
    return -(-num_rows // global_batch_size)


def next_validation(done: int, *, steps_per_epoch: int, every: int | None) -> int:
    """The step to validate after, counted from the epoch's start as those done are.

    What would be left of the epoch then, if it is less than half a part, belongs to that part.
    """
    if every is None:
        return steps_per_epoch
    end = done - done % every + every
    return end if steps_per_epoch - end >= every / 2 else steps_per_epoch


def deal(rows: np.ndarray, lengths: np.ndarray, *, num_ranks: int) -> list[np.ndarray]:
    """Share a batch out so that each rank gets as many rows, within one, and about as many tokens.

    Longest first, back and forth over the ranks, as cards are dealt when the first pick must not
    always be the same player's.

    Returns:
        One index array a rank, longest rows first; empty where there are fewer rows than ranks.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    turn = np.arange(len(order)) % (2 * num_ranks)
    rank_of = np.where(turn < num_ranks, turn, 2 * num_ranks - 1 - turn)
    return [order[rank_of == rank] for rank in range(num_ranks)]


def cut_by_length(
    rows: np.ndarray, longest: np.ndarray, num_sequences: np.ndarray, *, pass_tokens: int
) -> list[np.ndarray]:
    """Cut a rank's rows into passes of like length, at the least cost of padding and passes.

    A pass costs its longest sequence times its sequences, and ``pass_tokens`` for being one. Of
    rows in the order of their lengths the best cuts up to each follow from those before it.

    Args:
        rows: indices.
        longest: tokens of each row's longest sequence, of all rows there are.
        num_sequences: of each row there is.
        pass_tokens: what a pass takes beside its tokens, in the time of so many tokens.

    Returns:
        One index array a pass, longest rows first; each row is in one.
    """
    order = rows[np.argsort(-longest[rows], kind="stable")]
    widths = longest[order]
    ahead = np.concatenate([[0], np.cumsum(num_sequences[order])])
    cost, first = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.int64)
    for end in range(1, len(order) + 1):
        found = cost[:end] + pass_tokens + widths[:end] * (ahead[end] - ahead[:end])
        first[end] = found.argmin()
        cost[end] = found[first[end]]
    passes, end = [], len(order)
    while end:
        passes.append(order[first[end] : end])
        end = first[end]
    return passes[::-1]
