"""Who gets weight decay, and how the rate runs."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from bertray.config import Optim
from bertray.train.optim import make_optimizer, make_schedule, parameter_groups

SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**SMALL, num_hidden_layers=1))


def test_biases_and_norms_get_no_weight_decay_and_all_else_does(
    model: BertForSequenceClassification,
) -> None:
    free, decayed = parameter_groups(model, Optim(weight_decay=0.1))
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert free_names == {
        name for name in names.values() if name.endswith("bias") or "LayerNorm" in name
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_one_kernel_updates_all_parameters(model: BertForSequenceClassification) -> None:
    assert make_optimizer(model, Optim()).defaults["fused"]


def test_frozen_parameters_are_left_out(model: BertForSequenceClassification) -> None:
    model.bert.embeddings.requires_grad_(False)
    try:
        groups = parameter_groups(model, Optim())
    finally:
        model.bert.embeddings.requires_grad_(True)
    num_trained = sum(len(group["params"]) for group in groups)
    assert num_trained == sum("embeddings" not in name for name, _ in model.named_parameters())


def test_each_layer_takes_its_share_of_the_rate_of_the_one_above() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL, num_hidden_layers=3))
    groups = parameter_groups(model, Optim(learning_rate=1.0, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate_of = {names[id(one)]: group["lr"] for group in groups for one in group["params"]}
    assert rate_of.keys() == set(names.values())
    for prefix, rate in {
        "classifier.": 1.0,
        "bert.pooler.": 1.0,
        "bert.encoder.layer.2.": 0.5,
        "bert.encoder.layer.0.": 0.125,
        "bert.embeddings.": 0.0625,
    }.items():
        assert {rate_of[name] for name in rate_of if name.startswith(prefix)} == {rate}
    assert groups[0]["lr"] == 1.0  # the one that is reported


def rates_of(optim: Optim, *, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = make_schedule(optimizer, optim, num_steps=num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return [*rates, schedule.get_last_lr()[0]]


def test_the_rate_rises_over_the_warmup_and_falls_to_zero() -> None:
    rates = rates_of(Optim(warmup_ratio=0.2), num_steps=10)
    assert rates == pytest.approx([0, 0.5, *(1 - step / 8 for step in range(9))])


def test_the_rate_falls_along_a_cosine_or_not_at_all_if_one_says_so() -> None:
    cosine = rates_of(Optim(schedule="cosine", warmup_steps=2), num_steps=10)
    falls = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert cosine == pytest.approx([0, 0.5, *falls])
    constant = rates_of(Optim(schedule="constant", warmup_steps=4), num_steps=10)
    assert constant == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 7])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    ("warmup", "num_steps"),
    [({"warmup_ratio": 0.0}, 5), ({}, 1), ({"warmup_ratio": 1.0}, 5), ({"warmup_steps": 9}, 5)],
)
def test_odd_warmups_give_rates_within_bounds(
    schedule: str, warmup: dict[str, float], num_steps: int
) -> None:
    rates = rates_of(Optim(schedule=schedule, **warmup), num_steps=num_steps)
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates[:-1]) > 0
