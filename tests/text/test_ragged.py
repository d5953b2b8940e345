"""Rows in one flat buffer are the rows they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.text import ragged
from bertray.text.ragged import Encoded, offsets_of, take


@given(
    lengths=st.lists(st.integers(0, 9), max_size=12),
    picks=st.lists(st.integers(0, 11), max_size=20),
)
@pytest.mark.parametrize("at_once", [1, 5, 1 << 22])
def test_rows_are_taken_whole_in_the_order_asked_for_however_many_at_once(
    at_once: int, lengths: list[int], picks: list[int]
) -> None:
    offsets = offsets_of(np.array(lengths, np.int64))
    ids = np.arange(offsets[-1], dtype=np.uint16)
    rows = np.array([pick for pick in picks if pick < len(lengths)], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "TOKENS_AT_ONCE", at_once)
        taken = take(Encoded(ids, offsets, (ids % 3).astype(np.int8)), rows)
    wanted = [ids[offsets[row] : offsets[row + 1]].tolist() for row in rows]
    found = [
        taken.input_ids[start:end].tolist()
        for start, end in zip(taken.offsets[:-1], taken.offsets[1:], strict=True)
    ]
    assert found == wanted
    assert taken.input_ids.dtype == np.uint16
    assert taken.token_type_ids is not None
    assert (taken.token_type_ids == taken.input_ids % 3).all()
