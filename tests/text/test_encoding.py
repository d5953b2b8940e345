import logging
import sys
import tracemalloc
from functools import cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    pre_tokenizers,
)
from transformers import AutoTokenizer

from bertray.text import encoding
from bertray.text.columns import as_column
from bertray.text.encoding import Encoded, Encoder
from bertray.text.heads import splits_at_spaces, take_heads
from bertray.text.layout import longest_first
from bertray.text.probes import probes
from bertray.text.ragged import pad


@cache
def encoder_of(tokenizer, *, max_length, fast=True):
    return Encoder(tokenizer, max_length=max_length, fast=fast)


def rows_of(encoded):
    ends = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return [encoded.input_ids[start:end].tolist() for start, end in ends]


def assert_as_hugging_face(encoded, tokenizer, texts, pairs=None, *, max_length):
    wanted = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    assert rows_of(encoded) == wanted["input_ids"]
    if "token_type_ids" in tokenizer.model_input_names:
        assert encoded.token_type_ids.tolist() == [*chain(*wanted["token_type_ids"])]
    else:
        assert encoded.token_type_ids is None


TEXTS = ["the film was very good", "", "bad " * 50, "caf\u00e9s! the [SEP] <pad> <mask> film", "x"]


@pytest.mark.parametrize("max_length", [8, 9, 40])
@pytest.mark.parametrize("fast", [True, False])
def test_ids_are_those_of_hugging_face(tokenizer, fast, max_length):
    encoder = Encoder(tokenizer, max_length=max_length, fast=fast)
    texts = [*TEXTS, *probes(tokenizer)]
    assert_as_hugging_face(encoder(texts), tokenizer, texts, max_length=max_length)
    pairs = texts[::-1]
    found = encoder(pa.array(texts), pa.array(pairs))
    assert_as_hugging_face(found, tokenizer, texts, pairs, max_length=max_length)


# Words, and what separates or surrounds them, so that boundaries lie where they might hurt.
PARTS = ["the", "film", " ", "  ", "\n", "\u00a0", "\u3000", "!", "'s", "\u00e9", "\u0301", "9"]
ODD_PARTS = ["\x1c", "\u200b", "\u4e2d", "[SEP]", "<mask>", "\u0e20\u0e32", "x" * 30, "_"]
text_st = st.text(max_size=40) | st.lists(
    st.sampled_from([*PARTS, *ODD_PARTS, "[MASK]", "</s>", "    ", "\U0001f44d"]), max_size=30
).map("".join)
pair_st = st.tuples(text_st, text_st)


@given(
    rows=st.lists(pair_st, min_size=1, max_size=8),
    max_length=st.sampled_from([5, 8, 13, 30]),
)
@settings(max_examples=40)
def test_ids_of_a_faster_tokenizer_are_those_of_hugging_face_on_any_text(faster, rows, max_length):
    encoder = encoder_of(faster, max_length=max_length)
    assert encoder.is_fast
    texts, pairs = (list(side) for side in zip(*rows, strict=True))
    assert_as_hugging_face(encoder(texts), faster, texts, max_length=max_length)
    assert_as_hugging_face(encoder(texts, pairs), faster, texts, pairs, max_length=max_length)
    assert encoder.is_fast


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_that_is_cut_is_the_tokenizers(faster, side, tmp_path):
    faster.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, truncation_side=side)
    encoder = Encoder(tokenizer, max_length=9)
    assert encoder.is_fast
    texts, pairs = ["the good bad film was", "good"] * 3, ["bad " * 9, "the film was very good"] * 3
    assert_as_hugging_face(encoder(texts), tokenizer, texts, max_length=9)
    assert_as_hugging_face(encoder(texts, pairs), tokenizer, texts, pairs, max_length=9)


def test_byte_level_bpe_puts_a_space_first_where_the_tokenizer_does(byte_level_bpe, fast_tokenizer):
    backend = byte_level_bpe(["<pad>", "<unk>"], add_prefix_space=True)
    tokenizer = fast_tokenizer(
        backend, pad="<pad>", unk="<unk>", names=["input_ids", "attention_mask"]
    )
    encoder = Encoder(tokenizer, max_length=12)
    assert encoder.is_fast
    assert_as_hugging_face(encoder(TEXTS), tokenizer, TEXTS, max_length=12)


def test_added_tokens_that_take_in_spaces_or_are_whole_words_are_found_where_hugging_face_does(
    byte_level_bpe, fast_tokenizer
):
    backend = byte_level_bpe(["<pad>", "<unk>"])
    backend.add_tokens([AddedToken("  "), AddedToken("film", single_word=True)])
    backend.add_special_tokens([AddedToken("@", lstrip=True, rstrip=True, normalized=False)])
    tokenizer = fast_tokenizer(
        backend, pad="<pad>", unk="<unk>", names=["input_ids", "attention_mask"]
    )
    encoder = Encoder(tokenizer, max_length=30)
    assert encoder.is_fast
    texts = ["a film of films", "the  @  film", " @ @@ \n@", "filmed film,films  @film"]
    assert_as_hugging_face(encoder(texts), tokenizer, texts, max_length=30)


def test_marks_of_a_newer_unicode_stay_in_the_order_that_hugging_face_gives_them(modernbert):
    encoder = Encoder(modernbert, max_length=40)
    texts = ["o\u1ae7\u0327k", "\u2c81\u035f\u1accx", "cafe\u0301s", "caf\u00e9s"]
    assert_as_hugging_face(encoder(texts), modernbert, texts, max_length=40)
    assert encoder.is_fast


def test_what_a_tokenizer_was_last_used_with_does_not_count(faster):
    faster(TEXTS, truncation=True, padding="max_length", max_length=4)
    encoder = Encoder(faster, max_length=12)
    assert encoder.is_fast
    assert_as_hugging_face(encoder(TEXTS), faster, TEXTS, max_length=12)


@pytest.mark.parametrize("part", ["dropout", "special tokens as text", "characters"])
def test_what_the_faster_bpe_passes_over_goes_to_hugging_face_without_a_warning(
    part, caplog, byte_level_bpe, fast_tokenizer
):
    backend = byte_level_bpe(["<pad>", "<unk>"])
    if part == "dropout":
        backend.model.dropout = 0.1
    elif part == "characters":
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = fast_tokenizer(
        backend, pad="<pad>", unk="<unk>", names=["input_ids", "attention_mask"]
    )
    tokenizer.split_special_tokens = part == "special tokens as text"
    with caplog.at_level(logging.WARNING):
        assert not Encoder(tokenizer, max_length=12).is_fast
    assert not caplog.records


@given(counts=st.tuples(st.integers(0, 30), st.integers(0, 30)), room=st.integers(1, 25))
@settings(max_examples=200)
def test_pairs_are_cut_as_tokenizers_cuts_them(counts, room):
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.enable_truncation(room)
    ids = backend.encode("a " * counts[0], "b " * counts[1]).ids
    kept = longest_first(np.array(counts[:1]), np.array(counts[1:]), room=room)
    assert [int(side[0]) for side in kept] == [ids.count(0), ids.count(1)]


def test_ids_take_two_bytes_where_the_vocabulary_fits(wordpiece):
    assert Encoder(wordpiece, max_length=8)(["good"]).input_ids.dtype == np.uint16


def test_no_rows_give_no_tokens(tokenizer):
    encoded = Encoder(tokenizer, max_length=8)([])
    assert len(encoded) == 0
    assert len(encoded.input_ids) == 0


long_st = st.lists(st.sampled_from([*PARTS, *PARTS, *ODD_PARTS]), max_size=80).map("".join)


@given(texts=st.lists(long_st, min_size=2, max_size=4))
@settings(max_examples=25)
def test_a_long_text_gives_the_same_ids_by_its_head_alone(tokenizer, texts):
    # Eight characters a token, so texts of more than 64 are cut before they are tokenized.
    for fast in (True, False):
        encoder = encoder_of(tokenizer, max_length=8, fast=fast)
        assert_as_hugging_face(encoder(texts), tokenizer, texts, max_length=8)
        pairs = texts[::-1]
        found = encoder(texts, pairs)
        assert_as_hugging_face(found, tokenizer, texts, pairs, max_length=8)


def test_a_tokenizer_whose_words_span_spaces_is_never_cut(wordpiece, roberta):
    assert splits_at_spaces(wordpiece.backend_tokenizer.to_str())
    assert splits_at_spaces(roberta.backend_tokenizer.to_str())
    backend = Tokenizer(models.BPE({"a": 0}, []))
    assert not splits_at_spaces(backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not splits_at_spaces(backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert splits_at_spaces(backend.to_str())
    backend.add_tokens(["new york"])
    assert not splits_at_spaces(backend.to_str())


def test_heads_end_before_a_space():
    column = as_column(["one two three", "short", "x" * 20, "\u00e9" * 6 + " b"])
    heads, shortened = take_heads(column, limit=9)
    assert heads == ["one two", "short", "x" * 20, "\u00e9" * 6]
    assert shortened.tolist() == [True, False, False, True]


def test_a_text_of_many_megabytes_costs_little(wordpiece):
    encoder = Encoder(wordpiece, max_length=16, fast=False)
    column = pa.array(["the film was very good " * 2_000_000])
    tracemalloc.start()
    encoded = encoder(column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.lengths.tolist() == [16]
    assert peak < 1_000_000


def test_a_fast_tokenizer_that_differs_on_load_is_left_with_one_warning(
    faster, monkeypatch, caplog
):
    _break_fast(monkeypatch, when=lambda text: True)
    with caplog.at_level(logging.WARNING):
        encoder = Encoder(faster, max_length=16)
        encoded = encoder(TEXTS)
    assert not encoder.is_fast
    assert len(caplog.records) == 1
    assert_as_hugging_face(encoded, faster, TEXTS, max_length=16)


def test_a_fast_tokenizer_that_differs_on_real_rows_is_left_for_the_whole_block(
    faster, monkeypatch, caplog
):
    _break_fast(monkeypatch, when=lambda text: text == "the last straw \u00e9")
    encoder = Encoder(faster, max_length=16)
    assert encoder.is_fast
    texts = [*["the film"] * 1000, "the last straw \u00e9", *["was good"] * 1000]
    caplog.clear()  # of what an earlier test's verbose logger may say while an encoder is made
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_as_hugging_face(encoder(texts), faster, texts, max_length=16)
    assert not encoder.is_fast
    assert len(caplog.records) == 1


def _break_fast(monkeypatch, *, when):
    """Have the faster tokenizers get one token wrong of each text that ``when`` says."""

    def breaking(load):
        def load_broken(tokenizer, *, parallel):
            tokens_of = load(tokenizer, parallel=parallel)

            def broken(texts, max_tokens):
                encoded = tokens_of(texts, max_tokens)
                rows = [row for row, text in enumerate(texts) if when(text)]
                starts = encoded.offsets[rows][encoded.lengths[rows] > 0]
                ids = encoded.input_ids.copy()
                ids[starts] += 1
                return Encoded(ids, encoded.offsets, None)

            return broken

        return load_broken

    libraries = {library: breaking(load) for library, load in encoding._FASTER.items()}
    monkeypatch.setattr(encoding, "_FASTER", libraries)


def test_without_the_extra_the_models_own_tokenizer_does_it(faster, monkeypatch):
    for library in ("nanotoken", "gigatoken"):
        monkeypatch.setitem(sys.modules, library, None)
    encoder = Encoder(faster, max_length=16)
    assert not encoder.is_fast
    assert_as_hugging_face(encoder(TEXTS), faster, TEXTS, max_length=16)


def test_padding_fills_the_right_and_masks_it():
    flat, offsets = np.array([1, 2, 3, 4, 5, 6], np.uint16), np.array([0, 3, 4, 6])
    padded, mask = pad(flat, offsets, np.array([2, 0]), value=9)
    assert padded.tolist() == [[5, 6, 9], [1, 2, 3]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
