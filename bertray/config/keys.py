"""Every dotted key of a config, and what it takes."""

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from bertray.config.section import Section


def known_keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of ``schema`` with its pydantic field."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def kinds_of(schema: type[Section], key: str) -> set[Any]:
    """The plain types that a key accepts, bounds left out; none if there is no such key."""
    field = dict(known_keys(schema)).get(key)
    return _members(field.annotation) if field is not None else set()


def _members(annotation: Any) -> set[Any]:
    """The plain types a field accepts: ``str | None`` gives ``{str, NoneType}``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_members(part) for part in typing.get_args(annotation)))
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    return {annotation}
