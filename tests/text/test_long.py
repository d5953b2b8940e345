import copy
import tracemalloc
from functools import cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.errors import ConfigError
from bertray.text.columns import as_column
from bertray.text.encoding import Encoder
from bertray.text.heads import keeps_its_beginning, take_tails
from bertray.text.long import TRUNCATE, LongText, check_long_text, make_row_encoder

HEAD_TAIL = LongText("head_tail")
PARTS = ["the", "film", "good", " ", "  ", "\n", "\u3000", "!", "'s", "\u00e9", "\u0301", "9"]
ODD_PARTS = ["\x1c", "\u200b", "\u4e2d", "[SEP]", "<mask>", "[MASK]", "x" * 30, "_", "    "]
long_st = st.lists(st.sampled_from([*PARTS, *PARTS, *ODD_PARTS]), max_size=120).map("".join)
texts_st = st.lists(long_st, min_size=1, max_size=5)
TEXTS = ["the film was very good", "", "bad " * 50, "caf\u00e9s! the [SEP] <mask> film " * 9, "x"]


@cache
def encoder_of(tokenizer, long_text, *, max_length):
    return make_row_encoder(tokenizer, max_length=max_length, long_text=long_text)


def sequences_of(encoded):
    ends = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return [encoded.input_ids[start:end].tolist() for start, end in ends]


def rows_of(rows):
    """The sequences of each row."""
    sequences = iter(sequences_of(rows.encoded))
    return [[next(sequences) for _ in range(count)] for count in rows.num_windows]


def of_hugging_face(tokenizer, texts, **options):
    """Each text's windows, by its own sliding of them."""
    windows = []
    for text in texts:
        found = tokenizer(text, truncation=True, return_overflowing_tokens=True, **options)
        windows.append(found["input_ids"])
    return windows


@given(texts=texts_st, size=st.sampled_from([(8, 0), (8, 2), (13, 3), (30, 20)]))
@settings(max_examples=25)
def test_windows_are_those_of_hugging_face(tokenizer, texts, size):
    max_length, stride = size
    long_text = LongText("window", stride, max_windows=400)
    found = encoder_of(tokenizer, long_text, max_length=max_length)(texts)
    assert rows_of(found) == of_hugging_face(tokenizer, texts, max_length=max_length, stride=stride)


def test_windows_have_the_segments_of_hugging_face(wordpiece):
    found = encoder_of(wordpiece, LongText("window", 2, 400), max_length=9)(TEXTS)
    wanted = wordpiece(
        TEXTS, truncation=True, max_length=9, stride=2, return_overflowing_tokens=True
    )
    assert found.encoded.token_type_ids.tolist() == [*chain(*wanted["token_type_ids"])]


@given(texts=texts_st, max_windows=st.integers(1, 4))
@settings(max_examples=25)
def test_no_row_has_more_windows_than_it_may(tokenizer, texts, max_windows):
    # Of 8 characters a token are so many windows' texts cut before they are tokenized.
    long_text = LongText("window", 2, max_windows)
    found = encoder_of(tokenizer, long_text, max_length=8)(texts)
    all_windows = of_hugging_face(tokenizer, texts, max_length=8, stride=2)
    assert rows_of(found) == [windows[:max_windows] for windows in all_windows]


def test_the_first_window_alone_is_the_truncated_row(tokenizer):
    first = encoder_of(tokenizer, LongText("window", aggregate="first"), max_length=9)(TEXTS)
    truncated = encoder_of(tokenizer, TRUNCATE, max_length=9)(TEXTS)
    assert rows_of(first) == rows_of(truncated)


def test_windows_share_a_quarter_unless_told():
    assert LongText("window").stride_of(512) == 128
    assert LongText("window", 0).stride_of(512) == 0


@given(texts=texts_st, max_length=st.sampled_from([5, 8, 13, 30]))
@settings(max_examples=25)
def test_head_and_tail_are_the_ends_of_what_the_tokenizer_makes_of_all(
    tokenizer, texts, max_length
):
    found = encoder_of(tokenizer, HEAD_TAIL, max_length=max_length)(texts)
    assert rows_of(found) == [[head_and_tail(tokenizer, text, max_length)] for text in texts]


def head_and_tail(tokenizer, text, max_length):
    """In plain Python."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    room = max_length - tokenizer.num_special_tokens_to_add()
    num_head = room * 128 // 510
    if len(tokens) > room:
        tokens = tokens[:num_head] + tokens[len(tokens) - (room - num_head) :]
    first, last = tokenizer("")["input_ids"]
    return [first, *tokens, last]


def test_the_shares_of_head_and_tail_are_those_of_the_paper(wordpiece):
    words = " ".join(chr(ord("a") + number % 26) for number in range(600))
    found = encoder_of(wordpiece, HEAD_TAIL, max_length=512)([words])
    tokens = wordpiece(words, add_special_tokens=False)["input_ids"]
    assert sequences_of(found.encoded)[0][1:-1] == tokens[:128] + tokens[-382:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_rows_are_those_of_the_plain_encoder(tokenizer, side):
    tokenizer = copy.copy(tokenizer)
    tokenizer.truncation_side = side
    for columns in ([TEXTS], [TEXTS, TEXTS[::-1]]):
        found = make_row_encoder(tokenizer, max_length=9)(*columns)
        plain = Encoder(tokenizer, max_length=9)(*columns)
        assert found.num_windows.tolist() == [1] * len(TEXTS)
        assert found.encoded.input_ids.tobytes() == plain.input_ids.tobytes()
        assert found.encoded.offsets.tobytes() == plain.offsets.tobytes()


@given(texts=st.lists(long_st, min_size=2, max_size=4))
@settings(max_examples=25)
def test_a_long_text_cut_on_the_left_gives_the_same_ids_by_its_tail_alone(tokenizer, texts):
    left = left_of(tokenizer)
    encoder = encoder_of(left, TRUNCATE, max_length=8)
    pairs = texts[::-1]
    wanted = left(texts, truncation=True, max_length=8)["input_ids"]
    assert sequences_of(encoder(texts).encoded) == wanted
    wanted = left(texts, pairs, truncation=True, max_length=8)["input_ids"]
    assert sequences_of(encoder(texts, pairs).encoded) == wanted


@cache
def left_of(tokenizer):
    left = copy.copy(tokenizer)
    left.truncation_side = "left"
    return left


def test_tails_begin_with_a_space():
    column = as_column(["one two three", "short", "x" * 20, "b " + "\u00e9" * 6, "one\ntwo three"])
    tails, shortened = take_tails(column, limit=9)
    assert tails == [" three", "short", "x" * 20, " " + "\u00e9" * 6, " three"]
    assert shortened.tolist() == [True, False, False, True, True]


def test_a_tokenizer_that_changes_a_texts_beginning_is_given_no_tail(wordpiece, unigram):
    assert keeps_its_beginning(wordpiece.backend_tokenizer.to_str())
    assert keeps_its_beginning(unigram.backend_tokenizer.to_str())
    for step in ('{"type": "Prepend"}', '{"type": "Strip", "strip_left": true}'):
        assert not keeps_its_beginning('{"normalizer": ' + step + "}")


@pytest.mark.parametrize("long_text", [HEAD_TAIL, LongText("window", max_windows=4)])
def test_a_text_of_many_megabytes_costs_little(wordpiece, long_text):
    encode = encoder_of(wordpiece, long_text, max_length=16)
    column = pa.array(["the film was very good " * 2_000_000])
    tracemalloc.start()
    rows = encode(column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.encoded.lengths.tolist() == [16] * rows.num_windows[0]
    assert peak < 1_000_000


@pytest.mark.parametrize("long_text", [TRUNCATE, HEAD_TAIL, LongText("window")])
def test_no_rows_give_no_sequences(tokenizer, long_text):
    rows = encoder_of(tokenizer, long_text, max_length=8)([])
    assert len(rows) == len(rows.encoded) == 0
    assert rows.encoded.offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("long_text", "options", "message"),
    [
        (HEAD_TAIL, {"has_pairs": True}, r"text\.long=head_tail takes single texts"),
        (LongText("window"), {"has_pairs": True}, r"text\.long=window takes single texts"),
        (LongText("window", 6), {}, r"a window holds 6 tokens .* text\.stride=6"),
        (HEAD_TAIL, {"max_length": 2}, r"max_length=2 a window holds 0 tokens"),
        (TRUNCATE, {"max_length": 2}, r"max_length=2: the tokenizer adds 2 special tokens"),
        (TRUNCATE, {"max_length": 3, "has_pairs": True}, r"adds 3 special tokens"),
    ],
)
def test_what_cannot_be_done_is_refused(wordpiece, long_text, options, message):
    options = {"max_length": 8, "has_pairs": False} | options
    with pytest.raises(ConfigError, match=message):
        check_long_text(long_text, wordpiece, **options)
    check_long_text(TRUNCATE, wordpiece, **options | {"max_length": 8})


def test_a_tokenizer_written_in_python_is_refused(wordpiece):
    slow = copy.copy(wordpiece)
    slow.__class__ = type("Slow", (type(wordpiece),), {"is_fast": False})
    with pytest.raises(ConfigError, match="needs a fast tokenizer"):
        check_long_text(HEAD_TAIL, slow, max_length=8, has_pairs=False)


def test_rows_count_as_many_as_texts(wordpiece):
    rows = encoder_of(wordpiece, LongText("window", 2), max_length=8)(TEXTS)
    assert len(rows) == len(TEXTS)
    assert len(rows.encoded) == np.sum(rows.num_windows) > len(TEXTS)
