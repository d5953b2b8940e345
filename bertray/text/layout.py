"""Rows out of the bare tokens of texts, as Hugging Face `tokenizers` lays them out.

The faster tokenizers know single texts only. Pairs are cut here as ``longest_first`` cuts them, and
special tokens put where the tokenizer's own template has them.

# N = rows, T = tokens of all rows together
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bertray.text.ragged import Encoded, offsets_of, positions_of

Side: TypeAlias = Literal["left", "right"]

# The tokens of each text, without special ones. Those over a limit, if one is given, may be left
# out on the side where the tokenizer cuts.
TokensOf: TypeAlias = Callable[[list[str], int | None], Encoded]


@dataclass(frozen=True)
class Piece:
    """A stretch of a row: special tokens, or one of its texts.

    Attributes:
        text: which text stands here; None for special tokens.
        ids: of the special tokens.
        segment: the token type of the stretch.
    """

    text: int | None
    ids: tuple[int, ...]
    segment: int


class Layout:
    """Encodes as the tokenizer does, if ``tokens_of`` gives the same tokens.

    Args:
        tokenizer: the model's tokenizer; a Hugging Face fast one.
        tokens_of: makes the tokens of single texts.
        max_length: rows are cut to so many tokens.
        dtype: of the ids.
        bare: whether to leave out the special tokens; then there are no pairs.

    Raises:
        ValueError: special tokens alone fill a row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens_of: TokensOf,
        *,
        max_length: int,
        dtype: Any,
        bare: bool = False,
    ) -> None:
        self._tokens_of = tokens_of
        single = [Piece(0, (), 0)] if bare else pieces_of(tokenizer)
        self._pieces = (single, single if bare else pieces_of(tokenizer, "a"))
        self._max_length = max_length
        self._cut_side = cut_side(tokenizer)
        self._dtype = dtype
        self._has_segments = "token_type_ids" in tokenizer.model_input_names
        if min(room_of(pieces, max_length) for pieces in self._pieces) < 1:
            raise ValueError(f"max_length={max_length} leaves no room for a text")

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> Encoded:
        """Encode rows; with ``pairs``, row i is the pair of ``texts[i]`` and ``pairs[i]``."""
        pieces = self._pieces[pairs is not None]
        room = room_of(pieces, self._max_length)
        sides = [self._tokens_of(texts, room if pairs is None else None)]
        kept = [np.minimum(sides[0].lengths, room)]
        if pairs is not None:
            sides.append(self._tokens_of(pairs, None))
            kept = longest_first(sides[0].lengths, sides[1].lengths, room=room)
        left = self._cut_side == "left"
        stretches = [
            Stretches(
                side.input_ids, side.offsets[1:] - num_kept if left else side.offsets[:-1], num_kept
            )
            for side, num_kept in zip(sides, kept, strict=True)
        ]
        return lay_out(pieces, stretches, dtype=self._dtype, has_segments=self._has_segments)


class Stretches(NamedTuple):
    """Of N texts the tokens that rows take: ``lengths[i]`` of them from ``starts[i]`` on."""

    input_ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def lay_out(
    pieces: Sequence[Piece], texts: Sequence[Stretches], *, dtype: Any, has_segments: bool
) -> Encoded:
    """Put tokens and special tokens where the pieces have them.

    Args:
        pieces: of a row.
        texts: of the N rows, by the number that pieces know them by.
        dtype: of the ids.
        has_segments: whether the model takes token types.
    """
    num_special = sum(len(piece.ids) for piece in pieces)
    offsets = offsets_of(np.sum([text.lengths for text in texts], axis=0) + num_special)
    ids = np.empty(offsets[-1], dtype)
    segments = np.zeros(offsets[-1], np.int8)
    at = offsets[:-1]
    for piece in pieces:
        if piece.text is None:
            places = (at[:, None] + np.arange(len(piece.ids))).ravel()
            ids[places] = np.tile(np.array(piece.ids, dtype), len(at))
            at = at + len(piece.ids)
        else:
            text = texts[piece.text]
            places = positions_of(at, text.lengths)
            ids[places] = text.input_ids[positions_of(text.starts, text.lengths)]
            at = at + text.lengths
        if piece.segment:
            segments[places] = piece.segment
    return Encoded(ids, offsets, segments if has_segments else None)


def room_of(pieces: Sequence[Piece], max_length: int) -> int:
    """Tokens that special ones leave to the texts of a row."""
    return max_length - sum(len(piece.ids) for piece in pieces)


def cut_side(tokenizer: PreTrainedTokenizerBase) -> Side:
    """Where the tokenizer cuts texts that are too long."""
    return "left" if tokenizer.truncation_side == "left" else "right"


def longest_first(first: np.ndarray, second: np.ndarray, *, room: int) -> list[np.ndarray]:
    """Tokens that each text of a pair keeps, as `tokenizers` decides it.

    A text shorter than half of the room keeps all; two longer ones share it evenly, the odd token
    going to the longer, or to the second if they are equally long.
    (huggingface/tokenizers, ``utils/truncation.rs``)

    Args:
        first: tokens of the first texts, integers of shape (N,).
        second: tokens of the second texts.
        room: tokens that both may have together.
    """
    short = np.minimum(first, second)
    fits = first + second <= room
    # Where the shorter leaves the longer no more than it has itself, both give.
    both = np.where(short > room, True, short + np.maximum(short, room - short) > room)
    kept_short = np.where(both, room // 2, short)
    kept_long = np.where(both, room // 2 + room % 2, np.maximum(short, room - short))
    swap = first > second
    kept_first = np.where(fits, first, np.where(swap, kept_long, kept_short))
    kept_second = np.where(fits, second, np.where(swap, kept_short, kept_long))
    return [np.minimum(kept_first, first), np.minimum(kept_second, second)]


def pieces_of(tokenizer: PreTrainedTokenizerBase, pair: str | None = None) -> list[Piece]:
    """How a Hugging Face fast tokenizer lays out a row, read off an example."""
    # A copy, because the truncation that a tokenizer was last used with is a state of its own.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    example = backend.encode("a", pair)
    tokens = zip(example.sequence_ids, example.type_ids, example.ids, strict=True)
    return [
        Piece(text, tuple(token for *_, token in stretch) if text is None else (), segment)
        for (text, segment), stretch in groupby(tokens, key=lambda token: token[:2])
    ]
