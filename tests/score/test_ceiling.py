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


def test_of_two_at_once_the_last_to_end_takes_the_limit_away() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    first, second = ceiling(1 << 30), ceiling(1 << 30)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
