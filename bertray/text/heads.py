"""Where a long text may be cut so that its first tokens, or its last, stay what they were.

A text of 50 MB of which a model reads 512 tokens is not worth tokenizing, and tokenizers hold many
times a text's size while they work.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A letter or digit before ASCII white space: the tokenizers let in below split there, always.
_BOUNDARY = re.compile(r"[^\W_](?=[ \t\r\n])")
# A tail begins with a space: before anything else some tokenizers would put one.
_TAIL_BOUNDARY = re.compile(r"[^\W_](?= )")
_REACH = 2000  # characters from where it is cut in which a boundary is looked for

_LOCAL_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"}
    | {"Strip", "StripAccents"}
)
_SPLITTING = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LOCAL = frozenset({"Digits", "Punctuation"})


def take_heads(column: pa.LargeStringArray, *, limit: int) -> tuple[list[str], np.ndarray]:
    """The texts, long ones only to a boundary within their first ``limit`` characters.

    Args:
        column: the texts; without nulls.
        limit: characters that a head may have.

    Returns:
        The texts or their heads, and True of shape (rows,) for each that is but a head. A text that
        has no boundary there is left whole.
    """
    return _take(column, _head, limit=limit, span=(0, limit))


def take_tails(column: pa.LargeStringArray, *, limit: int) -> tuple[list[str], np.ndarray]:
    """As `take_heads`, but long texts from a boundary within their last ``limit`` characters on."""
    return _take(column, _tail, limit=limit, span=(-limit, None))


def keeps_its_beginning(tokenizer_json: str) -> bool:
    """Whether a tokenizer that `splits_at_spaces` surely takes a tail's beginning as it stands."""
    normalizers = _steps(json.loads(tokenizer_json)["normalizer"], "normalizers")
    return not any(step["type"] == "Prepend" or step.get("strip_left") for step in normalizers)


def splits_at_spaces(tokenizer_json: str) -> bool:
    """Whether a tokenizer surely makes the same tokens of a head as of the text's beginning.

    Args:
        tokenizer_json: a Hugging Face fast tokenizer, serialised.
    """
    parts = json.loads(tokenizer_json)
    normalizers = _steps(parts["normalizer"], "normalizers")
    pretokenizers = _steps(parts["pre_tokenizer"], "pretokenizers")
    return (
        all(_is_local(step) for step in normalizers)
        and any(_splits(step) for step in pretokenizers)
        and all(_splits(step) or step["type"] in _LOCAL for step in pretokenizers)
        and not any(_BOUNDARY.search(token["content"]) for token in parts["added_tokens"])
    )


def _take(
    column: pa.LargeStringArray,
    cut: Callable[[str], str | None],
    *,
    limit: int,
    span: tuple[int, int | None],
) -> tuple[list[str], np.ndarray]:
    # A text of so few bytes has no more characters, and bytes are counted for free.
    long = np.asarray(pc.greater(pc.binary_length(column), limit))
    if not long.any():
        return column.to_pylist(), long
    rows = np.flatnonzero(long)
    sliced = pc.utf8_slice_codeunits(column.take(rows), *span)
    parts = [cut(text) for text in sliced.to_pylist()]
    shortened = np.zeros(len(column), bool)
    shortened[rows] = [part is not None for part in parts]
    found = pa.array([part for part in parts if part is not None], pa.large_string())
    return pc.replace_with_mask(column, pa.array(shortened), found).to_pylist(), shortened


def _head(text: str) -> str | None:
    """Up to the last boundary; None if there is none."""
    ends = [match.end() for match in _BOUNDARY.finditer(text, max(0, len(text) - _REACH))]
    return text[: ends[-1]] if ends else None


def _tail(text: str) -> str | None:
    """From the first boundary on; None if there is none."""
    boundary = _TAIL_BOUNDARY.search(text, 0, _REACH)
    return text[boundary.end() :] if boundary else None


def _steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[inner]) if step["type"] == "Sequence" else [step]


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":  # SentencePiece models: runs of spaces, kinds of quotes
        pattern = normalizer["pattern"]
        return pattern.get("Regex") == " {2,}" or " " not in pattern.get("String", " ")
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _splits(pretokenizer: dict[str, Any]) -> bool:
    match pretokenizer["type"]:
        case "ByteLevel":
            return bool(pretokenizer.get("use_regex", True))
        case "Metaspace":
            return bool(pretokenizer.get("split", True))
    return pretokenizer["type"] in _SPLITTING
