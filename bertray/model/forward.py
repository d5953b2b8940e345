"""Run a model over many rows and lose none: memory that runs out, a row that breaks it.

# N = rows, C = labels
"""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bertray.model.rate import Stopwatch
from bertray.schema import NO_TOKENS, UNKNOWN_ID
from bertray.text.batching import plan_batches
from bertray.text.ragged import Encoded, rows_from

logger = logging.getLogger(__name__)

REASON_CHARACTERS = 200  # of an exception's message in a row's status

# Where rows are padded, a batch ends where more than this share of it would be padding, unless it
# is so small that the overhead of a forward pass weighs more.
MAX_PADDING = 0.03
MIN_TOKENS = 256


class Backend(Protocol):
    """Computes a batch in two steps: rows to the device, then what is there to logits."""

    @property
    def pads(self) -> bool:
        """Whether rows are padded to the longest of their batch."""

    @property
    def is_even(self) -> bool:
        """Whether all rows of a batch must have one length, for padding changes its numbers."""

    @property
    def is_first_only(self) -> bool:
        """Whether the last layer is computed for the first token of each row alone."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def gather(self, encoded: Encoded, rows: np.ndarray) -> Any:
        """Some rows as a batch."""

    def __call__(self, batch: Any) -> Tensor:
        """Logits of a batch of B rows, float32 of shape (B, C)."""


@dataclass
class Outcome:
    """Logits of N rows, and what it took.

    Attributes:
        max_tokens: the budget as it is now.
        stopwatch: runs while the device computes.
        failures: why a row has no logits, by row.
        num_halvings: times that memory ran out.
        num_batches: forward passes.
        num_padded_tokens: what they computed, padding included.
        transfer_s: host time for laying out batches and sending them to the device.
        parts: rows and their logits, batch by batch.
    """

    max_tokens: int
    stopwatch: Stopwatch
    failures: dict[int, str] = field(default_factory=dict)
    num_halvings: int = 0
    num_batches: int = 0
    num_padded_tokens: int = 0
    transfer_s: float = 0.0
    parts: list[tuple[np.ndarray, Tensor]] = field(default_factory=list)

    @property
    def compute_s(self) -> float:
        """What the device took; to be read after `collect`. A CPU lays out its batches itself."""
        seconds = self.stopwatch.seconds
        return seconds if self.stopwatch.is_apart else seconds - self.transfer_s

    def collect(self, *, num_rows: int, num_labels: int) -> np.ndarray:
        """Wait for the device; logits of shape (N, C), NaN for a row that has none."""
        logits = np.full((num_rows, num_labels), np.nan, np.float32)
        if self.parts:
            # One copy at the end: on CUDA each would wait for the work before it.
            order = np.concatenate([rows for rows, _ in self.parts])
            logits[order] = torch.cat([part for _, part in self.parts]).cpu().numpy()
        return logits


def run_batches(
    backend: Backend,
    encoded: Encoded,
    *,
    max_tokens: int,
    probe: Encoded,
    num_token_ids: int | None = None,
) -> Outcome:
    """Compute all rows, longest first; on CUDA the work may still be under way.

    When memory runs out the budget is halved, for good. A batch that fails otherwise is halved
    until the row at fault stands alone. Rows of no tokens stay out of all batches: beside others a
    model would read nothing but padding of them. So do rows with token ids that the model does not
    have, which CUDA would not outlive.

    Args:
        backend: computes a batch.
        encoded: the tokens of N rows.
        max_tokens: rows x longest row of a batch.
        probe: a harmless row. If the backend fails on it too, no row is to blame.
        num_token_ids: that the model has; None if it takes any.

    Raises:
        Exception: what the backend raised, if it is the backend itself that is broken, or if memory
            does not do for a single row.
    """
    lengths = encoded.lengths
    outcome = Outcome(max_tokens, Stopwatch(backend.device))
    outcome.failures |= dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), NO_TOKENS)
    if num_token_ids is not None and len(unknown := rows_from(encoded, num_token_ids)):
        outcome.failures |= dict.fromkeys(unknown.tolist(), UNKNOWN_ID)
        logger.warning(
            "some rows hold token ids from %d on, which the model does not have; put the tokenizer "
            "that it was trained with into its folder",
            num_token_ids,
        )
    rest = np.setdiff1d(np.arange(len(encoded)), list(outcome.failures))
    plan = _plan(backend, lengths[rest], max_tokens=max_tokens)
    pending = deque(rest[batch] for batch in plan)
    while pending:
        rows = pending.popleft()
        try:
            start = time.perf_counter()
            batch = backend.gather(encoded, rows)
            outcome.transfer_s += time.perf_counter() - start
            outcome.parts.append((rows, backend(batch)))
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
    outcome.stopwatch.stop()
    return outcome


def _plan(backend: Backend, lengths: np.ndarray, *, max_tokens: int) -> list[np.ndarray]:
    if backend.is_even:
        return plan_batches(lengths, max_tokens=max_tokens, max_padding=0.0)
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
        backend(backend.gather(probe, np.arange(len(probe)))).cpu()
    except Exception:
        return False
    return True


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"the model failed: {type(error).__name__}: {lines[0]}"[:REASON_CHARACTERS]
