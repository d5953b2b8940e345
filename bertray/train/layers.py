"""Which parameters belong to which layer of an encoder: to freeze the lower ones, or slow them."""

from torch import nn
from transformers import PreTrainedModel

from bertray.errors import ConfigError

EMBEDDINGS = ("embeddings", "embeddings_project")  # the second where ELECTRA's are narrower


def freeze(model: PreTrainedModel, *, num_layers: int) -> None:
    """Let the embeddings and the first layers keep their weights.

    Raises:
        ConfigError: the model has fewer layers, or shares one among all of them as ALBERT does.
    """
    layers = encoder_layers(model)
    if num_layers > len(layers):
        raise ConfigError(
            f"training.freeze_layers={num_layers}: the model has {len(layers)} layers"
        )
    for module in (*embeddings(model), *layers[:num_layers]):
        module.requires_grad_(False)


def depths(model: PreTrainedModel) -> dict[nn.Parameter, int]:
    """How far each parameter lies below the head: 0 for the head's own, most for the embeddings.

    Raises:
        ConfigError: the model shares one layer among all.
    """
    layers = encoder_layers(model)
    found = dict.fromkeys(model.parameters(), 0)
    for depth, layer in enumerate(reversed(layers), start=1):
        found.update(dict.fromkeys(layer.parameters(), depth))
    for module in embeddings(model):
        found.update(dict.fromkeys(module.parameters(), len(layers) + 1))
    return found


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers, lowest first: the list of modules that is as long as the config says.

    Raises:
        ConfigError: there is none.
    """
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(
        f"training.freeze_layers, optim.layer_decay: {model.config.model_type} has no {count} "
        "layers of their own; leave these settings out"
    )


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """What lies below the layers."""
    return [
        getattr(model.base_model, name) for name in EMBEDDINGS if hasattr(model.base_model, name)
    ]
