"""Processes that put the same file at the same moment.

Not in a module of ``tests``: a package that the tests install has one of that name too, which a
process that is started anew finds first.
"""

import multiprocessing.synchronize

from bertray import storage

_start: multiprocessing.synchronize.Barrier


def meet(barrier: multiprocessing.synchronize.Barrier) -> None:
    """What each process is told first."""
    global _start  # noqa: PLW0603
    _start = barrier


def put_at_once(uri: str, number: int, version: str | None) -> bool:
    """Put a content of its own once all the others are ready to."""
    _start.wait()
    return storage.put_bytes(uri, str(number).encode() * 1000, replaces=version)
