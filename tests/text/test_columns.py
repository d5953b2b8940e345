import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.text.columns import as_column, distinct, is_blank, is_null, not_utf8

texts_st = st.lists(
    st.none() | st.text(alphabet=" \t\u3000\x1cab\u00e9\u200b", max_size=4), max_size=30
)


@pytest.mark.parametrize(
    "column",
    [
        ["a", None, "b"],
        pa.array(["a", None, "b"]),
        pa.array(["x", "a", None, "b"])[1:],
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.chunked_array([pa.array(["a", None]), pa.array(["b"])]),
        pa.chunked_array(
            [pa.array(["a", None]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]
        ),
    ],
)
def test_any_kind_of_text_column_is_read(column):
    assert as_column(column).to_pylist() == ["a", None, "b"]


def test_a_column_of_nulls_and_one_of_no_chunks_are_read():
    assert as_column(pa.nulls(2)).to_pylist() == [None, None]
    assert as_column(pa.chunked_array([], pa.string())).to_pylist() == []


@given(texts_st)
def test_null_and_blank_are_what_python_says(texts):
    column = as_column(texts)
    assert is_null(column).tolist() == [text is None for text in texts]
    assert is_blank(column).tolist() == [text is not None and not text.strip() for text in texts]


def test_bytes_that_are_not_utf8_are_found():
    good_bad_good = pa.array([b"caf\xc3\xa9", b"caf\xe9", b"", None], pa.binary())
    buffers = good_bad_good.buffers()
    column = as_column(pa.Array.from_buffers(pa.string(), 4, buffers))
    assert not_utf8(column).tolist() == [False, True, False, False]
    assert is_blank(column).tolist() == [False, False, True, False]
    assert not not_utf8(as_column(["a", None])).any()


def test_a_column_that_begins_with_bytes_that_are_not_utf8_still_has_its_blanks():
    blank_after_bad = pa.array([b"\xff", b" ", b"a", None], pa.binary())
    column = as_column(pa.Array.from_buffers(pa.string(), 4, blank_after_bad.buffers()))
    assert not_utf8(column).tolist() == [True, False, False, False]
    assert is_blank(column).tolist() == [False, True, False, False]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=40))
def test_distinct_rows_scatter_back_to_all(pairs):
    for columns in ([[left for left, _ in pairs]], list(zip(*pairs, strict=True)) or [[], []]):
        found, twins = distinct([as_column(list(column)) for column in columns])
        rows = list(zip(*(column.to_pylist() for column in found), strict=True))
        assert len(set(rows)) == len(rows)
        assert [rows[twin] for twin in twins] == list(zip(*columns, strict=True))
        assert twins.dtype.kind == "i" or not len(np.asarray(twins))
