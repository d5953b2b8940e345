"""A `PackedModel` as an ONNX graph, in the fused operations that ONNX Runtime has for encoders.

The graph is written node by node instead of exported and then optimised, so that nothing hangs on
how an exporter traces a model or on which patterns an optimiser knows.
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)

# B = rows in the micro-batch, L = longest of them, H = hidden size, C = labels
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bertray.model.layer import Layer
from bertray.model.packed import PackedModel

Precision = Literal["float32", "int8"]

GRAPH_VERSION = 7  # to be raised with any change here: graphs are cached
OUTPUT = "logits"
OPSET = 18
IR_VERSION = 9
# In an 8-bit product each token has a scale of its own, and each output of the weights.
LIMIT = 127
BYTES = 255
ZERO = 128  # the byte that stands for zero in activations
# GELU is never below this (its minimum, at -0.75), so few bytes do for what is negative: the others
# count in steps of little over half the size.
GELU_LEAST, GELU_ZERO = -0.17, 40


def write_graph(packed: PackedModel, path: Path, *, precision: Precision) -> None:
    """Write the graph to ``path``, its weights in a file beside it.

    Inputs are int32: ``input_ids``, ``position_ids`` and, if the model has segments,
    ``token_type_ids`` of shape (B, L), and ``lengths`` of shape (B,). The output ``logits`` is
    float32 of shape (B, C).
    """
    graph = _Graph(precision)
    _write(graph, packed)
    names = ["input_ids", "position_ids"]
    if packed.embeddings.token_types is not None:
        names.append("token_type_ids")
    integer = TensorProto.INT32
    inputs = [helper.make_tensor_value_info(name, integer, ["B", "L"]) for name in names]
    inputs.append(helper.make_tensor_value_info("lengths", integer, ["B"]))
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", "C"])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "encoder", inputs, outputs, list(graph.weights.values())),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        ir_version=IR_VERSION,
    )
    # Beside it, because a graph of over 2 GB cannot be read.
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.weights")


class _Graph:
    """Nodes and weights as they come. Its methods return the name of what they compute."""

    def __init__(self, precision: Precision) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._precision = precision
        self._in_bytes: dict[str, tuple[str, str]] = {}
        self._shape: str | None = None
        self._is_even: str | None = None

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def fused(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.node(op, *inputs, domain="com.microsoft", **attributes)

    def weight(self, values: Tensor, make: Callable[[Tensor], Tensor] | None = None) -> str:
        """What ``make`` makes of a parameter; of one met before, as in ALBERT, the same again."""
        key = (values.data_ptr(), values.shape, make)
        if key not in self.weights:
            made = (values if make is None else make(values)).detach().numpy()
            name = f"weight_{len(self.weights)}"
            self.weights[key] = numpy_helper.from_array(np.ascontiguousarray(made), name)
        return self.weights[key].name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, array: np.ndarray) -> str:
        key = (array.dtype, array.shape, *array.ravel())
        if key not in self.weights:
            self.weights[key] = numpy_helper.from_array(array, f"weight_{len(self.weights)}")
        return self.weights[key].name

    def product(self, x: str, weight: Tensor, *, exact: bool = False, is_gelu: bool = False) -> str:
        """``x @ weight.T``, in 8 bits unless ``exact``."""
        if exact or self._precision == "float32":
            return self.node("MatMul", x, self.weight(weight, _transposed))
        zero = self.constant(np.array(GELU_ZERO if is_gelu else ZERO, np.uint8))
        rounded, scale = self._rounded(x, zero, width=weight.shape[1], is_gelu=is_gelu)
        product = self.fused(
            "MatMulIntegerToFloat",
            rounded,
            self.weight(weight, _rounded),
            self.constant(np.array(1.0, np.float32)),
            self.weight(weight, _scales),
            zero,
        )
        scaled = self.node("Mul", product, scale)
        return self.node("Reshape", scaled, self._rows_and_columns())

    def _rounded(self, x: str, zero: str, *, width: int, is_gelu: bool) -> tuple[str, str]:
        """Bytes of shape (B x L, width) and scales of shape (B x L, 1), made once for ``x``."""
        if x not in self._in_bytes:
            flat = self.node("Reshape", x, self.numbers(-1, width))
            last = self.numbers(-1)
            if is_gelu:
                largest, most, least = flat, BYTES - GELU_ZERO, -GELU_LEAST / GELU_ZERO
            else:
                largest, most, least = self.node("Abs", flat), LIMIT, 1e-30
            largest = self.node("ReduceMax", largest, last, keepdims=1)
            scale = self.node("Mul", largest, self.constant(np.array(1 / most, np.float32)))
            scale = self.node("Max", scale, self.constant(np.array(least, np.float32)))
            each = self.node("Squeeze", scale, last)
            zeros = self.node("Expand", zero, self.node("Shape", each))
            self._in_bytes[x] = self.node("QuantizeLinear", flat, each, zeros, axis=0), scale
        return self._in_bytes[x]

    def _rows_and_columns(self) -> str:
        """The shape (B, L, -1), made once."""
        if self._shape is None:
            rectangle = self.node("Shape", "input_ids")
            self._shape = self.node("Concat", rectangle, self.numbers(-1), axis=0)
        return self._shape

    def attention(self, *inputs: str, position_bias: str, num_heads: int) -> str:
        """Without a mask where no row of the batch is padded: there is a faster kernel for that."""
        masked = (*inputs, "lengths", position_bias)
        if position_bias:  # it counts as a mask
            return self.fused("MultiHeadAttention", *masked, num_heads=num_heads)
        name = f"context_{len(self.nodes)}"
        branches = {}
        for branch, operands in (("then_branch", inputs), ("else_branch", masked)):
            result = f"{name}_{branch}"
            node = helper.make_node(
                *("MultiHeadAttention", operands, [result]),
                domain="com.microsoft",
                num_heads=num_heads,
            )
            output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
            branches[branch] = helper.make_graph([node], result, [], [output])
        return self.node("If", self._no_padding(), name=name, **branches)

    def _no_padding(self) -> str:
        """Whether all rows are as long as the longest, made once."""
        if self._is_even is None:
            longest = self.node("Squeeze", self.node("Shape", "input_ids", start=1))
            least = self.node("ReduceMin", "lengths", keepdims=0)
            longest = self.node("Cast", longest, to=TensorProto.INT32)
            self._is_even = self.node("Equal", least, longest)
        return self._is_even

    def linear(self, x: str, layer: Any, *, name: str = "") -> str:
        """A `torch.nn.Linear`, never in 8 bits."""
        product = self.product(x, layer.weight, exact=True)
        return self.node("Add", product, self.weight(layer.bias), name=name)

    def normalised_sum(self, x: str, bias: Tensor, residual: str, norm: Any) -> str:
        """``norm(x + bias + residual)``."""
        parts = (self.weight(part) for part in (norm.weight, norm.bias, bias))
        return self.fused("SkipLayerNormalization", x, residual, *parts, epsilon=norm.eps)

    def activated(self, x: str, bias: Tensor, activation: nn.Module) -> str:
        """``activation(x + bias)``."""
        if isinstance(activation, nn.GELU):
            gelu = "BiasGelu" if activation.approximate == "none" else "FastGelu"
            return self.fused(gelu, x, self.weight(bias))
        return self.plainly_activated(self.node("Add", x, self.weight(bias)), activation)

    def plainly_activated(self, x: str, activation: nn.Module) -> str:
        if isinstance(activation, nn.ReLU):
            return self.node("Relu", x)
        if isinstance(activation, nn.Tanh):
            return self.node("Tanh", x)
        gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
        return self.fused("Gelu" if gelu else "FastGelu", x)


def _write(graph: _Graph, packed: Any) -> None:
    x = _write_embeddings(graph, packed.embeddings)
    bias = "" if packed.bias is None else _write_bias(graph, packed)
    for layer in packed.layers[:-1]:
        x = _write_layer(graph, layer, x, bias)
    x = _write_layer(graph, packed.layers[-1], x, bias, first_only=True)
    x = graph.node("Squeeze", x, graph.numbers(1))
    *below, out = packed.head
    for part in below:
        is_linear = isinstance(part, nn.Linear)
        x = graph.linear(x, part) if is_linear else graph.plainly_activated(x, part)
    graph.linear(x, out, name=OUTPUT)


def _write_embeddings(graph: _Graph, embeddings: Any) -> str:
    x = graph.node("Gather", graph.weight(embeddings.words.weight), "input_ids")
    if embeddings.token_types is not None:
        kinds = graph.node("Gather", graph.weight(embeddings.token_types.weight), "token_type_ids")
        x = graph.node("Add", x, kinds)
    positions = graph.node("Gather", graph.weight(embeddings.positions.weight), "position_ids")
    norm = embeddings.norm
    x = graph.node(
        "LayerNormalization",
        graph.node("Add", x, positions),
        *(graph.weight(part) for part in (norm.weight, norm.bias)),
        epsilon=norm.eps,
    )
    return x if embeddings.projection is None else graph.linear(x, embeddings.projection)


def _write_bias(graph: _Graph, packed: Any) -> str:
    """Of the longest row there can be, cut to the longest there is: of shape (1, A, L, L)."""
    full = graph.weight(packed.bias(packed.embeddings.positions.num_embeddings).unsqueeze(0))
    longest = graph.node("Shape", "input_ids", start=1)
    ends = graph.node("Concat", longest, longest, axis=0)
    return graph.node("Slice", full, graph.numbers(0, 0), ends, graph.numbers(2, 3))


def _write_layer(
    graph: _Graph, layer: Layer, x: str, bias: str, *, first_only: bool = False
) -> str:
    """The layer's tokens of shape (B, L, H); of the first alone, (B, 1, H), exactly."""
    asked = x
    if first_only:
        asked = _first(graph, x, axis=1)
        bias = bias and _first(graph, bias, axis=2)
    attention = layer.attention
    query, key, value = attention.qkv.weight.chunk(3)
    context = graph.attention(
        graph.product(asked, query, exact=first_only),
        graph.product(x, key),
        graph.product(x, value),
        graph.weight(attention.qkv.bias),
        position_bias=bias,
        num_heads=attention.num_heads,
    )
    mixed = graph.product(context, attention.out.weight, exact=first_only)
    y = graph.normalised_sum(mixed, attention.out.bias, asked, layer.attention_norm)
    up = graph.product(y, layer.up.weight, exact=first_only)
    down = graph.activated(up, layer.up.bias, layer.activation)
    is_gelu = isinstance(layer.activation, nn.GELU)
    down = graph.product(down, layer.down.weight, exact=first_only, is_gelu=is_gelu)
    return graph.normalised_sum(down, layer.down.bias, y, layer.out_norm)


def _first(graph: _Graph, x: str, *, axis: int) -> str:
    return graph.node("Slice", x, *(graph.numbers(number) for number in (0, 1, axis)))


def _transposed(weight: Tensor) -> Tensor:
    return weight.T


def _scales(weight: Tensor) -> Tensor:
    """Of each output, of shape (outputs,).

    A CPU without VNNI adds up the products of two neighbours in 16 bits, which must not overflow:
    bytes of 255 times weights whose sum is 128 at most just fit. That costs half a bit; the rule
    of thumb, weights of 7 bits, costs a whole one.
    """
    parts = (weight.clamp(min=0), (-weight).clamp(min=0))
    sums = [(part[:, 1:] + part[:, :-1]).amax(dim=1) for part in parts]
    return (torch.maximum(*sums) / LIMIT).clamp(min=torch.finfo(weight.dtype).tiny)


def _rounded(weight: Tensor) -> Tensor:
    """Signed bytes of shape (inputs, outputs)."""
    return (weight / _scales(weight).unsqueeze(1)).round().to(torch.int8).T
