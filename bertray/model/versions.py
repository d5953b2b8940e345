"""Versions of models, wherever they are kept: in a store of our own, or in MLflow's registry."""

from pathlib import Path

from bertray.errors import ConfigError
from bertray.model import cache, registry, store
from bertray.model.store import Promotion, Version


def is_reference(source: str) -> bool:
    """Whether a model is named by a version of it."""
    return store.is_reference(source) or registry.is_reference(source)


def find(root: str | None, source: str, *, key: str = "model.path") -> Version:
    """The version that a reference names; see `store.find` and `registry.find`."""
    if registry.is_reference(source):
        return registry.find(root, source, key=key)
    if root is not None and registry.is_root(root):
        raise ConfigError(
            f"{key}={source}: {store.root_key(key)}={root} is an MLflow store; write "
            "models:/NAME@champion"
        )
    return store.find(root, source, key=key)


def champion(root: str, name: str) -> Version | None:
    """The version in use; None if none is."""
    if registry.is_root(root):
        return registry.champion(root, name)
    return store.champion(root, name)


def add(root: str, name: str, folder: Path) -> Version:
    """Keep a bundle; see `store.add` and `registry.add`."""
    if registry.is_root(root):
        return registry.add(root, name, folder)
    return store.add(root, name, folder)


def promote(root: str, version: Version, *, why: str) -> Promotion:
    """Put a version in use; see `store.promote` and `registry.promote`."""
    if registry.is_root(root):
        return registry.promote(root, version, why=why)
    return store.promote(root, version, why=why)


def promotion_of(root: str, version: Version) -> Promotion | None:
    """How a version was put in use; None if it never was."""
    if registry.is_root(root):
        return registry.promotion_of(root, version)
    return store.promotion_of(root, version)


def fetch(place: str, *, key: str) -> Path:
    """A local folder that holds the model at a version's location, or whatever else is named."""
    if registry.is_location(place):
        return registry.fetch(place, key=key)
    return cache.fetch(place, key=key)
