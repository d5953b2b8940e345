"""The layers of BERT-family encoders over tokens without padding, and attention for them.

# B = rows in the micro-batch, T = tokens of all of them, H = hidden size
# A = attention heads, D = size of one, L = tokens of the longest row
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertray.model.distance import Rotary, band, rotated


@dataclass(frozen=True)
class Tokens:
    """A micro-batch on the device.

    Attributes:
        input_ids: of shape (T,), the rows one after the other.
        positions: index into the position embeddings, of shape (T,).
        token_type_ids: of shape (T,).
        offsets: int32 of shape (B + 1,); row i is ``input_ids[offsets[i]:offsets[i + 1]]``.
        lengths: tokens per row, on the host.
        longest: of ``lengths``.
    """

    input_ids: Tensor
    positions: Tensor
    token_type_ids: Tensor
    offsets: Tensor
    lengths: list[int]
    longest: int


class Attention(Protocol):
    """Contexts, in the shape of ``queries``.

    Queries, keys and values are of shape (tokens, A, D). There are as many queries as keys, or one
    a row: its first token's. A query sees the keys of its own row, if there is a ``window`` those
    at most so many tokens away.
    """

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens, *, window: int | None
    ) -> Tensor: ...


def attend_by_length(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    tokens: Tokens,
    *,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention on any device: neighbours of one length go through it together, unpadded.

    Args:
        queries: these and the next four as in `Attention`.
        keys: likewise.
        values: likewise.
        tokens: likewise.
        window: likewise.
        bias: what is added to the scores, of shape (A, L, L), queries before keys; it excludes a
            window.
    """
    all_tokens = len(queries) == len(keys)
    contexts = torch.empty_like(queries)
    query_at = key_at = 0
    for length, group in groupby(tokens.lengths):
        num_rows = len(list(group))
        num_queries = length if all_tokens else 1
        query_end, key_end = query_at + num_rows * num_queries, key_at + num_rows * length
        sides = (queries[query_at:query_end], keys[key_at:key_end], values[key_at:key_end])
        query, key, value = (_unflatten(side, 0, (num_rows, -1)).transpose(1, 2) for side in sides)
        mask = None
        if bias is not None:
            mask = bias[None, :, :num_queries, :length]
        elif window is not None:
            mask = band(num_queries, length, window=window, device=queries.device)
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        contexts[query_at:query_end] = context.transpose(1, 2).flatten(0, 1)
        query_at, key_at = query_end, key_end
    return contexts


def attend_varlen(
    queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens, *, window: int | None = None
) -> Tensor:
    """Flash attention over all rows in one kernel: CUDA, two-byte floats."""
    from torch.nn.attention.varlen import varlen_attn

    longest = tokens.longest
    # An argument that is new in torch 2.11, so it is named only where it is needed.
    limits: dict[str, Any] = {} if window is None else {"window_size": (window, window)}
    if len(queries) == len(keys):
        ends, longest_query = tokens.offsets, longest
    elif window is None:
        ends = torch.arange(len(queries) + 1, dtype=torch.int32, device=queries.device)
        longest_query = 1
    else:  # The kernel takes a lone query for the last token and lays the window around that.
        return attend_by_length(queries, keys, values, tokens, window=window)
    contexts = varlen_attn(
        queries, keys, values, ends, tokens.offsets, longest_query, longest, **limits
    )
    return cast(Tensor, contexts)


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

    def forward(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """All tokens."""
        queries, keys, values = self._heads(self.qkv(x_TH)).unbind(1)
        if self.rotary is not None:
            cos, sin = self.rotary(tokens.positions)
            queries, keys = rotated(queries, cos, sin), rotated(keys, cos, sin)
        return self._attended(attend, queries, keys, values, tokens)

    def first_tokens(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """The first token of each row, of shape (B, H)."""
        size = self.qkv.out_features // 3
        x_BH = x_TH[tokens.offsets[:-1]]
        queries = self._heads(self._part(x_BH, slice(size)))[:, 0]
        keys, values = self._heads(self._part(x_TH, slice(size, None))).unbind(1)
        if self.rotary is not None:  # Position 0 is turned by no angle, so the queries stay.
            keys = rotated(keys, *self.rotary(tokens.positions))
        return self._attended(attend, queries, keys, values, tokens)

    def _part(self, x: Tensor, outputs: slice) -> Tensor:
        bias = None if self.qkv.bias is None else self.qkv.bias[outputs]
        return functional.linear(x, self.qkv.weight[outputs], bias)

    def _heads(self, x: Tensor) -> Tensor:
        """(tokens, sides x A x D) to (tokens, sides, A, D)."""
        size = self.qkv.out_features // 3 // self.num_heads
        return _unflatten(x, -1, (-1, self.num_heads, size))

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

    def forward(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """All tokens."""
        return self._rest(x_TH, self.attention(x_TH, tokens, attend))

    def pooled(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """What the head reads of each row, of shape (B, H): the first token."""
        x_BH = x_TH[tokens.offsets[:-1]]
        return self._rest(x_BH, self.attention.first_tokens(x_TH, tokens, attend))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention_norm(attended + x)
        return cast(Tensor, self.out_norm(self.down(self.activation(self.up(x))) + x))


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

    def forward(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """All tokens."""
        return self._rest(x_TH, self.attention(self.attention_norm(x_TH), tokens, attend))

    def pooled(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """What the head reads of each row, of shape (B, H): the first token."""
        normed = self.attention_norm(x_TH)
        x_BH = x_TH[tokens.offsets[:-1]]
        return self._rest(x_BH, self.attention.first_tokens(normed, tokens, attend))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return cast(Tensor, x + self.down(self.activation(value) * gate))


class MeanPooled(nn.Module):
    """A last layer of which the head reads the mean of all tokens, each normalised before."""

    def __init__(self, layer: nn.Module, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def pooled(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """What the head reads of each row, float32 of shape (B, H)."""
        x_TH = self.norm(self.layer(x_TH, tokens, attend))
        return torch.segment_reduce(x_TH.float(), "mean", offsets=tokens.offsets)


def _unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    return cast(Tensor, x.unflatten(dim, sizes))  # type: ignore[no-untyped-call]
