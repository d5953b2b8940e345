"""One way to reach local disk, S3, GCS and ABFS: list, open, put whole files, small JSON.

A place is named by a URI or a local path, as one string; fsspec finds and caches the filesystem.
Credentials come from each cloud's standard chain and are never part of a setting.
"""

import json
import logging
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from bertray.errors import StorageError
from bertray.storage import local
from bertray.storage.files import FileInfo as FileInfo
from bertray.storage.listing import (
    files_below,
    glob_root,
    is_glob,
    is_hidden,
    listed,
    relative,
    remote_info,
)
from bertray.storage.listing import is_below as is_below
from bertray.storage.outage import UnreachableError as UnreachableError
from bertray.storage.outage import UnwritableError as UnwritableError
from bertray.storage.outage import is_outage as is_outage
from bertray.storage.outage import reaching, readable, writing
from bertray.storage.outage import reason_of as reason_of
from bertray.storage.outage import without_secrets as without_secrets

if TYPE_CHECKING:
    from bertray.storage.s3 import PatientS3

logger = logging.getLogger(__name__)

S3_SCHEMES = ("s3", "s3a")
PACKAGES = {  # that some schemes need
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
PORT = re.compile(r"[^/:]+:\d{1,5}/")  # of a server, as in hdfs://name:8020/file@2


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of ``uri`` and the path inside it.

    Raises:
        StorageError: the scheme is unknown, its package is not installed, its library does not
            load, or there are credentials in ``uri``.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(uri))
    login, at, _ = rest.partition("@")  # a secret key may hold slashes; ARNs are no logins
    host = login.split("/")[0]
    is_port = scheme not in S3_SCHEMES and PORT.match(login)
    if at and ":" in host and not (is_port or host.startswith("arn:")):
        raise StorageError(
            f"{scheme}://***@...: a path must not hold credentials; "
            "they come from the environment, a profile or the machine's role"
        )
    if scheme in S3_SCHEMES:
        from bertray.storage.s3 import PatientS3

        return PatientS3(), str(PatientS3._strip_protocol(uri))
    try:
        fs, path = url_to_fs(uri)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        advice = f"pip install {package}" if package else str(error)
        raise StorageError(f"{uri}: {scheme}:// needs a package: {advice}") from error
    except ValueError as error:
        known = "" if scheme in known_implementations else "; known are s3, gs, abfs and more"
        raise StorageError(f"{uri}: {error}{known}") from error
    except OSError as error:
        needs = "; it needs Java and Hadoop on each node" if scheme == "hdfs" else ""
        reason = str(error).partition("\n")[0]
        raise UnreachableError(f"{uri}: cannot be reached: {reason}{needs}") from error
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
    fs.invalidate_cache()
    try:
        root, files = listed(fs, path)
    except FileNotFoundError:
        raise StorageError(f"{key}={uri}: no such file or folder") from None
    except StorageError as error:
        raise StorageError(f"{key}={uri}: {error}") from error
    except Exception as error:  # each cloud's client has errors of its own
        raise StorageError(f"{key}={uri}: cannot be listed: {reason_of(error)}") from error
    kept = [file for file in files if file.path.endswith(suffix) and not is_hidden(file)]
    return root if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(root)), sorted(kept)


def none_found(uri: str, *, suffix: str, key: str) -> str:
    """What to say of a place in which `list_files` finds no file of that suffix."""
    root, others = list_files(uri, suffix="", key=key)
    if not others:
        matched = is_glob(uri) and not exists(uri)
        return f"{key}={uri}: no {'file matches' if matched else f'*{suffix} files in there'}"
    first = others[0].path
    if resolve(join(root, first))[1] == resolve(uri)[1]:
        return f"{key}={uri}: a file whose name does not end in {suffix}; rename it if it is one"
    files = f"{len(others)} others" if len(others) > 1 else "one other"
    return f"{key}={uri}: no *{suffix} files in there, but {files}, such as {first}"


def version_of(uri: str) -> str:
    """The version a listing would give a file now.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be looked at.
    """
    fs, path = resolve(uri)
    fs.invalidate_cache()
    root = fs._parent(path)
    with reaching(uri):
        is_here = isinstance(fs, LocalFileSystem)
        file = local.info(root, path) if is_here else remote_info(root, path, fs.info(path))
    if file is None:
        raise FileNotFoundError(uri)
    return file.version


@contextmanager
def open_input(uri: str) -> Iterator[pa.NativeFile]:
    """A file for pyarrow to read at random; local files by the fast way."""
    fs, path = resolve(uri)
    with reaching(uri):
        if isinstance(fs, LocalFileSystem):
            with pa.OSFile(path) as file:
                yield file
        else:
            fs.invalidate_cache()
            with fs.open(path, "rb") as remote, pa.PythonFile(remote, mode="r") as file:
                yield file


def exists(uri: str) -> bool:
    """Whether a file or folder of this name is there."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    try:
        with readable(uri):
            if isinstance(fs, LocalFileSystem):
                return Path(path).exists()
            fs.info(path)
    except FileNotFoundError:
        return False
    return True


def is_empty(uri: str, *, but_for: str | None = None) -> bool:
    """Whether nothing is there, not even a hidden file. Our own unfinished files do not count.

    Args:
        uri: of a folder.
        but_for: a file in it that does not count either.
    """
    fs, path = resolve(uri)
    fs.invalidate_cache()
    if not exists(uri):
        return True
    with readable(uri):
        return all(
            local.is_unfinished(name) or relative(path, name) == but_for
            for name in files_below(fs, path)
        )


def remove(uri: str) -> None:
    """Remove a file or a folder with all that is in it, if it is there.

    Raises:
        OSError: something is still there.
    """
    fs, path = resolve(uri)
    fs.invalidate_cache()
    with writing(uri), suppress(FileNotFoundError), reaching(uri):
        if isinstance(fs, LocalFileSystem):
            fs.rm(path, recursive=True)
        elif fs.info(path)["type"] == "file":
            fs.rm_file(path)
        elif _is_s3(fs):
            fs.remove_all(fs.find(path))
        else:
            fs.rm(path, recursive=True)


@contextmanager
def staging(uri: str) -> Iterator[Path]:
    """A local path to build the file in that `publish` will put at ``uri``; gone afterwards.

    On local disk it lies on the filesystem of ``uri``, so that publishing is a rename.
    """
    if is_local(uri):
        folder = local_path(uri).parent
        with writing(uri):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = local.temporary_folder()
    staged = folder / local.unfinished_name()
    try:
        yield staged
    finally:
        with suppress(OSError):  # a disk that takes nothing lets nothing go; it is swept later
            staged.unlink(missing_ok=True)


def publish(
    staged: Path, uri: str, *, overwrite: bool = False, replaces: str | None = None
) -> bool:
    """Put a finished local file at ``uri``, where it appears whole or not at all.

    By default only where no file is: the first writer wins. A name that holds a file holds one at
    every moment, the old one or the new one.

    Args:
        staged: the file, from `staging`.
        uri: its final name.
        overwrite: put it over any file that is there.
        replaces: put it over the file of this version alone, as `version_of` gives it. Of those who
            replace the same version one wins.

    Returns:
        Whether the file is there now; False if another was there and was left alone. On S3, and
        on a disk that has hard links, that is certain, whatever answers got lost.

    Raises:
        UnreachableError: the place failed, and whether the file is there nobody knows. It is whole
            if it is; another try finds it and says so.
        UnwritableError: it was refused, and is not there.
    """
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        with writing(uri):
            return local.publish(staged, Path(path), overwrite=overwrite, replaces=replaces)
    with writing(uri), reaching(uri):
        if _is_s3(fs):
            if replaces is not None:
                return fs.publish(staged, path, IfMatch=f'"{replaces}"')
            return fs.publish(staged, path, **({} if overwrite else {"IfNoneMatch": "*"}))
        return _put_plain(fs, staged, path, uri, overwrite=overwrite, replaces=replaces)


def put_bytes(
    uri: str, data: bytes, *, overwrite: bool = False, replaces: str | None = None
) -> bool:
    """`publish` for content in memory."""
    with staging(uri) as staged:
        with writing(uri):
            staged.write_bytes(data)
        return publish(staged, uri, overwrite=overwrite, replaces=replaces)


def put_json(uri: str, value: Any, *, overwrite: bool = False, replaces: str | None = None) -> bool:
    """`publish` a small JSON document, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return put_bytes(uri, text.encode(), overwrite=overwrite, replaces=replaces)


def get_bytes(uri: str) -> bytes | None:
    """The content of a small file, or None if there is none of that name."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    try:
        with readable(uri):
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
    fs.invalidate_cache()
    with reaching(uri):
        for name in files_below(fs, path):
            target = folder / relative(path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(name, str(target))


def upload(folder: Path, uri: str, names: Iterable[str]) -> None:
    """Put files of a local folder below ``uri``, one after the other, over those that are there."""
    for name in names:
        target = join(uri, name)
        with staging(target) as staged:
            with writing(target):
                shutil.copyfile(folder / name, staged)
            publish(staged, target, overwrite=True)


def sweep(uri: str, *, older_than_s: float) -> None:
    """Remove what was being put below a folder that long ago, by processes that were killed.

    On local disk unfinished files, on S3 unfinished uploads; other clouds forget theirs by
    themselves. That it fails is no reason to stop: it is logged.
    """
    fs, path = resolve(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            local.sweep(Path(path), older_than_s=older_than_s)
        elif _is_s3(fs):
            fs.sweep(path, older_than_s=older_than_s)
    except Exception as error:  # each cloud's client has errors of its own
        logger.warning("%s: unfinished files cannot be swept: %s", uri, reason_of(error))


def without_pattern(uri: str) -> str:
    """``uri``, or of a glob the folder above its first pattern."""
    return glob_root(uri) if is_glob(uri) and not exists(uri) else uri


def _put_plain(
    fs: fsspec.AbstractFileSystem,
    staged: Path,
    path: str,
    uri: str,
    *,
    overwrite: bool,
    replaces: str | None,
) -> bool:
    """Put a file where fsspec knows no conditions: there of two equal files the last one stays."""
    if replaces is not None:
        try:
            if version_of(uri) != replaces:
                return False
        except FileNotFoundError:
            return False
    elif not overwrite and exists(uri):
        return False
    fs.put_file(str(staged), path)
    return True


def _is_s3(fs: fsspec.AbstractFileSystem) -> "TypeGuard[PatientS3]":
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
