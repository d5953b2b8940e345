"""Which rows make up each step, and which of them each worker takes. numpy only.

The plan of an epoch depends on the rows' lengths, the global batch and the seed, never on the
number of workers: N workers take the same steps as one worker with the N-fold batch.
"""

import numpy as np

# Rows of so many neighbouring batches are sorted by length, and those batches are neighbouring
# steps. Texts of a length may be of a label, and AdamW's momentum (0.9) forgets in ten steps: in
# its memory each window has been seen whole, a random sample. Sixteen would leave half the padding.
WINDOW_BATCHES = 8


def plan_epoch(
    lengths: np.ndarray, *, global_batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Shuffle rows, and cut them into batches of rows of similar length.

    Args:
        lengths: tokens per row, integers of shape (rows,).
        global_batch_size: rows per step, all workers together.
        seed: of the training.
        epoch: counted from 0; each has its own shuffle.

    Returns:
        Index arrays in step order; together they hold each row once. All are of
        ``global_batch_size`` rows, but for one smaller one if that does not divide the rows.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    window = WINDOW_BATCHES * global_batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        cut = np.split(rows, range(global_batch_size, len(rows), global_batch_size))
        batches += [cut[index] for index in random.permutation(len(cut))]
    return batches


def num_steps_per_epoch(num_rows: int, *, global_batch_size: int) -> int:
    """Batches that `plan_epoch` cuts so many rows into."""
    return -(-num_rows // global_batch_size)


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
