"""The optimizer and its schedule."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bertray.config import Optim

FUSED_ON = frozenset({"cpu", "cuda"})  # one kernel over all parameters, not several on each


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the model must be on its device already."""
    fused = all(parameter.device.type in FUSED_ON for parameter in model.parameters())
    groups = parameter_groups(model, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.learning_rate, fused=fused)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with weight decay, then those without.

    Biases get none, nor do other vectors: in an encoder those are the scales of its norm layers,
    whatever the family calls them. Matrices and embeddings get it.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or "bias" in name else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def make_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_ratio: float, num_steps: int
) -> LambdaLR:
    """A linear rise over the warmup share of all steps, then a linear decay to zero."""
    num_warmup_steps = math.ceil(warmup_ratio * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return max(num_steps - step, 0) / max(num_steps - num_warmup_steps, 1)

    return LambdaLR(optimizer, factor)
