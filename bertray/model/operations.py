"""What the layers of an encoder compute, as any device can, and fused for CUDA.

# B = rows in the micro-batch, T = tokens of all of them, H = hidden size
# A = attention heads, D = size of one, L = tokens of the longest row
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertray.model.distance import band


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
        query, key, value = (unflatten(side, 0, (num_rows, -1)).transpose(1, 2) for side in sides)
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
    is_lone = len(queries) != len(keys)
    if is_lone and window is not None:
        # The kernel takes a lone query for the last token and lays the window around that.
        return attend_by_length(queries, keys, values, tokens, window=window)
    ends = query_ends(queries, keys, tokens)
    longest_query = 1 if is_lone else longest
    contexts = varlen_attn(
        queries, keys, values, ends, tokens.offsets, longest_query, longest, **limits
    )
    return cast(Tensor, contexts)


def attend_fused(
    queries: Tensor, keys: Tensor, values: Tensor, tokens: Tokens, *, window: int | None = None
) -> Tensor:
    """`attend_varlen`, but for short rows by our own kernel, which wastes less on them."""
    from bertray.model import kernels

    if not kernels.takes_attention(queries, longest=tokens.longest, window=window):
        return attend_varlen(queries, keys, values, tokens, window=window)
    ends = query_ends(queries, keys, tokens)
    return kernels.attend_short(queries, keys, values, ends, tokens.offsets, longest=tokens.longest)


def query_ends(queries: Tensor, keys: Tensor, tokens: Tokens) -> Tensor:
    """Where the queries of each row begin, and the last ones end: all tokens, or one a row."""
    if len(queries) == len(keys):
        return tokens.offsets
    return torch.arange(len(queries) + 1, dtype=torch.int32, device=queries.device)


def add_norm(norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> Tensor:
    """LayerNorm of a sum."""
    return cast(Tensor, norm(x + residual))


def expand(up: nn.Linear, activation: nn.Module, x: Tensor) -> Tensor:
    """The first half of a feed-forward network."""
    return cast(Tensor, activation(up(x)))


def expand_fused(up: nn.Linear, activation: nn.Module, x: Tensor) -> Tensor:
    """`expand`, GELU within the matrix product, by its tanh formula: within 5e-4 of the exact one.

    CUDA, two-byte floats: they are coarser than that.
    """
    if not isinstance(activation, nn.GELU) or up.bias is None:
        return expand(up, activation, x)
    return torch._addmm_activation(up.bias, x, up.weight.t(), use_gelu=True)


@dataclass(frozen=True)
class Operations:
    """How the parts of a layer are computed; by default as any device can.

    Attributes:
        attend: attention.
        add_norm: LayerNorm of a sum.
        expand: the first half of a feed-forward network, its activation included.
    """

    attend: Attention = attend_by_length
    add_norm: Callable[[nn.LayerNorm, Tensor, Tensor], Tensor] = add_norm
    expand: Callable[[nn.Linear, nn.Module, Tensor], Tensor] = expand


def fused_operations(*, has_bias: bool) -> Operations:
    """Those of CUDA and two-byte floats.

    Args:
        has_bias: on the scores of attention, which none of the fused kernels adds.

    Raises:
        ImportError: there is no Triton.
    """
    from bertray.model import kernels

    attend = attend_by_length if has_bias else attend_fused
    return Operations(attend, kernels.add_norm, expand_fused)


def unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """``x.unflatten``, typed."""
    return cast(Tensor, x.unflatten(dim, sizes))  # type: ignore[no-untyped-call]
