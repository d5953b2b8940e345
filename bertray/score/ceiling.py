"""A limit on the memory that a piece of work may take, enforced by the system."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATM = Path("/proc/self/statm")
DATA = 5  # the field of statm that counts what RLIMIT_DATA limits


@contextmanager
def ceiling(num_bytes: int) -> Iterator[None]:
    """Let allocations fail that would bring this process so many bytes above what it has now.

    Of all threads, for the limit is the process's: meant for a worker that does one thing at a
    time. Where the system has no such limit, nothing is limited. What allocators reserved before
    counts as held: mimalloc, which pyarrow uses, reserves a GiB, so that much may come on top.

    Raises:
        MemoryError: by what runs inside. pyarrow's is one.
    """
    if not STATM.exists():
        yield
        return
    held = int(STATM.read_text().split()[DATA]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([held + num_bytes, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
