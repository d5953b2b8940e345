"""What becomes of texts that are longer than a model takes.

truncate     the first tokens, or the last if the tokenizer cuts on the left
head_tail    the first tokens and the last ones
window       all tokens, in windows that overlap: several sequences, whose logits are made one row's

# N = rows
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertray.errors import ConfigError
from bertray.text.columns import Texts, as_column
from bertray.text.encoding import Encoder
from bertray.text.layout import Side, Stretches, lay_out, pieces_of, room_of
from bertray.text.ragged import Encoded, positions_of

# Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?": of the ways to cut a text, the
# first 128 and the last 382 tokens, special ones aside, did best.
HEAD_SHARE = 128 / 510

Aggregate: TypeAlias = Literal["mean", "max", "first"]


@dataclass(frozen=True)
class LongText:
    """What becomes of texts over ``max_length``; decided in training, and kept in the bundle.

    Attributes:
        long: one of the ways above.
        stride: tokens that neighbouring windows share, as Hugging Face's ``stride``; None for a
            quarter of ``max_length``.
        max_windows: of a row; what lies behind them is not read.
        aggregate: what makes one row's logits of its windows'. ``first`` reads one window alone.
    """

    long: Literal["truncate", "head_tail", "window"] = "truncate"
    stride: int | None = None
    max_windows: int = 16
    aggregate: Aggregate = "mean"

    def stride_of(self, max_length: int) -> int:
        """Tokens that neighbouring windows of so many share."""
        return max_length // 4 if self.stride is None else self.stride


TRUNCATE = LongText()


@dataclass(frozen=True)
class Rows:
    """N encoded rows of one sequence or more each.

    Attributes:
        encoded: the sequences; those of a row one after the other, as its text has them.
        num_windows: sequences per row, int64 of shape (N,).
    """

    encoded: Encoded
    num_windows: np.ndarray

    def __len__(self) -> int:
        return len(self.num_windows)


# Encodes a column of texts without nulls; or, where long ones are truncated, two of pairs.
RowEncoder: TypeAlias = Callable[..., Rows]


def check_long_text(
    long_text: LongText, tokenizer: PreTrainedTokenizerBase, *, max_length: int, has_pairs: bool
) -> None:
    """Find on the driver what `make_row_encoder` cannot do.

    Raises:
        ConfigError: special tokens leave no room for a text; or, where long ones are not truncated,
            the texts are pairs, the tokenizer is written in Python, or a window holds no more than
            it shares with the next.
    """
    if long_text.long == "truncate":
        num_special = tokenizer.num_special_tokens_to_add(pair=has_pairs)
        if max_length <= num_special:
            raise ConfigError(
                f"model.max_length={max_length}: the tokenizer adds {num_special} special tokens "
                "to a row, which leaves none of its text; set a larger model.max_length"
            )
        return
    key = f"text.long={long_text.long}"
    if has_pairs:
        raise ConfigError(
            f"{key} takes single texts, and a column of second texts is named; "
            "set text.long=truncate"
        )
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{key} needs a fast tokenizer of Hugging Face (tokenizer.json), and this model has "
            "none; set text.long=truncate"
        )
    room, stride = room_of(pieces_of(tokenizer), max_length), long_text.stride_of(max_length)
    if room < 1 or (long_text.long == "window" and room <= stride):
        raise ConfigError(
            f"{key}: with model.max_length={max_length} a window holds {room} tokens of a text, "
            f"which must be more than it shares with the next: text.stride={stride}; "
            "set a smaller text.stride, or a larger model.max_length"
        )


def make_row_encoder(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_text: LongText = TRUNCATE,
    parallel: bool = True,
) -> RowEncoder:
    """An encoder of rows whose texts may be of any length.

    Args:
        tokenizer: the model's tokenizer.
        max_length: tokens that a sequence has at most, special ones included.
        long_text: settings that `check_long_text` has let pass.
        parallel: whether to use more than one core.
    """
    if long_text.long == "truncate":
        return _Truncated(Encoder(tokenizer, max_length=max_length, parallel=parallel))
    if long_text.long == "head_tail":
        return _HeadTail(tokenizer, max_length=max_length, parallel=parallel)
    return _Windows(tokenizer, long_text, max_length=max_length, parallel=parallel)


class _Truncated:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, texts: Texts, pairs: Texts | None = None) -> Rows:
        return _single(self._encoder(texts, pairs))


class _HeadTail:
    """Of a text that does not fit, the tokens that `HEAD_SHARE` says from both its ends."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, parallel: bool
    ) -> None:
        self._frame = _Frame(tokenizer)
        self._room = self._frame.room(max_length)
        self._num_tail = self._room - int(self._room * HEAD_SHARE)
        self._heads = _bare(tokenizer, "right", max_tokens=self._room, parallel=parallel)
        self._tails = _bare(tokenizer, "left", max_tokens=self._num_tail, parallel=parallel)

    def __call__(self, texts: Texts) -> Rows:
        column = as_column(texts)
        tokens = self._heads(column)
        # Of a text that just fits, the tail is what stands there already.
        full = np.flatnonzero(tokens.lengths == self._room)
        tails = self._tails(column.take(full))
        ends = tokens.offsets[full + 1]
        tokens.input_ids[positions_of(ends - self._num_tail, tails.lengths)] = tails.input_ids
        return _single(self._frame.around(tokens, tokens.offsets[:-1], tokens.lengths))


class _Windows:
    """Windows of a text's tokens, each but the last full."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        long_text: LongText,
        *,
        max_length: int,
        parallel: bool,
    ) -> None:
        self._frame = _Frame(tokenizer)
        self._room = self._frame.room(max_length)
        self._step = self._room - long_text.stride_of(max_length)
        num_windows = 1 if long_text.aggregate == "first" else long_text.max_windows
        self._tokens_of = _bare(
            tokenizer,
            "right",
            max_tokens=self._room + (num_windows - 1) * self._step,
            parallel=parallel,
        )

    def __call__(self, texts: Texts) -> Rows:
        tokens = self._tokens_of(texts)
        # As many steps beyond the first window as the rest of the text needs.
        num_windows = 1 + np.maximum(-(-(tokens.lengths - self._room) // self._step), 0)
        row_of = np.repeat(np.arange(len(tokens)), num_windows)
        steps = positions_of(np.zeros_like(num_windows), num_windows)
        starts = tokens.offsets[row_of] + steps * self._step
        lengths = np.minimum(tokens.offsets[row_of + 1] - starts, self._room)
        return Rows(self._frame.around(tokens, starts, lengths), num_windows)


class _Frame:
    """The special tokens around a single text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pieces = pieces_of(tokenizer)
        self._has_segments = "token_type_ids" in tokenizer.model_input_names

    def room(self, max_length: int) -> int:
        return room_of(self._pieces, max_length)

    def around(self, tokens: Encoded, starts: np.ndarray, lengths: np.ndarray) -> Encoded:
        """Sequences of ``lengths[i]`` tokens from ``starts[i]`` on."""
        return lay_out(
            self._pieces,
            [Stretches(tokens.input_ids, starts, lengths)],
            dtype=tokens.input_ids.dtype,
            has_segments=self._has_segments,
        )


def _bare(
    tokenizer: PreTrainedTokenizerBase, cut_side: Side, *, max_tokens: int, parallel: bool
) -> Encoder:
    """The tokens of texts without special ones, cut on a side of our own choice."""
    ours = copy.copy(tokenizer)
    ours.truncation_side = cut_side
    return Encoder(ours, max_length=max_tokens, parallel=parallel, bare=True)


def _single(encoded: Encoded) -> Rows:
    return Rows(encoded, np.ones(len(encoded), np.int64))
