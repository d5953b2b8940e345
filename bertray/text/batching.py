"""Rows of uneven length to batches of even work."""

import numpy as np


def plan_batches(
    lengths: np.ndarray, *, max_tokens: int, max_padding: float = 1.0, min_tokens: int = 0
) -> list[np.ndarray]:
    """Group rows so that rows x longest row stays within a token budget.

    The plan depends on the arguments alone, so the same rows are batched the same way on every
    run. Equal lengths keep their input order. A row longer than the budget is a batch of its own.

    Args:
        lengths: tokens per row, integers of shape (rows,).
        max_tokens: budget per group, counted after padding.
        max_padding: share of a group that may be padding...
        min_tokens: ...once it has so many tokens, padding included.

    Returns:
        Index arrays, longest rows first; together they hold each row once.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = np.maximum(lengths[order], 1)
    sums = np.concatenate([[0], np.cumsum(ordered)])
    batches = []
    start = 0
    while start < len(order):
        # The first row of a group is its longest, so it alone says how many rows fit.
        longest = int(ordered[start])
        sizes = np.arange(1, min(max(1, max_tokens // longest), len(order) - start) + 1)
        padded = sizes * longest
        real = sums[start + sizes] - sums[start]
        allowed = (real >= (1 - max_padding) * padded) | (padded <= min_tokens)
        allowed[0] = True
        end = start + int(sizes[allowed][-1])
        batches.append(order[start:end])
        start = end
    return batches
