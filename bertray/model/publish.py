"""A finished model folder, put where it belongs: whole, or not at all."""

from collections.abc import Collection
from pathlib import Path

from bertray import storage
from bertray.model.manifest import MANIFEST

MODEL_CONFIG = "config.json"


def publish_bundle(folder: Path, output: str, *, spare: Collection[str] = ()) -> None:
    """Put a local folder in place of what is at ``output``, but for files and folders of ``spare``.

    Without its config.json a folder is no model, and without ``bertray.json`` no bundle: those two
    go first and come last.
    """
    marks = (MODEL_CONFIG, MANIFEST)
    for mark in reversed(marks):
        storage.remove(storage.join(output, mark))
    _sweep(output, spare)
    names = sorted(path.name for path in folder.iterdir() if path.name not in marks)
    storage.upload(folder, output, (*names, *marks))


def _sweep(output: str, spare: Collection[str]) -> None:
    """Remove an earlier bundle's files."""
    if not storage.exists(output):
        return
    fs, path = storage.resolve(output)
    fs.invalidate_cache()
    for name in fs.ls(path, detail=False):
        if name.rstrip("/").rsplit("/", 1)[-1] not in spare:
            fs.rm(name, recursive=True)
