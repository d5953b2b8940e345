"""Which layers keep their weights, and when; test_families.py has each family's."""

import pytest
import torch
from small_models import PACKED
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bertray.config import Training
from bertray.errors import ConfigError
from bertray.train.layers import freeze, num_frozen
from bertray.train.loop import is_stuck
from bertray.train.state import Epoch


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


def test_a_model_whose_layers_are_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="albert has no 3 layers of their own"):
        freeze(build("albert"), num_layers=1)


def epochs(*values: float) -> list[Epoch]:
    return [
        Epoch(number, 0.0, {"loss": value}, 1, 1, 1.0) for number, value in enumerate(values, 1)
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
