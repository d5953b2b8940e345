"""The layers on top of an encoder: those its family has, or one linear layer on the first token.

The linear one is Hugging Face's own token classifier, read at [CLS] alone: so its folder is a plain
Hugging Face one as well. ModernBERT's has a layer and a norm in between, so it has no linear one.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from bertray.errors import ConfigError

if TYPE_CHECKING:  # three seconds of imports, which an actor with ONNX Runtime needs not
    from transformers import PreTrainedModel

Head = Literal["family", "linear"]


def load_classifier(
    folder: Path, *, head: Head, **options: Any
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """A model that gives C logits a row, on the CPU, and Hugging Face's report of the loading.

    Args:
        folder: Hugging Face model folder.
        head: "linear" for dropout and one linear layer over the first token's last hidden state.
        options: of ``from_pretrained``.

    Raises:
        ConfigError: the family's token classifier is more than one linear layer.
        OSError, ValueError, RuntimeError: as ``from_pretrained`` has them.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kinds: dict[Head, Any] = {
        "family": AutoModelForSequenceClassification,
        "linear": AutoModelForTokenClassification,
    }
    model, report = kinds[head].from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **options
    )
    if head == "linear":
        weighty = [part for part in head_modules(model) if list(part.parameters(recurse=False))]
        if len(weighty) != 1 or not isinstance(weighty[0], nn.Linear):
            raise ConfigError(
                f"model.head=linear: {model.config.model_type} has none; leave it out"
            )
        model.register_forward_hook(_first_token)
    return cast("PreTrainedModel", model), report


def set_dropout(model: "PreTrainedModel", share: float) -> None:
    """Let dropout in the head zero this share of what it gets."""
    for module in head_modules(model):
        if isinstance(module, nn.Dropout):
            module.p = share


def head_modules(model: "PreTrainedModel") -> list[nn.Module]:
    """All modules that are no part of the encoder, BERT's pooler neither."""
    inside = set(model.base_model.modules())
    return [module for module in model.modules() if module is not model and module not in inside]


def linear_head(model: "PreTrainedModel") -> nn.Sequential | None:
    """The one linear layer, if that is the head."""
    if _first_token not in model._forward_hooks.values():
        return None
    return nn.Sequential(cast(Any, model).classifier)


def _first_token(_model: nn.Module, _inputs: Any, output: Any) -> Any:
    output.logits = output.logits[:, 0]
    return output
