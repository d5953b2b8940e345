"""The layers of BERT-family encoders over tokens without padding.

# B = rows in the micro-batch, T = tokens of all of them, H = hidden size
# A = attention heads, D = size of one
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertray.model.distance import Rotary, rotated
from bertray.model.operations import Attention, Operations, Tokens, unflatten


class Embeddings(nn.Module):
    """What the first layer takes.

    Args:
        words: by token id.
        norm: over the sum of all of them.
        positions: by position, if the family has them here.
        token_types: by segment, likewise.
        projection: to the width of the layers, where it is another.
    """

    def __init__(
        self,
        words: nn.Embedding,
        norm: nn.LayerNorm,
        *,
        positions: nn.Embedding | None = None,
        token_types: nn.Embedding | None = None,
        projection: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.words, self.norm = words, norm
        self.positions, self.token_types = positions, token_types
        self.projection = projection

    def forward(self, tokens: Tokens) -> Tensor:
        x_TH = self.words(tokens.input_ids)
        if self.token_types is not None:
            x_TH = x_TH + self.token_types(tokens.token_type_ids)
        if self.positions is not None:
            x_TH = x_TH + self.positions(tokens.positions)
        x_TH = self.norm(x_TH)
        return cast(Tensor, x_TH if self.projection is None else self.projection(x_TH))


class SelfAttention(nn.Module):
    """Queries, keys and values, attention, and the projection of what it gives.

    Args:
        qkv: all three in one, one after the other.
        out: the projection.
        num_heads: A.
        rotary: of queries and keys, where positions come in here.
        window: tokens that a query sees to either side; all of its row if None.
    """

    def __init__(
        self,
        qkv: nn.Linear,
        out: nn.Linear,
        *,
        num_heads: int,
        rotary: Rotary | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.qkv, self.out = qkv, out
        self.num_heads = num_heads
        self.rotary, self.window = rotary, window

    def forward(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """All tokens."""
        queries, keys, values = self._heads(self.qkv(x_TH)).unbind(1)
        if self.rotary is not None:
            cos, sin = self.rotary(tokens.positions)
            queries, keys = rotated(queries, cos, sin), rotated(keys, cos, sin)
        return self._attended(operations.attend, queries, keys, values, tokens)

    def first_tokens(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """The first token of each row, of shape (B, H)."""
        size = self.qkv.out_features // 3
        x_BH = x_TH[tokens.offsets[:-1]]
        queries = self._heads(self._part(x_BH, slice(size)))[:, 0]
        keys, values = self._heads(self._part(x_TH, slice(size, None))).unbind(1)
        if self.rotary is not None:  # Position 0 is turned by no angle, so the queries stay.
            keys = rotated(keys, *self.rotary(tokens.positions))
        return self._attended(operations.attend, queries, keys, values, tokens)

    def _part(self, x: Tensor, outputs: slice) -> Tensor:
        bias = None if self.qkv.bias is None else self.qkv.bias[outputs]
        return functional.linear(x, self.qkv.weight[outputs], bias)

    def _heads(self, x: Tensor) -> Tensor:
        """(tokens, sides x A x D) to (tokens, sides, A, D)."""
        size = self.qkv.out_features // 3 // self.num_heads
        return unflatten(x, -1, (-1, self.num_heads, size))

    def _attended(
        self, attend: Attention, queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens
    ) -> Tensor:
        contexts = attend(queries, keys, values, tokens, window=self.window)
        return cast(Tensor, self.out(contexts.flatten(1)))


def joined(*linears: Any) -> nn.Linear:
    """Linear layers over one input as one, their outputs one after the other."""
    first = linears[0]
    num_outputs = sum(linear.out_features for linear in linears)
    one = nn.Linear(first.in_features, num_outputs, device="meta")
    one.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]).detach())
    one.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]).detach())
    return one


class Layer(nn.Module):
    """Attention, then feed-forward, each added to its input and normalised (post-norm)."""

    def __init__(self, attention: SelfAttention, **parts: Any) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm: nn.LayerNorm = parts["attention_norm"]
        self.up: nn.Linear = parts["up"]
        self.activation: nn.Module = parts["activation"]
        self.down: nn.Linear = parts["down"]
        self.out_norm: nn.LayerNorm = parts["out_norm"]

    def forward(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """All tokens."""
        return self._rest(x_TH, self.attention(x_TH, tokens, operations), operations)

    def pooled(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """What the head reads of each row, of shape (B, H): the first token."""
        x_BH = x_TH[tokens.offsets[:-1]]
        first = self.attention.first_tokens(x_TH, tokens, operations)
        return self._rest(x_BH, first, operations)

    def _rest(self, x: Tensor, attended: Tensor, operations: Operations) -> Tensor:
        x = operations.add_norm(self.attention_norm, attended, x)
        inner = operations.expand(self.up, self.activation, x)
        return operations.add_norm(self.out_norm, self.down(inner), x)


class PreNormLayer(nn.Module):
    """Attention, then a gated feed-forward, each over its normalised input and added to it."""

    def __init__(self, attention: SelfAttention, **parts: Any) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm: nn.Module = parts["attention_norm"]
        self.norm: nn.LayerNorm = parts["norm"]
        self.up: nn.Linear = parts["up"]
        self.activation: nn.Module = parts["activation"]
        self.down: nn.Linear = parts["down"]

    def forward(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """All tokens."""
        return self._rest(x_TH, self.attention(self.attention_norm(x_TH), tokens, operations))

    def pooled(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """What the head reads of each row, of shape (B, H): the first token."""
        normed = self.attention_norm(x_TH)
        x_BH = x_TH[tokens.offsets[:-1]]
        return self._rest(x_BH, self.attention.first_tokens(normed, tokens, operations))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return cast(Tensor, x + self.down(self.activation(value) * gate))


class MeanPooled(nn.Module):
    """A last layer of which the head reads the mean of all tokens, each normalised before."""

    def __init__(self, layer: nn.Module, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def pooled(self, x_TH: Tensor, tokens: Tokens, operations: Operations) -> Tensor:
        """What the head reads of each row, float32 of shape (B, H)."""
        x_TH = self.norm(self.layer(x_TH, tokens, operations))
        return torch.segment_reduce(x_TH.float(), "mean", offsets=tokens.offsets)
