"""Triton kernels of the packed forward pass, for CUDA and two-byte floats.

Flash attention works on tiles of 128 queries, mostly empty where rows are short: for 66,000 tokens
of 12 heads it takes 220 us in rows of 64 to 128 tokens and 764 us in rows of 16 to 32, on an H200.
Tiles as wide as the batch's longest row take 164 and 126. And torch writes a sum to memory before
it normalises it; here that is one pass. Triton comes with torch's CUDA builds.

# T = tokens of all rows, H = hidden size, A = attention heads, D = size of one
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

LONGEST = 128  # tokens of a row whose scores fit a multiprocessor's registers
SMALLEST_TILE = 16  # that tensor cores take


def takes_attention(queries: Tensor, *, longest: int, window: int | None) -> bool:
    """Whether `attend_short` can serve: rows are short, heads a power of two wide."""
    size = queries.shape[-1]
    return (
        longest <= LONGEST
        and (window is None or window >= longest - 1)
        and SMALLEST_TILE <= size <= LONGEST
        and size & (size - 1) == 0
    )


def attend_short(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    *,
    longest: int,
) -> Tensor:
    """Softmax attention within each row, one tile a row and head.

    Args:
        queries: of shape (queries, A, D), a token's heads one after the other in memory.
        keys: of shape (T, A, D), likewise.
        values: likewise.
        query_ends: where each row's queries begin, and the last one's end; int32.
        key_ends: likewise of its keys.
        longest: keys of the longest row, at most `LONGEST`.

    Returns:
        Contexts, in the shape of ``queries``.
    """
    contexts = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    num_heads, size = queries.shape[1:]
    keys_tile = max(triton.next_power_of_2(longest), SMALLEST_TILE)
    queries_tile = keys_tile if len(queries) == len(keys) else SMALLEST_TILE  # of one query a row
    _attend[(num_heads, len(key_ends) - 1)](
        queries,
        keys,
        values,
        contexts,
        query_ends,
        key_ends,
        queries.stride(0),
        keys.stride(0),
        values.stride(0),
        contexts.stride(0),
        math.log2(math.e) / math.sqrt(size),
        SIZE=size,
        QUERIES=queries_tile,
        KEYS=keys_tile,
        num_warps=min(max(queries_tile * keys_tile // 1024, 1), 8),
    )
    return contexts


def add_norm(norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> Tensor:
    """``norm(x + residual)``, the sum in float32.

    Args:
        norm: over the last dimension, with weight and bias.
        x: of shape (T, H).
        residual: likewise.
    """
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(x)
    width = x.shape[1]
    tile = triton.next_power_of_2(width)
    _add_norm[(len(x),)](
        x,
        residual,
        norm.weight,
        norm.bias,
        out,
        width,
        norm.eps,
        TILE=tile,
        num_warps=min(max(tile // 256, 1), 8),
    )
    return out


@triton.jit
def _attend(
    queries,
    keys,
    values,
    contexts,
    query_ends,
    key_ends,
    query_stride,
    key_stride,
    value_stride,
    context_stride,
    scale,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1)
    query_start, key_start = tl.load(query_ends + row), tl.load(key_ends + row)
    num_queries = tl.load(query_ends + row + 1) - query_start
    num_keys = tl.load(key_ends + row + 1) - key_start
    q, k, d = tl.arange(0, QUERIES), tl.arange(0, KEYS), head * SIZE + tl.arange(0, SIZE)
    is_query, is_key = (q < num_queries)[:, None], k < num_keys
    query_rows = (query_start + q).to(tl.int64)[:, None]
    key_rows = (key_start + k).to(tl.int64)
    query = tl.load(queries + query_rows * query_stride + d[None, :], mask=is_query, other=0.0)
    key = tl.load(
        keys + key_rows[None, :] * key_stride + d[:, None], mask=is_key[None, :], other=0.0
    )
    value = tl.load(
        values + key_rows[:, None] * value_stride + d[None, :], mask=is_key[:, None], other=0.0
    )
    scores = tl.where(is_key[None, :], tl.dot(query, key) * scale, float("-inf"))
    shares = tl.exp2(scores - tl.max(scores, 1)[:, None])
    context = tl.dot(shares.to(value.dtype), value) / tl.sum(shares, 1)[:, None]
    tl.store(
        contexts + query_rows * context_stride + d[None, :],
        context.to(contexts.dtype.element_ty),
        mask=is_query,
    )


@triton.jit
def _add_norm(x, residual, weight, bias, out, width, eps, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < width
    at = row * width + column
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    from_mean = tl.where(inside, total - tl.sum(total, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(from_mean * from_mean, 0) / width + eps)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    biases = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normed = from_mean * scale * weights + biases
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)
