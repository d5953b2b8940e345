"""Who gets weight decay, and how the rate runs."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bertray.config import Optim
from bertray.train.optim import make_optimizer, make_schedule, parameter_groups


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def test_biases_and_norms_get_no_weight_decay_and_all_else_does(
    model: BertForSequenceClassification,
) -> None:
    decayed, free = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert free_names == {
        name for name in names.values() if name.endswith("bias") or "LayerNorm" in name
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_frozen_parameters_are_left_out(model: BertForSequenceClassification) -> None:
    model.bert.embeddings.requires_grad_(False)
    try:
        groups = parameter_groups(model, weight_decay=0.1)
    finally:
        model.bert.embeddings.requires_grad_(True)
    num_trained = sum(len(group["params"]) for group in groups)
    assert num_trained == sum("embeddings" not in name for name, _ in model.named_parameters())


def test_the_rate_rises_over_the_warmup_and_falls_to_zero(
    model: BertForSequenceClassification,
) -> None:
    optimizer = make_optimizer(model, Optim(learning_rate=1.0))
    schedule = make_schedule(optimizer, warmup_ratio=0.2, num_steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.5, *(1 - step / 8 for step in range(8))])
    assert schedule.get_last_lr() == pytest.approx([0, 0])


@pytest.mark.parametrize(("ratio", "num_steps"), [(0.0, 5), (0.1, 1), (1.0, 5)])
def test_odd_warmups_give_rates_within_bounds(
    model: BertForSequenceClassification, ratio: float, num_steps: int
) -> None:
    schedule = make_schedule(
        torch.optim.SGD(model.parameters(), lr=1.0), warmup_ratio=ratio, num_steps=num_steps
    )
    for _ in range(num_steps):
        assert 0 <= schedule.get_last_lr()[0] <= 1
        schedule.optimizer.step()
        schedule.step()
