"""A limit on the memory that a piece of work may take, enforced by the system."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATM = Path("/proc/self/statm")
DATA = 5  # the field of statm that counts what RLIMIT_DATA limits


class _Limit:
    """The process's own. The first inside keeps what it was, the last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._outside = resource.getrlimit(resource.RLIMIT_DATA)

    def lower(self, num_bytes: int) -> None:
        held = int(STATM.read_text().split()[DATA]) * os.sysconf("SC_PAGE_SIZE")
        with self._lock:
            if not self._num_inside:
                self._outside = resource.getrlimit(resource.RLIMIT_DATA)
            limits = [limit for limit in self._outside if limit != resource.RLIM_INFINITY]
            limit = min([held + num_bytes, *limits])
            resource.setrlimit(resource.RLIMIT_DATA, (limit, self._outside[1]))
            self._num_inside += 1

    def lift(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                resource.setrlimit(resource.RLIMIT_DATA, self._outside)


_LIMIT = _Limit()


@contextmanager
def ceiling(num_bytes: int) -> Iterator[None]:
    """Let allocations fail that would bring this process so many bytes above what it has now.

    Of all threads, for the limit is the process's: meant for a worker that does one thing at a
    time. Of several at once the latest says the limit, and the last to end takes it away. Where the
    system has no such limit, nothing is limited. What allocators reserved before counts as held:
    mimalloc, which pyarrow uses, reserves a GiB, so that much may come on top.

    Raises:
        MemoryError: by what runs inside. pyarrow's is one.
    """
    if not STATM.exists():
        yield
        return
    _LIMIT.lower(num_bytes)
    try:
        yield
    finally:
        _LIMIT.lift()
