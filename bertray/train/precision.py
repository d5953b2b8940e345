"""Mixed precision: which number type the matrix products take, and the scale that float16 needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Name = Literal["auto", "float32", "bfloat16", "float16"]

LEAST_SCALE = 2.0**-14  # a gradient that overflows at it has overflowed thirty times in turn


class Precision:
    """Autocast for forward passes, and a gradient scaler where numbers are small of range.

    Args:
        name: the setting.
        device: that the model is on.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        if name == "auto":
            able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bfloat16" if able else "float32"
        self.dtype: torch.dtype = getattr(torch, name)
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a forward pass in this precision."""
        lower = self.dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self.dtype if lower else None, enabled=lower):
            yield

    @property
    def may_overflow(self) -> bool:
        """Whether gradients that are not finite come to pass, and lower the scale."""
        return self._scaler.is_enabled()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size, before they are clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take the optimizer's step, unless gradients overflowed; returns whether it was taken."""
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale

    @property
    def is_lost(self) -> bool:
        """Whether gradients are not finite however little they are scaled."""
        return self.may_overflow and self._scaler.get_scale() < LEAST_SCALE

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo `state_dict`."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
