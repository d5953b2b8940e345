"""Lower layers keep their weights, in every family."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from bertray.config import Optim, Training
from bertray.errors import ConfigError
from bertray.train.layers import freeze, num_frozen
from bertray.train.loop import Epoch, is_stuck
from bertray.train.optim import make_optimizer

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "bert": BertConfig(vocab_size=30, num_hidden_layers=3, **SIZES),
    "distilbert": DistilBertConfig(vocab_size=30, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
    "roberta": RobertaConfig(vocab_size=30, num_hidden_layers=3, **SIZES),
    "electra": ElectraConfig(vocab_size=30, embedding_size=8, num_hidden_layers=3, **SIZES),
    "mpnet": MPNetConfig(vocab_size=30, num_hidden_layers=3, **SIZES),
    "deberta-v2": DebertaV2Config(vocab_size=30, num_hidden_layers=3, **SIZES),
    "modernbert": ModernBertConfig(vocab_size=30, num_hidden_layers=3, pad_token_id=0, **SIZES),
}


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_keep_their_weights_and_all_above_learn(family: str) -> None:
    model = build(family)
    freeze(model, num_layers=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, Optim(learning_rate=0.1, layer_decay=0.9))
    ids = torch.arange(5, 25).reshape(2, 10)
    model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    below = ("embeddings", "relative_attention_bias", ".0.", ".1.")
    frozen = {name for name in before if any(part in name for part in below)}
    assert not moved & frozen
    assert any("classifier" in name for name in moved)
    assert any(".2." in name for name in moved)


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
    shape = AlbertConfig(vocab_size=30, embedding_size=8, num_hidden_layers=3, **SIZES)
    model = AutoModelForSequenceClassification.from_config(shape)
    with pytest.raises(ConfigError, match="albert has no 3 layers of their own"):
        freeze(model, num_layers=1)


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
