"""How much of what a device can do a forward pass makes of it."""

import time

import numpy as np
import torch
from transformers import PretrainedConfig

# Of the square matrices: large enough for the full rate, small enough for any device of the class.
SIZES = {"cpu": 1024, "cuda": 8192}
SECONDS = 0.1
TRIES = 3


def forward_flops(
    config: PretrainedConfig, lengths: np.ndarray, *, first_only: bool = False
) -> float:
    """Floating-point operations of an encoder's matrix multiplications, padding not counted.

    A token of a row of n tokens takes, per layer, two for each weight of the four projections of
    width h and of the two of the feed-forward network, h x i, and 4 n h for the attention scores
    and their sums: for BERT-base 169.9 M + 36,864 n over its twelve layers. A gated feed-forward
    network has a third matrix; a window of w tokens to either side leaves 2 w + 1 of the n.

    Args:
        config: of the model, or of one that holds the text's.
        lengths: tokens per row, integers of shape (rows,).
        first_only: the last layer is computed for each row's first token, but for keys and values.

    Returns:
        0.0 where the config does not say how many layers there are, or how wide.
    """
    try:
        config = config.get_text_config()
        layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    except (AttributeError, TypeError, ValueError):  # ValueError: it holds several
        return 0.0
    inner = int(getattr(config, "intermediate_size", 0) or getattr(config, "hidden_dim", 4 * width))
    is_gated = config.model_type == "modernbert"
    per_token = 2 * (4 * width * width + (3 if is_gated else 2) * width * inner)
    tokens = lengths.astype(np.float64)
    kinds = getattr(config, "layer_types", None) or []
    num_sliding = kinds.count("sliding_attention")
    near = np.minimum(tokens, 2 * config.sliding_window + 1) if num_sliding else tokens
    seen = (layers - num_sliding) * tokens + num_sliding * near
    flops = tokens * (layers * per_token + 4 * width * seen)
    if first_only:
        seen = near if kinds[-1:] == ["sliding_attention"] else tokens
        rest = per_token - 2 * 2 * width * width + 4 * width * seen
        flops -= np.maximum(tokens - 1, 0) * rest
    return float(flops.sum())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of square matrix multiplications, with the threads torch is set to.

    The best of some tries of a tenth of a second: what the device can do, not what it did just now.
    """
    size = SIZES[device.type]
    one = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(TRIES):
        count, start = 0, _now(device)
        while (seconds := _now(device) - start) < SECONDS:
            one @ one
            count += 1
        best = max(best, count * 2.0 * size**3 / seconds)
    return best


class Stopwatch:
    """Seconds that a device takes for what it is sent until `stop`; the host need not wait."""

    def __init__(self, device: torch.device) -> None:
        self._events = [_event() for _ in range(2)] if device.type == "cuda" else None
        if self._events is not None:
            self._events[0].record()
        self._started_at = self._stopped_at = time.perf_counter()

    def stop(self) -> None:
        """What was sent until now counts."""
        if self._events is not None:
            self._events[1].record()
        self._stopped_at = time.perf_counter()

    @property
    def is_apart(self) -> bool:
        """Whether the device works beside the host."""
        return self._events is not None

    @property
    def seconds(self) -> float:
        """Waits for the device."""
        if self._events is None:
            return self._stopped_at - self._started_at
        start, end = self._events
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
