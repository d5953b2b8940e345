"""One way to reach local disk, S3, GCS and ABFS: list, open, put whole files, small JSON.

A place is named by a URI or a local path, as one string; fsspec finds and caches the filesystem.
Credentials come from each cloud's standard chain and are never part of a setting.
"""

import json
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bertray.errors import StorageError

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True, order=True)
class FileInfo:
    """A file below a root.

    Attributes:
        path: relative to the root, with forward slashes.
        size_bytes: its length.
        version: changes when the content does: the etag, else mtime and size.
    """

    path: str
    size_bytes: int
    version: str


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of ``uri`` and the path inside it.

    Raises:
        StorageError: the scheme is unknown, or its package is not installed.
    """
    try:
        fs, path = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{uri}: {error}") from error
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Whether ``uri`` names a place on this machine's own filesystem."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def local_path(uri: str) -> Path:
    """The path of a local ``uri``; only after `is_local`."""
    return Path(resolve(uri)[1])


def join(root: str, *parts: str) -> str:
    """A path below ``root``; ``root`` may be a URI."""
    return posixpath.join(root.rstrip("/") or "/", *parts) if parts else root


def absolute(uri: str) -> str:
    """``uri`` as any process of the cluster can use it: local paths made absolute."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def list_files(uri: str, *, suffix: str, key: str) -> tuple[str, list[FileInfo]]:
    """The files of a file, folder or glob, hidden ones left out, sorted by path.

    A name that starts with ``_`` or ``.`` hides a file, and a folder with all that is in it. Links
    on local disk are followed.

    Args:
        uri: a file, a folder, or a glob of files.
        suffix: of the names wanted.
        key: the setting that named ``uri``, for messages.

    Returns:
        The root that the paths are relative to, and the files. An empty list if none match.

    Raises:
        StorageError: ``uri`` does not exist or cannot be listed.
    """
    fs, path = resolve(uri)
    try:
        if fs.isfile(path):
            root, names = fs._parent(path), [path]
        elif fs.isdir(path):
            root, names = path.rstrip("/"), None
        elif _is_glob(path):
            root, names = _glob_root(path), fs.glob(path)
        else:
            raise StorageError(f"{key}={uri}: no such file or folder")
        if isinstance(fs, LocalFileSystem):
            files = [_local_info(root, name) for name in names or _walk(root)]
        else:
            found = fs.find(root, detail=True) if names is None else {n: fs.info(n) for n in names}
            files = [_remote_info(root, name, info) for name, info in found.items()]
    except StorageError:
        raise
    except Exception as error:  # each cloud's client has errors of its own
        raise StorageError(f"{key}={uri}: cannot be listed: {error}") from error
    kept = [file for file in files if file and file.path.endswith(suffix) and not _is_hidden(file)]
    return root if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(root)), sorted(kept)


def version_of(uri: str) -> str:
    """The version a listing would give a file now.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    fs, path = resolve(uri)
    fs.invalidate_cache()
    root = fs._parent(path)
    local = isinstance(fs, LocalFileSystem)
    info = _local_info(root, path) if local else _remote_info(root, path, fs.info(path))
    if info is None:
        raise FileNotFoundError(uri)
    return info.version


@contextmanager
def open_input(uri: str) -> Iterator[pa.NativeFile]:
    """A file for pyarrow to read at random; local files by the fast way."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        with pa.OSFile(path) as file:
            yield file
    else:
        with fs.open(path, "rb") as remote, pa.PythonFile(remote, mode="r") as file:
            yield file


def exists(uri: str) -> bool:
    """Whether a file or folder of this name is there."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def is_empty(uri: str) -> bool:
    """Whether nothing is there, not even a hidden file. Our own unfinished files do not count."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return True
    return all(name.endswith(TEMPORARY_SUFFIX) for name in fs.find(path))


def remove(uri: str) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    fs, path = resolve(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def staging(uri: str) -> Iterator[Path]:
    """A local path to build the file in that `publish` will put at ``uri``; gone afterwards.

    On local disk it lies on the filesystem of ``uri``, so that publishing is a rename.
    """
    name = f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    if is_local(uri):
        folder = local_path(uri).parent
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / name
    else:
        staged = Path(tempfile.gettempdir()) / name
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def publish(staged: Path, uri: str, *, overwrite: bool = False) -> bool:
    """Put a finished local file at ``uri``, where it appears whole or not at all.

    Args:
        staged: the file, from `staging`.
        uri: its final name.
        overwrite: put it over a file that is there; else the first writer wins.

    Returns:
        False if a file was there already and was left alone.
    """
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        return _publish_local(staged, Path(path), overwrite=overwrite)
    # GCS and ABFS writers know no "create only" in fsspec: there the last of two equal files wins.
    conditional = {"mode": "create"} if "s3" in _protocols(fs) and not overwrite else {}
    try:
        fs.put_file(str(staged), path, **conditional)
    except FileExistsError:
        return False
    except OSError as error:
        if "PreconditionFailed" in str(error) or "412" in str(error):
            return False
        raise
    return True


def put_bytes(uri: str, data: bytes, *, overwrite: bool = False) -> bool:
    """`publish` for content in memory."""
    with staging(uri) as staged:
        staged.write_bytes(data)
        return publish(staged, uri, overwrite=overwrite)


def put_json(uri: str, value: Any, *, overwrite: bool = False) -> bool:
    """`publish` a small JSON document, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return put_bytes(uri, text.encode(), overwrite=overwrite)


def get_bytes(uri: str) -> bytes | None:
    """The content of a small file, or None if there is none of that name."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    try:
        return cast(bytes, fs.cat_file(path))
    except FileNotFoundError:
        return None


def get_json(uri: str) -> Any | None:
    """The document at ``uri``, or None if there is none.

    Raises:
        StorageError: what is there is not JSON.
    """
    data = get_bytes(uri)
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri}: not a JSON document: {error}") from error


def download(uri: str, folder: Path) -> None:
    """Copy a remote folder's files into a local one."""
    fs, path = resolve(uri)
    fs.get(path.rstrip("/") + "/", str(folder) + "/", recursive=True)


def _publish_local(staged: Path, final: Path, *, overwrite: bool) -> bool:
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    if overwrite:
        staged.replace(final)
    else:
        try:
            os.link(staged, final)
        except FileExistsError:
            return False
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _walk(root: str) -> Iterator[str]:
    for folder, _, names in os.walk(root, followlinks=True):
        yield from (f"{folder}/{name}" for name in names)


def _local_info(root: str, name: str) -> FileInfo | None:
    try:
        status = Path(name).stat()
    except FileNotFoundError:  # a link to nowhere, or gone since it was listed
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    version = f"{status.st_mtime_ns}-{status.st_size}"
    return FileInfo(posixpath.relpath(name, root), status.st_size, version)


def _remote_info(root: str, name: str, info: dict[str, Any]) -> FileInfo | None:
    if info["type"] != "file":
        return None
    tag = info.get("ETag") or info.get("etag")
    stamp = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    version = str(tag).strip('"') if tag else f"{stamp}-{info['size']}"
    return FileInfo(posixpath.relpath(name, root), int(info["size"]), version)


def _is_hidden(file: FileInfo) -> bool:
    return any(part[0] in "_." for part in file.path.split("/"))


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def without_pattern(uri: str) -> str:
    """``uri``, or of a glob the folder above its first pattern."""
    return _glob_root(uri) if _is_glob(uri) and not exists(uri) else uri


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _glob_root(path: str) -> str:
    """The folder above the first pattern of a glob."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if _is_glob(part))
    return "/".join(parts[:first]) or "/"
