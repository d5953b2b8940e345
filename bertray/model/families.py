"""Where each family of encoders keeps its parts.

The names read here are those of the checkpoints themselves, so they outlive changes of the code
around them.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import nn

from bertray.model.layer import Layer

# The layers in order (one may stand there again), what comes between embeddings and layers if
# anything, and the head over the first token.
Parts = tuple[list[Layer], nn.Module | None, nn.Module]


def _bert(model: Any) -> Parts:
    pooler = model.base_model.pooler
    return (
        _bert_layers(model),
        None,
        nn.Sequential(pooler.dense, pooler.activation, model.classifier),
    )


def _roberta(model: Any) -> Parts:
    head = model.classifier
    return _bert_layers(model), None, nn.Sequential(head.dense, nn.Tanh(), head.out_proj)


def _electra(model: Any) -> Parts:
    head = model.classifier
    projection = getattr(model.base_model, "embeddings_project", None)
    return (
        _bert_layers(model),
        projection,
        nn.Sequential(head.dense, _activation("gelu"), head.out_proj),
    )


def _bert_layers(model: Any) -> list[Layer]:
    config = model.config
    return [
        Layer(
            query=layer.attention.self.query,
            key=layer.attention.self.key,
            value=layer.attention.self.value,
            num_heads=config.num_attention_heads,
            attention_out=layer.attention.output.dense,
            attention_norm=layer.attention.output.LayerNorm,
            up=layer.intermediate.dense,
            activation=_activation(config.hidden_act),
            down=layer.output.dense,
            out_norm=layer.output.LayerNorm,
        )
        for layer in model.base_model.encoder.layer
    ]


def _distilbert(model: Any) -> Parts:
    config = model.config
    layers = [
        Layer(
            query=layer.attention.q_lin,
            key=layer.attention.k_lin,
            value=layer.attention.v_lin,
            num_heads=config.n_heads,
            attention_out=layer.attention.out_lin,
            attention_norm=layer.sa_layer_norm,
            up=layer.ffn.lin1,
            activation=_activation(config.activation),
            down=layer.ffn.lin2,
            out_norm=layer.output_layer_norm,
        )
        for layer in model.base_model.transformer.layer
    ]
    return layers, None, nn.Sequential(model.pre_classifier, nn.ReLU(), model.classifier)


def _albert(model: Any) -> Parts:
    config, base = model.config, model.base_model
    groups = [
        [
            Layer(
                query=layer.attention.query,
                key=layer.attention.key,
                value=layer.attention.value,
                num_heads=config.num_attention_heads,
                attention_out=layer.attention.dense,
                attention_norm=layer.attention.LayerNorm,
                up=layer.ffn,
                activation=_activation(config.hidden_act),
                down=layer.ffn_output,
                out_norm=layer.full_layer_layer_norm,
            )
            for layer in group.albert_layers
        ]
        for group in base.encoder.albert_layer_groups
    ]
    per_group = config.num_hidden_layers / config.num_hidden_groups
    chosen = (groups[int(index / per_group)] for index in range(config.num_hidden_layers))
    layers = list(chain.from_iterable(chosen))
    head = nn.Sequential(base.pooler, base.pooler_activation, model.classifier)
    return layers, base.encoder.embedding_hidden_mapping_in, head


def _activation(name: str) -> nn.Module:
    """One fused operation where torch has it."""
    if name == "gelu":
        return nn.GELU()
    if name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    if name == "relu":
        return nn.ReLU()
    raise KeyError(f"activation {name}")


FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "albert": _albert,
    "bert": _bert,
    "camembert": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
OFFSET_POSITIONS = frozenset({"camembert", "roberta", "xlm-roberta"})
