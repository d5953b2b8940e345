"""Texts to token ids, exactly as the model's own Hugging Face tokenizer makes them.

`Encoder` takes a faster way where there is one (`bertray.text.wordpiece`, `bertray.text.bytebpe`),
for as long as both say the same.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bertray.text.bytebpe import bytebpe_tokens
from bertray.text.columns import Texts, as_column
from bertray.text.heads import keeps_its_beginning, splits_at_spaces, take_heads, take_tails
from bertray.text.layout import Layout
from bertray.text.probes import probes
from bertray.text.ragged import Encoded, concatenate, offsets_of, pad, take
from bertray.text.wordpiece import wordpiece_tokens

__all__ = ["Encoded", "Encoder", "pad"]

logger = logging.getLogger(__name__)

ROWS_PER_CALL = 1024  # bounds the Python objects that the Hugging Face tokenizer makes at a time

# Longer texts are cut to so many characters a token that the model takes, and tokenized whole only
# if those were too few. English has 4.5 characters a token.
HEAD_CHARACTERS = 8

# The faster tokenizer is checked on one row in so many of each call, and on as many that are not
# ASCII: so few that the slower one's time does not show, but at least 2 and at most 16.
ROWS_PER_SAMPLE = 256
SAMPLED_BYTES = 20_000  # not on longer rows, which would cost more than they tell

_Tokenize = Callable[[list[str], list[str] | None], Encoded]


class _Cut(Protocol):
    def __call__(self, column: pa.LargeStringArray, *, limit: int) -> tuple[list[str], np.ndarray]:
        """The texts or a part of each, and which are but a part."""


_FASTER = {"nanotoken": wordpiece_tokens, "gigatoken": bytebpe_tokens}  # by the library


class Encoder:
    """Tokenizes exactly as the model's own Hugging Face tokenizer does.

    Args:
        tokenizer: the model's tokenizer.
        max_length: rows are cut to so many tokens; of pairs the longer text is cut first.
        fast: whether to take a faster tokenizer where there is one that agrees.
        parallel: whether to use more than one core.
        bare: whether to leave out the special tokens; for a Hugging Face fast tokenizer and single
            texts alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        fast: bool = True,
        parallel: bool = True,
        bare: bool = False,
    ) -> None:
        self._max_length = max_length
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        self._cut = _cut_of(tokenizer)
        if tokenizer.is_fast:
            self._reference: _Tokenize = _Backend(
                tokenizer, max_length=max_length, dtype=dtype, bare=bare
            )
        else:
            self._reference = partial(_call, tokenizer, max_length=max_length, dtype=dtype)
        self._odd_pair_room = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) % 2 == 1
        self._fast: _Tokenize | None = None
        self._library = ""
        for library, load in _FASTER.items() if fast else ():
            try:
                tokens_of = load(tokenizer, parallel=parallel)
                self._fast = Layout(
                    tokenizer, tokens_of, max_length=max_length, dtype=dtype, bare=bare
                )
                self._library = library
            except ImportError:
                logger.info("%s is not installed; Hugging Face tokenizes, slower", library)
            except ValueError as error:
                logger.debug("%s does not tokenize for this model: %s", library, error)
        texts = as_column(probes(tokenizer))
        for columns in ([texts],) if bare else ([texts], [texts, texts[::-1]]):
            if self._fast is not None:
                self._check(columns, self._encode(columns, self._fast))

    @property
    def is_fast(self) -> bool:
        """Whether the faster tokenizer is in use."""
        return self._fast is not None

    def __call__(self, texts: Texts, pairs: Texts | None = None) -> Encoded:
        """Encode rows; with ``pairs``, row i is the pair of ``texts[i]`` and ``pairs[i]``.

        Args:
            texts: no nulls among them.
            pairs: as many.

        Returns:
            The rows' ids, uint16 where the vocabulary fits, else int32.
        """
        columns = [as_column(column) for column in (texts, pairs) if column is not None]
        if self._fast is not None:
            encoded = self._encode(columns, self._fast)
            rows = _sample(columns)
            if self._check([column.take(rows) for column in columns], take(encoded, rows)):
                return encoded
        return self._encode(columns, self._reference)

    def _encode(self, columns: Sequence[pa.LargeStringArray], tokenize: _Tokenize) -> Encoded:
        """Encode rows of which long ones are tokenized only as far as they count."""
        if self._cut is None:
            return _apply(tokenize, [column.to_pylist() for column in columns])
        limit = HEAD_CHARACTERS * self._max_length
        cut = [self._cut(column, limit=limit) for column in columns]
        heads, shortened = zip(*cut, strict=True)
        encoded = _apply(tokenize, heads)
        rows = np.flatnonzero(np.logical_or.reduce(shortened))
        if len(columns) == 1:
            short = rows[encoded.lengths[rows] < self._max_length]
        elif len(rows):
            # A head that alone fills a row is longer than the room of both texts.
            fills = [
                tokenize([side[row] for row in rows], None).lengths >= self._max_length
                for side in heads
            ]
            known = [fill | ~cut[rows] for fill, cut in zip(fills, shortened, strict=True)]
            # Of two long texts the longer keeps the odd token, and heads do not say which it is.
            short = rows[~(known[0] & known[1]) | (fills[0] & fills[1] & self._odd_pair_room)]
        else:
            short = rows
        if not len(short):
            return encoded
        whole = _apply(tokenize, [column.take(short).to_pylist() for column in columns])
        places = np.arange(len(encoded))
        places[short] = len(encoded) + np.arange(len(short))
        return take(concatenate([encoded, whole]), places)

    def _check(self, columns: Sequence[pa.LargeStringArray], encoded: Encoded) -> bool:
        """Whether these rows are what they should be; if not, the faster tokenizer is dropped."""
        wanted = _apply(self._reference, [column.to_pylist() for column in columns])
        if _equal(encoded, wanted):
            return True
        self._fast = None
        logger.warning(
            "%s and this model's own tokenizer differ on a text; going on with the latter, "
            "which is slower. Please report it with the model's name.",
            self._library,
        )
        return False


class _Backend:
    """A Hugging Face fast tokenizer without the Python objects that `transformers` makes of it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, dtype: Any, bare: bool
    ) -> None:
        # A copy, because truncation is a state of the tokenizer itself.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._has_segments = "token_type_ids" in tokenizer.model_input_names
        self._dtype = dtype
        self._bare = bare

    def __call__(self, texts: list[str], pairs: list[str] | None) -> Encoded:
        rows = texts if pairs is None else list(zip(texts, pairs, strict=True))
        parts = []
        for start in range(0, len(rows), ROWS_PER_CALL):
            part = self._backend.encode_batch_fast(
                rows[start : start + ROWS_PER_CALL], add_special_tokens=not self._bare
            )
            segments = [row.type_ids for row in part] if self._has_segments else None
            parts.append(_flatten([row.ids for row in part], segments, dtype=self._dtype))
        return concatenate(parts) if parts else _nothing(self._has_segments, self._dtype)


def _call(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    *,
    max_length: int,
    dtype: Any,
) -> Encoded:
    """By a tokenizer that is written in Python."""
    has_segments = "token_type_ids" in tokenizer.model_input_names
    if not texts:
        return _nothing(has_segments, dtype)
    encoding = tokenizer(
        texts,
        pairs,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=has_segments,
    )
    segments = encoding["token_type_ids"] if has_segments else None
    return _flatten(encoding["input_ids"], segments, dtype=dtype)


def _cut_of(tokenizer: PreTrainedTokenizerBase) -> _Cut | None:
    """What takes of long texts the part that counts; None if they must be tokenized whole."""
    if not tokenizer.is_fast:
        return None
    serialised = tokenizer.backend_tokenizer.to_str()
    if not splits_at_spaces(serialised):
        return None
    if tokenizer.truncation_side == "right":
        return take_heads
    return take_tails if keeps_its_beginning(serialised) else None


def _apply(tokenize: _Tokenize, columns: Sequence[list[str]]) -> Encoded:
    return tokenize(columns[0], columns[1] if len(columns) > 1 else None)


def _flatten(rows: list[list[int]], segments: list[list[int]] | None, *, dtype: Any) -> Encoded:
    return Encoded(
        input_ids=np.fromiter(chain.from_iterable(rows), dtype),
        offsets=offsets_of(np.fromiter(map(len, rows), np.int64, len(rows))),
        token_type_ids=(
            None if segments is None else np.fromiter(chain.from_iterable(segments), np.int8)
        ),
    )


def _nothing(has_segments: bool, dtype: Any) -> Encoded:
    return _flatten([], [] if has_segments else None, dtype=dtype)


def _equal(left: Encoded, right: Encoded) -> bool:
    return (
        np.array_equal(left.offsets, right.offsets)
        and np.array_equal(left.input_ids, right.input_ids)
        and (
            left.token_type_ids is None
            or right.token_type_ids is None
            or np.array_equal(left.token_type_ids, right.token_type_ids)
        )
    )


def _sample(columns: Sequence[pa.LargeStringArray]) -> np.ndarray:
    """Rows spread evenly over all of a block, and over those that are not plain ASCII."""
    sizes = [np.asarray(pc.binary_length(column)) for column in columns]
    is_short = np.logical_and.reduce([size <= SAMPLED_BYTES for size in sizes])
    is_ascii = np.logical_and.reduce([np.asarray(pc.string_is_ascii(column)) for column in columns])
    picked = []
    for rows in (np.flatnonzero(is_short), np.flatnonzero(is_short & ~is_ascii)):
        num_sampled = min(max(len(rows) // ROWS_PER_SAMPLE, 2), 16)
        step = max(1, len(rows) // num_sampled)
        picked.append(rows[::step][:num_sampled])
    return np.unique(np.concatenate(picked))
