"""Run a model over many rows and lose none: memory that runs out, a row that breaks it.

# N = rows, C = labels
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bertray.text.batching import plan_batches
from bertray.text.ragged import Encoded

logger = logging.getLogger(__name__)

REASON_CHARACTERS = 200  # of an exception's message in a row's status

# Where rows are padded, a batch ends where more than this share of it would be padding, unless it
# is so small that the overhead of a forward pass weighs more.
MAX_PADDING = 0.03
MIN_TOKENS = 256


class Backend(Protocol):
    """Computes a batch: (rows, indices of B of them) to logits, float32 of shape (B, C)."""

    @property
    def pads(self) -> bool:
        """Whether rows are padded to the longest of their batch."""

    def __call__(self, encoded: Encoded, rows: np.ndarray) -> Tensor: ...


@dataclass
class Outcome:
    """Logits of N rows, and what it took.

    Attributes:
        logits: float32 of shape (N, C); NaN for a row that broke the model.
        failures: why, by row.
        max_tokens: the budget as it is now.
        num_halvings: times that memory ran out.
        num_batches: forward passes.
        num_padded_tokens: what they computed, padding included.
    """

    logits: np.ndarray
    max_tokens: int
    failures: dict[int, str] = field(default_factory=dict)
    num_halvings: int = 0
    num_batches: int = 0
    num_padded_tokens: int = 0


def run_batches(
    backend: Backend, encoded: Encoded, *, max_tokens: int, num_labels: int, probe: Encoded
) -> Outcome:
    """Compute all rows, longest first.

    When memory runs out the budget is halved, for good. A batch that fails otherwise is halved
    until the row at fault stands alone.

    Args:
        backend: computes a batch.
        encoded: the tokens of N rows.
        max_tokens: rows x longest row of a batch.
        num_labels: C.
        probe: a harmless row. If the backend fails on it too, no row is to blame.

    Raises:
        Exception: what the backend raised, if it is the backend itself that is broken, or if memory
            does not do for a single row.
    """
    lengths = encoded.lengths
    outcome = Outcome(np.full((len(encoded), num_labels), np.nan, np.float32), max_tokens)
    done: list[tuple[np.ndarray, Tensor]] = []
    pending = deque(_plan(backend, lengths, max_tokens=max_tokens))
    while pending:
        rows = pending.popleft()
        try:
            done.append((rows, backend(encoded, rows)))
            outcome.num_batches += 1
            longest = len(rows) * int(lengths[rows].max())
            outcome.num_padded_tokens += longest if backend.pads else int(lengths[rows].sum())
            continue
        except Exception as error:  # any: what a row does to a model is not ours to foresee
            out_of_memory = is_out_of_memory(error)
            if len(rows) == 1:
                if out_of_memory or not _is_alive(backend, probe):
                    raise
                outcome.failures[int(rows[0])] = _reason(error)
        # Outside of the handler, whose exception holds on to the tensors of the failed batch.
        if out_of_memory:
            outcome.num_halvings += 1
            outcome.max_tokens = min(outcome.max_tokens, int(lengths[rows].sum())) // 2
            rest = np.concatenate([rows, *pending])
            plan = _plan(backend, lengths[rest], max_tokens=outcome.max_tokens)
            pending = deque(rest[batch] for batch in plan)
            logger.warning("out of memory: going on with batches of %d tokens", outcome.max_tokens)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        elif len(rows) > 1:
            middle = len(rows) // 2
            pending.extendleft((rows[middle:], rows[:middle]))
    if done:
        # One copy at the end: on CUDA each would wait for the work before it.
        order = np.concatenate([rows for rows, _ in done])
        outcome.logits[order] = torch.cat([logits for _, logits in done]).cpu().numpy()
    return outcome


def _plan(backend: Backend, lengths: np.ndarray, *, max_tokens: int) -> list[np.ndarray]:
    return plan_batches(
        lengths,
        max_tokens=max_tokens,
        max_padding=MAX_PADDING if backend.pads else 1.0,
        min_tokens=MIN_TOKENS,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    # torch's CPU allocator and ONNX Runtime's arena raise a plain RuntimeError.
    return "can't allocate memory" in message or "Failed to allocate memory" in message


def _is_alive(backend: Backend, probe: Encoded) -> bool:
    """Whether a harmless row still goes through: a CUDA context does not outlive some errors."""
    try:
        backend(probe, np.arange(len(probe))).cpu()
    except Exception:
        return False
    return True


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"the model failed: {type(error).__name__}: {lines[0]}"[:REASON_CHARACTERS]
