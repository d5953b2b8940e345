"""Which parameters belong to which layer of an encoder: to freeze the lower ones, or slow them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from bertray.config import Training
from bertray.errors import ConfigError

BESIDE = ("relative_attention_bias",)  # what MPNet knows of distances
# The same of DeBERTa with its norm, and the convolution of large ones' first layer. Of XLM-R XL's
# encoder, which has no such embeddings, LayerNorm is the last thing of all.
DEBERTAS = ("rel_embeddings", "LayerNorm", "conv")
EMBEDDINGS = ("embeddings", "embeddings_project")  # the second where ELECTRA's are narrower


def freeze(model: PreTrainedModel, *, num_layers: int | None) -> None:
    """Let the embeddings and the first layers keep their weights; all else that can be is trained.

    Args:
        model: the classifier.
        num_layers: 0 for the embeddings alone, None to train all.

    Raises:
        ConfigError: the model has fewer layers, or they cannot be told apart.
    """
    fixed = fixed_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed)
    if num_layers is None:
        return
    layers = encoder_layers(model) if num_layers else []
    if num_layers > len(layers):
        raise ConfigError(
            f"training.freeze_layers={num_layers}: the model has {len(layers)} layers"
        )
    for module in (*embeddings(model), *layers[:num_layers]):
        module.requires_grad_(False)


def fixed_parameters(model: PreTrainedModel) -> set[str]:
    """What the family never trains, such as RoFormer's table of positions.

    No gradient comes to these, and DDP would wait for it. ``from_pretrained`` forgets which they
    are, so a model without weights is made, which knows it.
    """
    with torch.device("meta"):
        made = type(model)(model.config)
    return {name for name, parameter in made.named_parameters() if not parameter.requires_grad}


def num_frozen(training: Training, *, epoch: int, num_layers: int) -> int | None:
    """What `freeze` is to be told in an epoch, counted from 0, of a model of so many layers."""
    kept = training.freeze_layers
    if training.unfreeze_layers is None:
        return kept
    left = num_layers - epoch * training.unfreeze_layers
    return kept if left < 0 else max(left, kept or 0)


def depths(model: PreTrainedModel) -> dict[nn.Parameter, int]:
    """How far each parameter lies below the head: 0 for the head's own, most for the embeddings.

    Raises:
        ConfigError: its layers cannot be told apart.
    """
    layers = encoder_layers(model)
    found = dict.fromkeys(model.parameters(), 0)
    for depth, layer in enumerate(reversed(layers), start=1):
        found.update(dict.fromkeys(layer.parameters(), depth))
    for module in embeddings(model):
        found.update(dict.fromkeys(module.parameters(), len(layers) + 1))
    return found


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """`own_layers`, for settings that need them.

    Raises:
        ConfigError: there are none.
    """
    if layers := own_layers(model):
        return layers
    raise ConfigError(
        "training.freeze_layers, training.unfreeze_layers, optim.layer_decay: "
        f"the {model.config.num_hidden_layers} layers of {model.config.model_type} cannot be told "
        "apart; leave these settings out"
    )


def own_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers, lowest first: the list of modules that is as long as the config says.

    None where one layer is shared among all, as in ALBERT, or where several such lists stand beside
    each other, as in XLM and FlauBERT: attentions in one, what comes after them in others.
    """
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        lists = [one for one in module.children() if isinstance(one, nn.ModuleList)]
        found = [one for one in lists if len(one) == count]
        if found:
            return list(found[0]) if len(found) == 1 else []
    return []


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """What lies below the layers, and what all of them look up: where a token stands to another."""
    base, encoder = model.base_model, getattr(model.base_model, "encoder", None)
    owners = [(base, EMBEDDINGS), (encoder, BESIDE)]
    if hasattr(encoder, DEBERTAS[0]):
        owners.append((encoder, DEBERTAS))
    found = [getattr(owner, name, None) for owner, names in owners for name in names]
    return [module for module in found if module is not None]
