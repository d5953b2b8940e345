"""Where each family of encoders keeps its parts.

The names read here are those of the checkpoints themselves, so they outlive changes of the code
around them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from bertray.model.distance import FARTHEST_BUCKET, RelativeBias, Rotary
from bertray.model.heads import linear_head
from bertray.model.layer import Embeddings, Layer, MeanPooled, PreNormLayer, SelfAttention, joined


@dataclass(frozen=True)
class Parts:
    """A sequence classifier.

    Attributes:
        embeddings: what the first layer takes.
        layers: in order; one may stand there again. The last one's ``pooled`` is called.
        head: over what that gives.
        bias: what attention adds to its scores in all layers.
    """

    embeddings: nn.Module
    layers: list[nn.Module]
    head: nn.Module
    bias: RelativeBias | None = None


def _bert(model: Any) -> Parts:
    if (head := linear_head(model)) is None:
        pooler = model.base_model.pooler
        head = nn.Sequential(pooler.dense, pooler.activation, model.classifier)
    return Parts(_embeddings(model), _bert_layers(model), head)


def _roberta(model: Any) -> Parts:
    return Parts(_embeddings(model), _bert_layers(model), _dense_head(model, nn.Tanh()))


def _electra(model: Any) -> Parts:
    projection = getattr(model.base_model, "embeddings_project", None)
    embeddings = _embeddings(model, projection=projection)
    return Parts(embeddings, _bert_layers(model), _dense_head(model, _activation("gelu")))


def _embeddings(model: Any, *, projection: nn.Linear | None = None) -> Embeddings:
    found = model.base_model.embeddings
    return Embeddings(
        found.word_embeddings,
        found.LayerNorm,
        positions=found.position_embeddings,
        token_types=getattr(found, "token_type_embeddings", None),
        projection=projection,
    )


def _dense_head(model: Any, activation: nn.Module) -> nn.Module:
    if (linear := linear_head(model)) is not None:
        return linear
    head = model.classifier
    return nn.Sequential(head.dense, activation, head.out_proj)


def _bert_layers(model: Any) -> list[nn.Module]:
    config = model.config
    return [
        Layer(
            SelfAttention(
                joined(
                    layer.attention.self.query, layer.attention.self.key, layer.attention.self.value
                ),
                layer.attention.output.dense,
                num_heads=config.num_attention_heads,
            ),
            attention_norm=layer.attention.output.LayerNorm,
            up=layer.intermediate.dense,
            activation=_activation(config.hidden_act),
            down=layer.output.dense,
            out_norm=layer.output.LayerNorm,
        )
        for layer in model.base_model.encoder.layer
    ]


def _mpnet(model: Any) -> Parts:
    config, encoder = model.config, model.base_model.encoder
    layers: list[nn.Module] = [
        Layer(
            SelfAttention(
                joined(layer.attention.attn.q, layer.attention.attn.k, layer.attention.attn.v),
                layer.attention.attn.o,
                num_heads=config.num_attention_heads,
            ),
            attention_norm=layer.attention.LayerNorm,
            up=layer.intermediate.dense,
            activation=_activation(config.hidden_act),
            down=layer.output.dense,
            out_norm=layer.output.LayerNorm,
        )
        for layer in encoder.layer
    ]
    bias = RelativeBias(
        encoder.relative_attention_bias.weight, num_positions=config.max_position_embeddings
    )
    return Parts(_embeddings(model), layers, _dense_head(model, nn.Tanh()), bias)


def _distilbert(model: Any) -> Parts:
    config = model.config
    layers: list[nn.Module] = [
        Layer(
            SelfAttention(
                joined(layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin),
                layer.attention.out_lin,
                num_heads=config.n_heads,
            ),
            attention_norm=layer.sa_layer_norm,
            up=layer.ffn.lin1,
            activation=_activation(config.activation),
            down=layer.ffn.lin2,
            out_norm=layer.output_layer_norm,
        )
        for layer in model.base_model.transformer.layer
    ]
    if (head := linear_head(model)) is None:
        head = nn.Sequential(model.pre_classifier, nn.ReLU(), model.classifier)
    return Parts(_embeddings(model), layers, head)


def _albert(model: Any) -> Parts:
    config, base = model.config, model.base_model
    groups = [
        [
            Layer(
                SelfAttention(
                    joined(layer.attention.query, layer.attention.key, layer.attention.value),
                    layer.attention.dense,
                    num_heads=config.num_attention_heads,
                ),
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
    layers: list[nn.Module] = list(chain.from_iterable(chosen))
    if (head := linear_head(model)) is None:
        head = nn.Sequential(base.pooler, base.pooler_activation, model.classifier)
    embeddings = _embeddings(model, projection=base.encoder.embedding_hidden_mapping_in)
    return Parts(embeddings, layers, head)


def _modernbert(model: Any) -> Parts:
    config, base = model.config, model.base_model
    rotaries = {kind: _rotary(config, kind) for kind in set(config.layer_types)}
    windows = {"full_attention": None, "sliding_attention": config.sliding_window}
    layers: list[nn.Module] = [
        PreNormLayer(
            SelfAttention(
                layer.attn.Wqkv,
                layer.attn.Wo,
                num_heads=config.num_attention_heads,
                rotary=rotaries[kind],
                window=windows[kind],
            ),
            attention_norm=layer.attn_norm,
            norm=layer.mlp_norm,
            up=layer.mlp.Wi,
            activation=_activation(config.hidden_activation),
            down=layer.mlp.Wo,
        )
        for kind, layer in zip(config.layer_types, base.layers, strict=True)
    ]
    head = [
        model.head.dense,
        _activation(config.classifier_activation),
        model.head.norm,
        model.classifier,
    ]
    if config.classifier_pooling == "mean":
        layers[-1] = MeanPooled(layers[-1], base.final_norm)
    else:
        head.insert(0, base.final_norm)
    return Parts(
        Embeddings(base.embeddings.tok_embeddings, base.embeddings.norm),
        layers,
        nn.Sequential(*head),
    )


def _rotary(config: Any, kind: str) -> Rotary:
    found = config.rope_parameters[kind]
    if found["rope_type"] != "default":
        raise KeyError(f"rotary position embeddings of type {found['rope_type']}")
    return Rotary(
        theta=found["rope_theta"],
        size=config.hidden_size // config.num_attention_heads,
        num_positions=config.max_position_embeddings,
    )


_TanhGELU = partial(nn.GELU, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {  # `onnx_graph` can write them all
    "gelu": nn.GELU,
    "gelu_fast": _TanhGELU,
    "gelu_new": _TanhGELU,
    "gelu_python": nn.GELU,
    "gelu_pytorch_tanh": _TanhGELU,
    "relu": nn.ReLU,
}


def activation_of(config: PretrainedConfig) -> str:
    """What stands between the matrices of a feed-forward network, by Hugging Face's name."""
    keys = {"distilbert": "activation", "modernbert": "hidden_activation"}
    return str(getattr(config, keys.get(config.model_type, "hidden_act"), "another activation"))


def _activation(name: str) -> nn.Module:
    """One fused operation where torch has it."""
    if name not in ACTIVATIONS:
        raise KeyError(f"activation {name}")
    return ACTIVATIONS[name]()


FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "albert": _albert,
    "bert": _bert,
    "camembert": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
ONNX_FAMILIES = frozenset(FAMILIES) - {"modernbert"}  # those that `onnx_graph` can write
OFFSET_POSITIONS = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})


def reach(config: PretrainedConfig) -> int:
    """Tokens beyond which distance means something else to attention; 0 if it knows none."""
    if config.model_type == "mpnet":
        return FARTHEST_BUCKET
    return int(config.sliding_window) if config.model_type == "modernbert" else 0
