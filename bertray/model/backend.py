"""What computes a forward pass by torch: rows to a batch on the device, the batch to logits.

# B = rows in the micro-batch, C = labels
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from bertray.model.bundle import Bundle, load_model
from bertray.model.operations import Operations, Tokens, attend_varlen, fused_operations
from bertray.model.packed import PackedModel, agree, check_rows, ignores_padding, pack
from bertray.text.ragged import Encoded, padded_inputs

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]

LONG = 150  # tokens: rows that other kernels serve than short ones
# Two ways to compute attention in two-byte floats may differ by so much of the largest logit.
LOW_PRECISION_TOLERANCE = 0.05


class TorchBackend:
    """The model in torch: without padding where its family allows, else as Hugging Face runs it.

    Args:
        bundle: the model.
        device: where it runs.
        dtype: number type of weights and activations; logits come back in float32.
        pad_token_id: fills the shorter rows of a padded batch.
    """

    def __init__(self, bundle: Bundle, *, device: Device, dtype: Dtype, pad_token_id: int) -> None:
        self.device = torch.device(device)
        self._pad_token_id = pad_token_id
        number_type: torch.dtype = getattr(torch, dtype)
        model = load_model(bundle)
        packed = pack(model)
        self._is_even = packed is None and not ignores_padding(model, pad_token_id=pad_token_id)
        if packed is None:
            self._plain = model.to(self.device, dtype=number_type)  # type: ignore[arg-type]
        else:
            packed = packed.lower(number_type).to(self.device)
            if device == "cuda" and dtype != "float32":
                _use_fused(packed, [check_rows(model), check_rows(model, longest=LONG)])
        self._packed = packed

    @property
    def pads(self) -> bool:
        """Whether rows are padded to the longest of their batch."""
        return self._packed is None

    @property
    def is_even(self) -> bool:
        """Whether all rows of a batch must have one length, for padding changes its numbers."""
        return self._is_even

    @property
    def is_first_only(self) -> bool:
        """Whether the last layer is computed for the first token of each row alone."""
        return self._packed is not None and self._packed.is_first_only

    def gather(self, encoded: Encoded, rows: np.ndarray) -> Tokens | dict[str, Tensor]:
        """Some rows as a batch on the device; to CUDA the copy may still be under way.

        Args:
            encoded: the tokens of all rows.
            rows: indices of the B rows wanted.
        """
        if self._packed is not None:
            return self._packed.gather(encoded, rows, device=self.device)
        inputs = padded_inputs(encoded, rows, pad_token_id=self._pad_token_id)
        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}

    def __call__(self, batch: Tokens | dict[str, Tensor]) -> Tensor:
        """Logits of a batch, float32 of shape (B, C). On CUDA they may still be under way."""
        with torch.inference_mode():
            if isinstance(batch, Tokens):
                return cast(Tensor, cast(PackedModel, self._packed)(batch))
            return cast(Tensor, self._plain(**batch).logits.float())


def _use_fused(packed: PackedModel, checks: list[Encoded]) -> None:
    """Let the model take the fastest operations that this torch and this card have right."""
    device = next(packed.parameters()).device

    def run() -> Tensor:
        batches = ((rows, np.arange(len(rows))) for rows in checks)
        return torch.cat([packed.run(*batch, device=device) for batch in batches])

    slow = packed.operations
    with torch.inference_mode():
        wanted = run()
        for name, operations in _faster(slow, has_bias=packed.has_bias):
            try:
                packed.operations = operations()
                found = run()
            except Exception as error:  # any: what a compiler lacks here is not ours to list
                logger.warning("no %s here (%s)", name, error)
                continue
            if agree(found, wanted, tolerance=LOW_PRECISION_TOLERANCE):
                return
            logger.warning("the %s gives other numbers here, and is not used", name)
    packed.operations = slow


def _faster(slow: Operations, *, has_bias: bool) -> Iterator[tuple[str, Callable[[], Operations]]]:
    """What to try, and what to call it, the fastest first."""
    yield "fused forward pass", partial(fused_operations, has_bias=has_bias)
    if not has_bias:
        yield "variable-length attention", partial(replace, slow, attend=attend_varlen)
