"""The BERT family without padding, its last layer computed for the first token alone.

Hugging Face's classes hold the weights and say what is right; this holds the same weights in one
plain shape, whose forward pass works on the tokens of all rows one after the other. The head reads
nothing but the first token, so the last layer needs no more than its keys and values of the others;
where a head reads the mean of all tokens (ModernBERT may), the last layer is as the ones before.
A model is taken only if its numbers are the same both ways (`pack`).

# B = rows in the micro-batch, T = tokens of all of them, H = hidden size, C = labels
"""

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from bertray.model.families import (
    ACTIVATIONS,
    FAMILIES,
    OFFSET_POSITIONS,
    ONNX_FAMILIES,
    activation_of,
    reach,
)
from bertray.model.layer import MeanPooled
from bertray.model.operations import Operations, Tokens, attend_by_length
from bertray.model.pretrained import num_positions
from bertray.model.steady import attends_by_length
from bertray.text.ragged import Encoded, offsets_of, padded_inputs, positions_of, take

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CHECKED_LENGTHS = (1, 2, 9, 9, 30, 5, 17, 2)  # of the rows that a model is checked on
TOLERANCE = 1e-4  # float32, relative to the largest logit or 1


class PackedModel(nn.Module):
    """A sequence classifier of the BERT family.

    Args:
        model: the Hugging Face model; weights are shared with it, except queries, keys and values.

    Raises:
        KeyError: its family is not in `FAMILIES`.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        parts = FAMILIES[model.config.model_type](model)
        self.embeddings, self.head = parts.embeddings, parts.head
        self.layers = nn.ModuleList(parts.layers)
        self.bias = parts.bias
        self.padding_idx = padding_index(model.config)
        self.operations = Operations()

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits, float32 of shape (B, C)."""
        operations = self.operations
        if self.bias is not None:
            attend = partial(attend_by_length, bias=self.bias(tokens.longest))
            operations = replace(operations, attend=attend)
        x_TH = self.embeddings(tokens)
        for layer in self.layers[:-1]:
            x_TH = layer(x_TH, tokens, operations)
        last: Any = self.layers[-1]
        x_BH = last.pooled(x_TH, tokens, operations)
        return cast(Tensor, self.head(x_BH.float()))

    @property
    def has_bias(self) -> bool:
        """Whether its attention adds something to the scores, which no fused kernel does."""
        return self.bias is not None

    @property
    def is_first_only(self) -> bool:
        """Whether the last layer is computed for the first token of each row alone."""
        return not isinstance(self.layers[-1], MeanPooled)

    def run(self, encoded: Encoded, rows: np.ndarray, *, device: torch.device) -> Tensor:
        """Logits of some rows, float32 of shape (B, C), on ``device``, where the weights are."""
        return cast(Tensor, self(self.gather(encoded, rows, device=device)))

    def lower(self, dtype: torch.dtype) -> "PackedModel":
        """Compute in another number type, but for the head: its logits are the result."""
        self.to(dtype)
        self.head.float()
        return self

    def gather(self, encoded: Encoded, rows: np.ndarray, *, device: torch.device) -> Tokens:
        """Some rows as a micro-batch; to CUDA the copy does not wait for the work under way."""
        batch = take(encoded, rows)
        segments = batch.token_type_ids
        if segments is None:
            segments = np.zeros(len(batch.input_ids), np.int32)
        positions = position_ids(batch, self.padding_idx)
        return Tokens(
            input_ids=_to_device(batch.input_ids, device),
            positions=_to_device(positions, device),
            token_type_ids=_to_device(segments, device),
            offsets=_to_device(batch.offsets, device),
            lengths=batch.lengths.tolist(),
            longest=int(batch.lengths.max()),
        )


def padding_index(config: PretrainedConfig) -> int | None:
    """The padding token's id in families that count positions from behind it, and skip its kind."""
    return config.pad_token_id if config.model_type in OFFSET_POSITIONS else None


def position_ids(encoded: Encoded, padding_idx: int | None) -> np.ndarray:
    """Index of each token into the position embeddings, int64 of shape (T,).

    Args:
        encoded: the rows.
        padding_idx: from `padding_index`.
    """
    lengths = encoded.lengths
    positions = positions_of(np.zeros(len(lengths), np.int64), lengths)
    if padding_idx is None:
        return positions
    counted = encoded.input_ids != padding_idx
    if counted.all():
        return np.asarray(positions + padding_idx + 1)
    # A padding token may be written out in a text. (transformers, modeling_roberta.py,
    # create_position_ids_from_input_ids)
    so_far = offsets_of(counted)
    in_row = so_far[1:] - np.repeat(so_far[encoded.offsets[:-1]], lengths)
    return np.asarray(in_row * counted + padding_idx)


def pack(model: "PreTrainedModel") -> PackedModel | None:
    """The model without padding; None, with a warning, where that gives other numbers.

    Args:
        model: in evaluation mode, float32, on the CPU.
    """
    try:
        packed = PackedModel(model).eval()
    except (KeyError, AttributeError) as error:
        logger.info("no padding-free forward for %s: %r", model.config.model_type, error)
        return None
    encoded = check_rows(model)
    rows = np.arange(len(encoded))
    with torch.inference_mode():
        found = packed.run(encoded, rows, device=torch.device("cpu"))
    wanted = plain_logits(model, encoded, rows)
    if not agree(found, wanted, tolerance=TOLERANCE):
        logger.warning(
            "the padding-free forward gives other numbers for this %s by up to %.2g; "
            "going on with the padded one",
            model.config.model_type,
            float((found - wanted).abs().max()),
        )
        return None
    return packed


def ignores_padding(model: "PreTrainedModel", *, pad_token_id: int) -> bool:
    """Whether a row has the same logits beside longer ones as alone; says so where it has not.

    FNet takes no mask, convolutions reach into the padding, XLNet reads the last position;
    where rows are short, BigBird and Reformer have another attention.

    Args:
        model: in evaluation mode, float32, on the CPU.
        pad_token_id: fills the shorter rows.
    """
    family, ends = model.config.model_type, getattr(model.config, "eos_token_id", None)
    if attends_by_length(model.config):
        logger.warning(
            "how this %s attends hangs on the longest row of a batch; only rows of one length "
            "share a batch",
            family,
        )
        return False
    try:
        encoded = check_rows(model)
        if isinstance(ends, int):  # heads such as BART's read the last token of a row, which is it
            encoded.input_ids[encoded.input_ids == ends] = ends - 1 if ends else 1
            encoded.input_ids[encoded.offsets[1:] - 1] = ends
        rows = np.arange(len(encoded))
        logits = partial(plain_logits, model, encoded, pad_token_id=pad_token_id)
        together = logits(rows)
        alone = torch.cat([logits(row) for row in np.split(rows, len(rows))])
    except Exception as error:  # any: what a family asks of its rows is not ours to list
        logger.warning(
            "what padding does to this %s cannot be told (%s); only rows of one length share a "
            "batch",
            family,
            error,
        )
        return False
    if not agree(together, alone, tolerance=TOLERANCE):
        logger.warning(
            "padding changes the numbers of this %s by up to %.2g; only rows of one length share a "
            "batch",
            family,
            float((together - alone).abs().max()),
        )
        return False
    return True


def plain_logits(
    model: "PreTrainedModel", encoded: Encoded, rows: np.ndarray, *, pad_token_id: int = 0
) -> Tensor:
    """Logits of shape (B, C) as Hugging Face computes them, padded to the longest of ``rows``."""
    inputs = padded_inputs(encoded, rows, pad_token_id=pad_token_id)
    tensors = {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}
    with torch.inference_mode():
        return cast(Tensor, model(**tensors).logits.float())


def check_rows(model: "PreTrainedModel", *, longest: int = 0) -> Encoded:
    """Rows to check a forward pass on: of uneven lengths, all kinds of ids, always the same.

    Args:
        model: tells how long rows may be, and which ids there are.
        longest: of one row at least, as far as the model takes it.
    """
    config = model.config
    lengths = np.array(CHECKED_LENGTHS)
    if longest:
        lengths = np.append(lengths, longest)
    if far := reach(config):
        lengths = np.append(lengths, far + lengths[-1])
    lengths = np.minimum(lengths, num_positions(config) or lengths.max())
    chance = np.random.default_rng(0)
    num_tokens = int(lengths.sum())
    return Encoded(
        input_ids=chance.integers(0, config.vocab_size, num_tokens, dtype=np.int32),
        offsets=offsets_of(lengths),
        token_type_ids=(
            chance.integers(0, 2, num_tokens, dtype=np.int8)
            if getattr(config, "type_vocab_size", 0) > 1
            else None
        ),
    )


def agree(found: Tensor, wanted: Tensor, *, tolerance: float) -> bool:
    """Whether two sets of logits are as near as ``tolerance`` times the largest of them, or 1."""
    scale = max(1.0, float(wanted.abs().max()))
    return bool(torch.isfinite(found).all()) and bool(
        (found - wanted).abs().max() <= tolerance * scale
    )


def is_packable(config: PretrainedConfig) -> bool:
    """Whether a model is of a family that this module knows."""
    return (
        config.model_type in FAMILIES
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def takes_onnx(config: PretrainedConfig) -> bool:
    """Whether a model that `is_packable` can be written as an ONNX graph."""
    return (
        is_packable(config)
        and config.model_type in ONNX_FAMILIES
        and activation_of(config) in ACTIVATIONS
        and not getattr(config, "is_decoder", False)  # its tokens do not see those behind them
    )


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """As int32, by way of pinned memory, from which CUDA copies on its own."""
    tensor = torch.from_numpy(array.astype(np.int32))
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
