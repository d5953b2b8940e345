"""Byte-level BPE (RoBERTa, ModernBERT) many times faster than `tokenizers`, by `gigatoken`.

A text at a time: that is as fast as the library's batches on one core and gives bare arrays, where
batches are padded, or `awkward` arrays if that is installed. The library is optional.
"""

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from bertray.text.layout import TokensOf
from bertray.text.ragged import Encoded, offsets_of


def bytebpe_tokens(tokenizer: PreTrainedTokenizerBase, *, parallel: bool) -> TokensOf:
    """Tokens as a Hugging Face byte-level BPE makes them, as far as the caller has checked.

    Args:
        tokenizer: the model's tokenizer.
        parallel: is not looked at: one core is used.

    Raises:
        ImportError: `gigatoken` is not installed.
        ValueError: the tokenizer is of another kind, or has a part that is not supported.
    """
    if not tokenizer.is_fast or not isinstance(tokenizer.backend_tokenizer.model, models.BPE):
        raise ValueError("not a BPE tokenizer of Hugging Face's tokenizers")
    # A copy, because gigatoken heeds the truncation that a tokenizer was last used with.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    parts = json.loads(backend.to_str())
    if tokenizer.split_special_tokens or not _is_known(parts):
        raise ValueError("gigatoken does not heed a part of this tokenizer")
    import gigatoken

    try:
        fast = gigatoken.Tokenizer.from_json(json.dumps({**parts, "normalizer": None})).backend
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    # It looks for added tokens in another order, so one that takes in the spaces beside it loses
    # them to a token for runs of spaces; and it finds whole words within words.
    contested = [
        re.escape(token["content"])
        for token in parts["added_tokens"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]
    ]
    is_contested = re.compile("|".join(contested) or r"(?!)").search

    # The two know NFC of different versions of Unicode. A text that is NFC already, as Hugging Face
    # sees it, is so in all its parts.
    normalizer = backend.normalizer

    def is_normal(text: str) -> bool:
        return normalizer is None or text.isascii() or normalizer.normalize_str(text) == text

    if not all(is_normal(token["content"]) for token in parts["added_tokens"]):
        raise ValueError("an added token is not NFC")

    def encode(text: str) -> np.ndarray:
        if is_contested(text) or not is_normal(text):
            return np.array(backend.encode(text, add_special_tokens=False).ids, np.uint32)
        ids: np.ndarray = fast.encode(text)
        return ids

    def tokens_of(texts: list[str], max_tokens: int | None) -> Encoded:
        rows = [encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.concatenate(rows) if rows else np.empty(0, np.uint32)
        return Encoded(ids, offsets_of(lengths), None)

    return tokens_of


def _is_known(parts: dict[str, Any]) -> bool:
    """Whether the tokenizer is byte-level, and has no part that is passed over here."""
    if parts["normalizer"] not in (None, {"type": "NFC"}):
        return False
    step = parts["pre_tokenizer"] or {"type": None}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    ignored = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    return any(step["type"] == "ByteLevel" for step in steps) and not any(
        parts["model"].get(name) for name in ignored
    )
