"""Whole files on this machine's own filesystem, or on one that it has mounted."""

import errno
import fcntl
import os
import posixpath
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from bertray.storage.files import FileInfo

UNFINISHED = re.compile(r"\.bertray-[0-9a-f]{32}\.tmp")
STAGED_FOR_S = 3600.0  # what a killed process staged in the temporary folder is kept for
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
# What exFAT, SMB shares and buckets mounted as a folder say of hard links.
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def unfinished_name() -> str:
    """A new name for a file that is being built; `sweep` knows it again."""
    return f".bertray-{uuid.uuid4().hex}.tmp"


def is_unfinished(name: str) -> bool:
    """Whether a path is that of a file that was being built."""
    return UNFINISHED.fullmatch(posixpath.basename(name)) is not None


def walk(root: str) -> Iterator[str]:
    """All files below a folder; links are followed."""
    for folder, _, names in os.walk(root, followlinks=True, onerror=_raise):
        yield from (f"{folder}/{name}" for name in names)


def info(root: str, name: str) -> FileInfo | None:
    """What a listing says of a file; None if it is none, or gone."""
    try:
        status = Path(name).stat()
    except FileNotFoundError:  # a link to nowhere, or gone since it was listed
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileInfo(posixpath.relpath(name, root), status.st_size, _version(status))


def publish(staged: Path, final: Path, *, overwrite: bool, replaces: str | None) -> bool:
    """Rename or link a file of the same filesystem into place; on disk when this returns."""
    _sync(staged)
    if replaces is not None:
        done = _replace(staged, final, replaces)
    elif overwrite:
        staged.replace(final)
        done = True
    else:
        done = _create(staged, final)
    if done:
        _sync(final.parent)
    return done


def sweep(folder: Path, *, older_than_s: float) -> None:
    """Remove what was being built below a folder that long ago by a process that is no more."""
    _remove_old(map(Path, walk(str(folder))), older_than_s)


def temporary_folder() -> Path:
    """Where files are built that go elsewhere. The first use sweeps what killed processes left."""
    folder = Path(tempfile.gettempdir())
    _sweep_once(folder)
    return folder


@cache
def _sweep_once(folder: Path) -> None:
    with suppress(OSError):
        _remove_old(folder.iterdir(), STAGED_FOR_S)


def _remove_old(paths: Iterable[Path], older_than_s: float) -> None:
    for path in paths:
        if is_unfinished(path.name):
            with suppress(FileNotFoundError, PermissionError):  # another's sweep, another's file
                if time.time() - path.lstat().st_mtime > older_than_s:
                    path.unlink()


def _create(staged: Path, final: Path) -> bool:
    try:
        os.link(staged, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links two who create one name at the same moment both do; the last one stays.
        if final.exists():
            return False
        staged.replace(final)
    return True


def _replace(staged: Path, final: Path, version: str) -> bool:
    """Rename over the file of one version.

    Whoever wants to replace a file locks that very file and then looks whether its name still
    leads to it. So of those who mean the same version one renames, and no lock file is left over.
    """
    try:
        descriptor = os.open(final, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        with _locked(descriptor):
            mine = os.fstat(descriptor)
            with suppress(FileNotFoundError):
                there = final.stat()
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) and (
                    _version(there) == version
                ):
                    staged.replace(final)
                    return True
            return False
    finally:
        os.close(descriptor)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        # Without locks two who replace one version at the same moment both do; the last one stays.
        if error.errno not in NO_LOCKS:
            raise
    yield  # closing the descriptor unlocks


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # removed since it was listed
        raise error
