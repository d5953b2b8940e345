"""Which parameters belong to which layer of an encoder: to freeze the lower ones, or slow them."""

from torch import nn
from transformers import PreTrainedModel

from bertray.config import Training
from bertray.errors import ConfigError

# What MPNet and DeBERTa know of distances, and the convolution of large DeBERTas' first layer.
BESIDE = ("relative_attention_bias", "rel_embeddings", "LayerNorm", "conv")
EMBEDDINGS = ("embeddings", "embeddings_project")  # the second where ELECTRA's are narrower


def freeze(model: PreTrainedModel, *, num_layers: int | None) -> None:
    """Let the embeddings and the first layers keep their weights, and no others.

    Args:
        model: the classifier.
        num_layers: 0 for the embeddings alone, None to train all.

    Raises:
        ConfigError: the model has fewer layers, or shares one among all of them as ALBERT does.
    """
    model.requires_grad_(True)
    if num_layers is None:
        return
    layers = encoder_layers(model)
    if num_layers > len(layers):
        raise ConfigError(
            f"training.freeze_layers={num_layers}: the model has {len(layers)} layers"
        )
    for module in (*embeddings(model), *layers[:num_layers]):
        module.requires_grad_(False)


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
    if layers := own_layers(model):
        return layers
    raise ConfigError(
        "training.freeze_layers, training.unfreeze_layers, optim.layer_decay: "
        f"{model.config.model_type} has no {model.config.num_hidden_layers} layers of their own; "
        "leave these settings out"
    )


def own_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The same, or none where one layer is shared among all."""
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """What lies below the layers, and what all of them look up: where a token stands to another."""
    base = model.base_model
    owners = [(base, EMBEDDINGS), (getattr(base, "encoder", None), BESIDE)]
    found = [getattr(owner, name, None) for owner, names in owners for name in names]
    return [module for module in found if module is not None]
