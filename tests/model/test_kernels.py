"""The Triton kernels against torch, on a card, or where there is none by Triton's interpreter."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bertray.model.operations import attend_by_length, query_ends
from bertray.text.ragged import offsets_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
from bertray.model import kernels  # noqa: E402

TOLERANCE = 4e-3  # of float16, whose steps near 1 are 1e-3


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("lengths", [[5, 1, 16, 2], [31, 17, 32], [128, 65, 1], [1, 1, 1]])
@pytest.mark.parametrize("is_lone", [False, True])
def test_attention_is_torchs_in_each_row(size, lengths, is_lone):
    offsets = torch.from_numpy(offsets_of(np.array(lengths)).astype(np.int32)).to(DEVICE)
    tokens = SimpleNamespace(lengths=lengths, longest=max(lengths), offsets=offsets)
    queries, keys, values = random(sum(lengths), 3, 2, size).unbind(1)
    if is_lone:
        queries = queries[offsets[:-1]]
    ends = query_ends(queries, keys, tokens)
    wanted = attend_by_length(queries.float(), keys.float(), values.float(), tokens)
    found = kernels.attend_short(queries, keys, values, ends, offsets, longest=tokens.longest)
    torch.testing.assert_close(found.float(), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("width", [32, 48, 768, 1000])
def test_the_norm_of_a_sum_is_torchs(width):
    norm = nn.LayerNorm(width, eps=1e-3).to(DEVICE, torch.float16)
    norm.weight.data, norm.bias.data = random(width, seed=2), random(width, seed=3)
    x, residual = random(7, width), 50 + 20 * random(7, width, seed=1)
    wanted = nn.functional.layer_norm(
        x.float() + residual.float(), (width,), norm.weight.float(), norm.bias.float(), norm.eps
    )
    found = kernels.add_norm(norm, x, residual)
    torch.testing.assert_close(found.float(), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("size", "longest", "window", "takes"),
    [
        (64, 128, None, True),
        (64, 129, None, False),
        (48, 20, None, False),
        (8, 20, None, False),
        (64, 65, 64, True),
        (64, 66, 64, False),
    ],
)
def test_rows_it_cannot_serve_are_left_to_others(size, longest, window, takes):
    queries = torch.empty(3, 2, size)
    assert kernels.takes_attention(queries, longest=longest, window=window) is takes
