"""A model store: the versions of each model, and which of them is in use.

ROOT/NAME/versions/000003.json    what version 3 is; it exists once this file does
ROOT/NAME/bundles/DIGEST/         its files
ROOT/NAME/aliases/champion.json   who was put in use under this name, when, by whom and why

``store://reviews@champion`` names a version by its alias, ``store://reviews@3`` by its number; the
root is ``model.store``, or the like of it beside another setting. Files are only ever added, so a
version never changes.
"""

import getpass
import re
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertray import storage
from bertray.errors import ConfigError, ModelError
from bertray.model.cache import digest_of

SCHEME = "store://"
CHAMPION = "champion"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"{SCHEME}({_NAME})(?:@({_NAME}))?")


@dataclass(frozen=True)
class Version:
    """A bundle in a store.

    Attributes:
        name: of the model whose version it is.
        number: counted from 1.
        digest: of the bundle's files; None if whoever put it there did not say.
        parent: number of the version that was in use when this one was added; None for the first.
        added: UTC time, ISO 8601.
        added_by: USER@HOST.
        location: of the bundle, as any process of the cluster can use it.
        reference: names the version, whatever comes after it.
    """

    name: str
    number: int
    digest: str | None
    parent: int | None
    added: str
    added_by: str
    location: str
    reference: str


@dataclass(frozen=True)
class Promotion:
    """A version was put in use.

    Attributes:
        version: its number.
        at: UTC time, ISO 8601.
        by: USER@HOST.
        why: in words, for people.
    """

    version: int
    at: str
    by: str
    why: str


def is_reference(source: str) -> bool:
    """Whether a model is named by its place in a store."""
    return source.startswith(SCHEME)


def root_key(key: str) -> str:
    """The setting that says where the store is of a model that another setting names."""
    section, dot, _ = key.rpartition(".")
    return f"{section}.store" if dot else "--store"  # an argument of the command line


def find(root: str | None, source: str, *, key: str = "model.path") -> Version:
    """The version that ``source`` names; its champion if it names the model alone.

    Args:
        root: folder or URI of the store.
        source: such as ``store://reviews@champion`` or ``store://reviews@3``.
        key: the setting that named it, for messages.

    Raises:
        ConfigError: ``source`` is malformed, or there is no root.
        ModelError: the store has no such model, alias or version.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"{key}={source}: write store://NAME@champion, or store://NAME@3 for version 3"
        )
    if root is None:
        raise ConfigError(
            f"{key}={source}: set {root_key(key)} to the folder or URI of the model store"
        )
    name, alias = match[1], match[2] or CHAMPION
    found = versions(root, name)
    if not found:
        raise ModelError(
            f"{key}={source}: {root} has no model {name!r}; `bertray evaluate gate.store={root} "
            f"gate.name={name} ...` puts one there"
        )
    numbers = {version.number: version for version in found}
    if alias.isdecimal():
        number = int(alias)
    else:
        history = promotions(root, name, alias=alias)
        if not history:
            raise ModelError(
                f"{key}={source}: no version of {name!r} is called {alias!r} yet; there are "
                f"{_listed(found)}"
            )
        number = history[-1].version
    if number not in numbers:
        raise ModelError(
            f"{key}={source}: there is no version {number}; there are {_listed(found)}"
        )
    return numbers[number]


def champion(root: str, name: str) -> Version | None:
    """The version in use; None if none is."""
    history = promotions(root, name)
    if not history:
        return None
    return find(root, f"{SCHEME}{name}@{history[-1].version}", key="gate.name")


def versions(root: str, name: str) -> list[Version]:
    """All versions of a model, oldest first."""
    folder = storage.join(root, name, "versions")
    if not storage.exists(folder):
        return []
    _, files = storage.list_files(folder, suffix=".json", key="model.store")
    return [_read(root, name, file.path) for file in files]


def promotions(root: str, name: str, *, alias: str = CHAMPION) -> list[Promotion]:
    """The versions that were in use under an alias, the present one last."""
    found = storage.get_json(_alias(root, name, alias)) or []
    return [Promotion(**one) for one in found]


def promotion_of(root: str, version: Version) -> Promotion | None:
    """How a version came to be the champion, the last time that it did; None if it never did."""
    held = promotions(root, version.name)
    return next((one for one in reversed(held) if one.version == version.number), None)


def add(root: str, name: str, folder: Path) -> Version:
    """Put a bundle into the store; a version that has its files already is given back.

    Cut off anywhere it leaves no version, and may be called again. Two at once add two versions.

    Raises:
        ConfigError: ``name`` cannot be a model's.
        OSError: the store cannot be written to.
    """
    if re.fullmatch(_NAME, name) is None:
        raise ConfigError(f"gate.name={name!r}: letters, digits, '.', '_' and '-' alone")
    digest = digest_of(folder)
    held = promotions(root, name)
    parent = held[-1].version if held else None
    is_copied = False
    while True:
        known = versions(root, name)
        for version in known:
            if version.digest == digest:
                return version
        if not is_copied:
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
            storage.upload(folder, storage.join(root, name, "bundles", digest[:16]), names)
            is_copied = True
        number = known[-1].number + 1 if known else 1
        entry = {"digest": digest, "parent": parent, "added": now(), "added_by": who()}
        file = f"{number:06d}.json"
        if storage.put_json(storage.join(root, name, "versions", file), entry):
            return _read(root, name, file)


def promote(root: str, version: Version, *, why: str, alias: str = CHAMPION) -> Promotion:
    """Put a version in use under an alias; no-op if it is already.

    Raises:
        ModelError: others change the alias at the same time, again and again.
    """
    uri = _alias(root, version.name, alias)
    for _ in range(8):
        there = storage.version_of(uri) if storage.exists(uri) else None
        held = promotions(root, version.name, alias=alias)
        if held and held[-1].version == version.number:
            return held[-1]
        promotion = Promotion(version.number, now(), who(), why)
        history = [asdict(one) for one in (*held, promotion)]
        if storage.put_json(uri, history, replaces=there):
            return promotion
    raise ModelError(f"{uri}: is being changed by others; try again")


def _read(root: str, name: str, file: str) -> Version:
    uri = storage.join(root, name, "versions", file)
    entry: dict[str, Any] = storage.get_json(uri) or {}
    try:
        location = storage.join(root, name, "bundles", entry["digest"][:16])
        number = int(Path(file).stem)
        reference = f"{SCHEME}{name}@{number}"
        return Version(name=name, number=number, location=location, reference=reference, **entry)
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{uri}: not a version of a model: {error}") from error


def _alias(root: str, name: str, alias: str) -> str:
    return storage.join(root, name, "aliases", f"{alias}.json")


def _listed(found: list[Version]) -> str:
    return ", ".join(str(version.number) for version in found)


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """USER@HOST."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
