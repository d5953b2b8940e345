"""Which layers keep their weights, and when; test_families.py has each family's."""

from pathlib import Path

import pytest
import torch
from small_models import COMMON, DEBERTA, PACKED
from transformers import (
    AutoModelForSequenceClassification,
    FlaubertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RoFormerConfig,
    XLMConfig,
    XLMRobertaXLConfig,
)

from bertray.config import Training
from bertray.errors import ConfigError
from bertray.train.layers import depths, freeze, num_frozen
from bertray.train.loop import is_stuck
from bertray.train.state import Epoch

OF_XLM = {"vocab_size": 120, "emb_dim": 32, "n_layers": 3, "n_heads": 4}


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(PACKED[family])


def test_layers_are_let_go_of_again() -> None:
    model = build("bert")
    frozen = []
    for num_layers in (3, 1, 0, None):
        freeze(model, num_layers=num_layers)
        frozen.append(sum(not value.requires_grad for value in model.parameters()))
    assert frozen[0] > frozen[1] > frozen[2] > frozen[3] == 0


@pytest.mark.parametrize(
    ("freeze_layers", "by_epoch"),
    [(None, [3, 1, None, None]), (0, [3, 1, 0, 0]), (2, [3, 2, 2, 2])],
)
def test_gradual_unfreezing_goes_from_the_head_down_to_what_is_to_stay_frozen(
    freeze_layers: int | None, by_epoch: list[int | None]
) -> None:
    training = Training(unfreeze_layers=2, freeze_layers=freeze_layers)
    assert [num_frozen(training, epoch=epoch, num_layers=3) for epoch in range(4)] == by_epoch
    plain = Training(freeze_layers=freeze_layers)
    assert num_frozen(plain, epoch=0, num_layers=3) == freeze_layers


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"training\.freeze_layers=4: the model has 3 layers"):
        freeze(build("bert"), num_layers=4)


@pytest.mark.parametrize(
    "config",
    [PACKED["albert"], FlaubertConfig(**OF_XLM), XLMConfig(**OF_XLM)],
    ids=lambda config: config.model_type,
)
def test_a_model_whose_layers_cannot_be_told_apart_is_an_error(config: PretrainedConfig) -> None:
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match=rf"the 3 layers of {config.model_type} cannot be told"):
        freeze(model, num_layers=1)
    freeze(model, num_layers=0)  # the embeddings alone need no layers
    assert not all(value.requires_grad for value in model.parameters())


def test_what_a_family_does_not_train_stays_so_in_a_model_that_was_loaded(tmp_path: Path) -> None:
    made = AutoModelForSequenceClassification.from_config(RoFormerConfig(**COMMON))
    made.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for num_layers in (None, 1, None):
        freeze(model, num_layers=num_layers)
        assert not model.roformer.encoder.embed_positions.weight.requires_grad
    model.train()(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([1])).loss.backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)


def test_the_norm_above_all_layers_of_xlm_r_xl_is_trained_and_debertas_below_them_frozen() -> None:
    of_family = {"xl": XLMRobertaXLConfig(**COMMON), "deberta": DEBERTA}
    for family, config in of_family.items():
        model = AutoModelForSequenceClassification.from_config(config)
        freeze(model, num_layers=1)
        norm = model.base_model.encoder.LayerNorm.weight
        assert norm.requires_grad == (family == "xl")
        assert (depths(model)[norm] == 0) == (family == "xl")


def epochs(*values: float) -> list[Epoch]:
    return [
        Epoch(number, number, 0.0, {"loss": value}, 1, 1, 1.0)
        for number, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("values", "stuck"),
    [((), False), ((3,), False), ((3, 2, 2.5), False), ((3, 2, 2, 2.5), True), ((1, 2, 3), True)],
)
def test_training_stops_after_some_epochs_without_a_better_metric(
    values: tuple[float, ...], stuck: bool
) -> None:
    training = Training(early_stopping_patience=2)
    assert is_stuck(epochs(*values), training, metric="loss") is stuck
    assert not is_stuck(epochs(*values), Training(), metric="loss")
