"""One layer of a BERT-family encoder over tokens without padding, and attention for it.

# B = rows in the micro-batch, T = tokens of all of them, H = hidden size
# A = attention heads, D = size of one
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


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


# (queries, keys, values, tokens) -> contexts, all of shape (tokens, A, D). There are as many
# queries as tokens, or one a row: its first token's.
Attention = Callable[[Tensor, Tensor, Tensor, Tokens], Tensor]


def attend_by_length(queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens) -> Tensor:
    """Attention on any device: neighbours of one length go through it together, unpadded."""
    all_tokens = len(queries) == len(keys)
    contexts = torch.empty_like(queries)
    query_at = key_at = 0
    for length, group in groupby(tokens.lengths):
        num_rows = len(list(group))
        num_queries = length if all_tokens else 1
        query_end, key_end = query_at + num_rows * num_queries, key_at + num_rows * length
        sides = (queries[query_at:query_end], keys[key_at:key_end], values[key_at:key_end])
        query, key, value = (_unflatten(side, 0, (num_rows, -1)).transpose(1, 2) for side in sides)
        context = functional.scaled_dot_product_attention(query, key, value)
        contexts[query_at:query_end] = context.transpose(1, 2).flatten(0, 1)
        query_at, key_at = query_end, key_end
    return contexts


def attend_varlen(queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens) -> Tensor:
    """Flash attention over all rows in one kernel: CUDA, two-byte floats."""
    from torch.nn.attention.varlen import varlen_attn

    longest = tokens.longest
    if len(queries) == len(keys):
        ends, longest_query = tokens.offsets, longest
    else:
        ends = torch.arange(len(queries) + 1, dtype=torch.int32, device=queries.device)
        longest_query = 1
    return cast(
        Tensor, varlen_attn(queries, keys, values, ends, tokens.offsets, longest_query, longest)
    )


class Layer(nn.Module):
    """Attention, then feed-forward, each added to its input and normalised (post-norm)."""

    def __init__(self, *, query: Any, key: Any, value: Any, num_heads: int, **parts: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(query.in_features, 3 * query.out_features, device="meta")
        sides = (query, key, value)
        self.qkv.weight = nn.Parameter(torch.cat([side.weight for side in sides]).detach())
        self.qkv.bias = nn.Parameter(torch.cat([side.bias for side in sides]).detach())
        self.attention_out: nn.Linear = parts["attention_out"]
        self.attention_norm: nn.LayerNorm = parts["attention_norm"]
        self.up: nn.Linear = parts["up"]
        self.activation: nn.Module = parts["activation"]
        self.down: nn.Linear = parts["down"]
        self.out_norm: nn.LayerNorm = parts["out_norm"]

    def forward(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """All tokens."""
        queries, keys, values = self._heads(self.qkv(x_TH)).unbind(1)
        return self._rest(x_TH, attend(queries, keys, values, tokens))

    def first_tokens(self, x_TH: Tensor, tokens: Tokens, attend: Attention) -> Tensor:
        """The first token of each row, of shape (B, H)."""
        x_BH = x_TH[tokens.offsets[:-1]]
        size = self.qkv.out_features // 3
        weight, bias = self.qkv.weight, self.qkv.bias
        queries = self._heads(functional.linear(x_BH, weight[:size], bias[:size]))[:, 0]
        keys, values = self._heads(functional.linear(x_TH, weight[size:], bias[size:])).unbind(1)
        return self._rest(x_BH, attend(queries, keys, values, tokens))

    def _heads(self, x: Tensor) -> Tensor:
        """(tokens, sides x A x D) to (tokens, sides, A, D)."""
        size = self.qkv.out_features // 3 // self.num_heads
        return _unflatten(x, -1, (-1, self.num_heads, size))

    def _rest(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention_norm(self.attention_out(context.flatten(1)) + x)
        return cast(Tensor, self.out_norm(self.down(self.activation(self.up(x))) + x))


def _unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    return cast(Tensor, x.unflatten(dim, sizes))  # type: ignore[no-untyped-call]
