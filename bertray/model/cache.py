"""Models that are named, brought to this machine in a form that can be loaded, once."""

import hashlib
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from bertray import storage
from bertray.errors import ModelError

logger = logging.getLogger(__name__)

# What makes up a model; optimizer states, logs and pictures beside it do not.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.safetensors")
PICKLED_WEIGHTS = "pytorch_model*.bin"
MOST_NAMES = 6  # of folders that a message lists


def fetch(source: str, *, key: str) -> Path:
    """A local folder that holds the model named ``source``.

    Raises:
        ModelError: it is neither a folder nor a reachable URI nor a known hub id.
    """
    if "://" in source:
        return _fetch_uri(source, key=key)
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    if path.exists():
        raise ModelError(f"{key}={source}: no config.json in there, so it is no model folder")
    if source.startswith((".", "~", "/")) or source.count("/") > 1:  # no hub id looks so
        raise ModelError(f"{key}={source}: no such folder{_beside(path)}")
    try:
        patterns = [*MODEL_FILES, PICKLED_WEIGHTS]
        if _hub_has_safetensors(source):
            patterns.remove(PICKLED_WEIGHTS)
        return Path(snapshot_download(source, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{key}={source}: no such folder, and not a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{key}={source}: no such folder{_beside(path)}; and the hub does not give it: "
            f"{str(error).splitlines()[0].rstrip('. ')}; if it is a folder, check the spelling; if "
            "it is a hub id, copy the model to this machine and give its folder"
        ) from error


def _beside(path: Path) -> str:
    """What a folder holds in which another one was looked for; empty if that is not there."""
    if path.parent == Path() or not path.parent.is_dir():
        return ""
    try:
        names = sorted(each.name for each in path.parent.iterdir() if not each.is_file())
    except OSError:
        return ""
    there = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return f"; {path.parent} holds {there or 'no folders'}"


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model, by name; one that starts with ``_`` is no part of it."""
    patterns = [*MODEL_FILES]
    if not any(folder.glob("*.safetensors")):
        patterns.append(PICKLED_WEIGHTS)
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if not path.name.startswith("_"))


def digest_of(folder: Path) -> str:
    """sha256 over the names and contents of `model_files`."""
    whole = hashlib.sha256()
    for path in model_files(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()


def fetch_same(source: str, digest: str, *, key: str) -> Path:
    """The folder on this node of a model that the driver has seen, its weights as safetensors.

    Raises:
        ModelError: this node finds another model than the driver did.
    """
    folder = fetch(source, key=key)
    found = digest_of(folder)
    if found != digest:
        raise ModelError(
            f"{key}={source}: digest {found[:12]} on this node, {digest[:12]} on the "
            "driver; put the model where all nodes see the same"
        )
    return with_safetensors(folder, digest, source=source)


def with_safetensors(folder: Path, digest: str, *, source: str) -> Path:
    """The folder itself, or a cached copy whose pickled weights were converted.

    Only plain tensors are unpickled (``weights_only``), so no code in the file can run.
    """
    pickled = sorted(folder.glob(PICKLED_WEIGHTS))
    if any(folder.glob("*.safetensors")):
        return folder
    if not pickled:
        raise ModelError(f"{source}: no weights (*.safetensors or {PICKLED_WEIGHTS}) in there")
    target = cache_folder() / "converted" / digest
    if target.is_dir():
        return target
    weights: dict[str, torch.Tensor] = {}
    for path in pickled:
        try:
            weights |= torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelError(
                f"{path}: these weights are pickled and hold more than tensors, so loading them "
                "could run code; convert them to safetensors where you trust them"
            ) from error
    logger.info("converting pickled weights source=%s target=%s", source, target)
    with filling(target) as copy:
        for path in (path for pattern in MODEL_FILES for path in folder.glob(pattern)):
            shutil.copy2(path, copy)
        tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return target


@contextmanager
def filling(target: Path) -> Any:
    """A folder to fill that takes its name once it is complete; the first of two fillers wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".filling-"))
    try:
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """Where the platform keeps caches (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertray"


def _fetch_uri(uri: str, *, key: str) -> Path:
    """A copy in the local cache, named by the listing, so that a changed model is fetched anew."""
    _, files = storage.list_files(uri, suffix="", key=key)
    if not any(file.path == "config.json" for file in files):
        raise ModelError(f"{key}={uri}: no config.json in there, so it is no model folder")
    listing = hashlib.sha256(repr((uri, files)).encode()).hexdigest()
    target = cache_folder() / "fetched" / listing
    if not target.is_dir():
        with filling(target) as folder:
            storage.download(uri, folder)
    return target


def _hub_has_safetensors(name: str) -> bool:
    from huggingface_hub import list_repo_files

    try:
        return any(file.endswith(".safetensors") for file in list_repo_files(name))
    except HFValidationError:
        raise
    except Exception:  # without a network those of the HTTP client, of which there were several
        return False  # snapshot_download takes what the hub's own cache holds
