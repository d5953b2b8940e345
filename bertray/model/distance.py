"""How far apart two tokens of a row are, as some families let their attention know.

# T = tokens, L = of the longest row, A = attention heads, D = size of one
"""

import math

import torch
from torch import Tensor, nn

# MPNet's buckets of distance: half of them for keys behind the query, half for keys before it; of
# each half, half for one distance each and half growing with its logarithm, up to a longest one.
# Its code takes these numbers whatever the config says. (transformers, modeling_mpnet.py)
NUM_BUCKETS = 32
FARTHEST_BUCKET = 128


class RelativeBias(nn.Module):
    """What MPNet adds to the scores of a query and a key by their distance, in all layers alike.

    Args:
        by_bucket: of shape (buckets, A).
        num_positions: tokens of the longest row there can be.
    """

    def __init__(self, by_bucket: Tensor, *, num_positions: int) -> None:
        super().__init__()
        distances = torch.arange(1 - num_positions, num_positions)
        by_distance = by_bucket.detach()[bucket_of(distances)].T.contiguous()
        self.by_distance = nn.Buffer(by_distance, persistent=False)

    def forward(self, length: int) -> Tensor:
        """Of shape (A, length, length), queries before keys; of a shorter row, its top left."""
        zero = self.by_distance.shape[1] // 2
        used = self.by_distance[:, zero - length + 1 : zero + length]
        # Window k of the distances belongs to the k-th query from the end.
        return used.unfold(1, length, 1).flip(1)


def bucket_of(distances: Tensor) -> Tensor:
    """MPNet's bucket for the position of a key minus that of its query."""
    half = NUM_BUCKETS // 2
    num_exact = half // 2
    far = distances.abs()
    # In the operations of the original, whose rounding decides where a bucket ends.
    growth = torch.log(far.float() / num_exact) / math.log(FARTHEST_BUCKET / num_exact)
    grown = num_exact + (growth * (half - num_exact)).clamp(min=0).long()
    buckets = torch.where(far < num_exact, far, grown.clamp(max=half - 1))
    return buckets + half * (distances > 0)


class Rotary(nn.Module):
    """Rotary position embeddings: angles by position, each for two numbers of a head.

    Args:
        theta: the base of the wave lengths.
        size: D.
        num_positions: tokens of the longest row there can be.
    """

    def __init__(self, *, theta: float, size: int, num_positions: int) -> None:
        super().__init__()
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        self.cos = nn.Buffer(angles.cos(), persistent=False)
        self.sin = nn.Buffer(angles.sin(), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for all heads of some tokens, each of shape (T, 1, D / 2)."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotated(x_TAD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys, turned by the angles of their positions, in float32 on the way."""
    left, right = x_TAD.float().chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return turned.to(x_TAD.dtype)


def band(num_queries: int, length: int, *, window: int, device: torch.device) -> Tensor | None:
    """Which keys lie within ``window`` of each of a row's first queries; None if all do.

    Returns:
        Booleans of shape (num_queries, length).
    """
    if length <= window + 1:
        return None
    places = torch.arange(length, device=device)
    return (places[:num_queries, None] - places).abs() <= window
