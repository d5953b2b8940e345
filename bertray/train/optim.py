"""The optimizer and its schedule."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from bertray.config import Optim
from bertray.train.layers import depths

FUSED_ON = frozenset({"cpu", "cuda"})  # one kernel over all parameters, not several on each
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def make_optimizer(model: PreTrainedModel, optim: Optim) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the model must be on its device already."""
    fused = all(parameter.device.type in FUSED_ON for parameter in model.parameters())
    return torch.optim.AdamW(parameter_groups(model, optim), fused=fused)


def parameter_groups(model: PreTrainedModel, optim: Optim) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay and learning rate, the head's first.

    Biases get no weight decay, nor do other vectors: in an encoder those are the scales of its norm
    layers, whatever the family calls them. Matrices and embeddings get it.

    Raises:
        ConfigError: the rate is to differ by layer, and the model's layers cannot be told apart.
    """
    depth_of = depths(model) if optim.layer_decay < 1 else defaultdict[nn.Parameter, int](int)
    groups: dict[tuple[int, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim < 2 or "bias" in name else optim.weight_decay
            groups[depth_of[parameter], decay].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr": optim.learning_rate * optim.layer_decay**depth,
        }
        for (depth, decay), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def make_schedule(optimizer: torch.optim.Optimizer, optim: Optim, *, num_steps: int) -> LambdaLR:
    """A linear rise over the warmup's steps, then what ``optim.schedule`` says.

    It rises from a rate of zero, so a share of the steps leaves one of them at least.
    """
    warmup = optim.warmup_steps
    if warmup is None:
        warmup = min(math.ceil(optim.warmup_ratio * num_steps), num_steps - 1)
    schedule: LambdaLR = get_scheduler(
        SCHEDULES[optim.schedule],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
    )
    return schedule
