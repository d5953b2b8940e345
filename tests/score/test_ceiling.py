import resource

import pyarrow as pa
import pytest

from bertray.score.ceiling import ceiling


def test_what_would_take_more_fails_and_what_comes_after_does_not() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError), ceiling(64 << 20):
        pa.allocate_buffer(2 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert pa.allocate_buffer(2 << 30).size == 2 << 30


def test_what_fits_is_let_through() -> None:
    with ceiling(256 << 20):
        assert pa.allocate_buffer(32 << 20).size == 32 << 20
