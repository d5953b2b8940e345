"""What stands below a place, by any of fsspec's filesystems."""

import posixpath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bertray.errors import StorageError
from bertray.storage import local
from bertray.storage.files import FileInfo


def listed(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, list[FileInfo]]:
    """Root and files of a file, folder or glob.

    Raises:
        FileNotFoundError: there is nothing of this name, and it is no glob.
    """
    is_here = isinstance(fs, LocalFileSystem)
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not is_glob(path):
            raise
        root, found = glob_root(path), fs.glob(path, detail=True)
    else:
        if info["type"] == "file":
            root, found = fs._parent(path), {path: info}
        elif is_here:
            root, found = path.rstrip("/"), dict.fromkeys(local.walk(path.rstrip("/")))
        else:
            root, found = path.rstrip("/"), fs.find(path, detail=True)
    if is_here:
        files = [local.info(root, name) for name in found]
    else:
        files = [remote_info(root, name, each) for name, each in found.items()]
    return root, [file for file in files if file is not None]


def files_below(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Names of all files below a folder; no folders, nor what stands for them on object stores."""
    return [name for name in fs.find(path) if name != path and not name.endswith("/")]


def remote_info(root: str, name: str, info: dict[str, Any]) -> FileInfo | None:
    if info["type"] != "file" or name.endswith("/"):  # some tools put "NAME/" to show a folder
        return None
    tag = info.get("ETag") or info.get("etag")
    stamp = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    version = str(tag).strip('"') if tag else f"{stamp}-{info['size']}"
    return FileInfo(relative(root, name), int(info["size"]), version)


def relative(root: str, name: str) -> str:
    """The path of ``name`` relative to ``root``.

    Raises:
        StorageError: it would be another one as the path of a file.
    """
    path = name.removeprefix(f"{root.rstrip('/')}/")
    if not is_below(path):
        raise StorageError(f"{name}: not a path that a file can have; rename it")
    return path


def is_below(path: str) -> bool:
    """Whether a relative path is that of a file below a folder, written in the only way."""
    return (
        posixpath.normpath(path) == path
        and not path.startswith(("/", "../"))
        and path not in (".", "..")
    )


def is_hidden(file: FileInfo) -> bool:
    return any(part[0] in "_." for part in file.path.split("/"))


def is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def glob_root(path: str) -> str:
    """The folder above the first pattern of a glob."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    return "/".join(parts[:first]) or "/"
