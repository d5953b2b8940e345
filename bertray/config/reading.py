"""How a config is read, and what is said of one that does not fit."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ValidationError

from bertray.config.section import Section
from bertray.errors import ConfigError

C = TypeVar("C", bound=Section)


def load_config(schema: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a job's config: the file, then the ``key=value`` words over it.

    Args:
        schema: the job's config model.
        path: a YAML file, or None for defaults and overrides alone.
        overrides: words such as ``optim.learning_rate=1e-4``; values are read as YAML, except
            where the key takes text, which is taken as it stands.

    Raises:
        ConfigError: the file cannot be read, or a key or value does not fit ``schema``.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    origin = str(path) if path is not None else "the command line"
    for word in overrides:
        key, equals, raw = word.partition("=")
        if not equals:
            raise ConfigError(
                f"{word!r} is not a setting; write key=value, as in pool.max_actors=2"
            )
        _set(values, key, _parse(schema, key, raw))
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(schema, error, origin)) from None


def with_settings(config: C, settings: Mapping[str, Any], *, origin: str) -> C:
    """The same config with some dotted keys set anew.

    Args:
        config: of any job.
        settings: values by dotted key.
        origin: where they come from, for messages.

    Raises:
        ConfigError: a value does not fit.
    """
    values = config.model_dump()
    for key, value in settings.items():
        _set(values, key, value)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(type(config), error, origin)) from None


def dump_config(config: Section) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config file: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected sections with keys")
    return values


def _parse(schema: type[Section], key: str, raw: str) -> Any:
    """The value of a command-line word. ``1e-4`` and ``no`` stay text where text is wanted."""
    words = {"null": type(None), "true": bool, "false": bool}
    kinds = kinds_of(schema, key)
    if str in kinds and words.get(raw) not in kinds:
        return raw
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={raw}: not valid YAML: {error}") from error


def _members(annotation: Any) -> set[Any]:
    """The plain types a field accepts: ``str | None`` gives ``{str, NoneType}``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_members(part) for part in typing.get_args(annotation)))
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    return {annotation}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {section!r} is not a section")
    values[last] = value


def describe(schema: type[Section], error: ValidationError, origin: str) -> str:
    """One line a problem, each naming the key and what to do."""
    known = [key for key, _ in known_keys(schema)]
    lines = []
    for problem in error.errors():
        key = _key_of(problem["loc"], known)
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {key!r}{hint}")
        elif problem["type"] == "missing":
            wanted = [name for name in known if name == key or name.startswith(f"{key}.")]
            lines.append(f"{' and '.join(_required(schema, wanted)) or key} must be given")
        elif not key:
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "tuple_type":
                message = "expected a list, as in [id, day]"
            lines.append(f"{key}={problem['input']!r}: {message[:1].lower()}{message[1:]}")
    return f"{origin}: " + "; ".join(dict.fromkeys(lines))


def _key_of(loc: tuple[int | str, ...], known: Sequence[str]) -> str:
    """The dotted key of a pydantic location, without the union member or the list index tried."""
    parts = [str(part) for part in loc]
    for end in range(1, len(parts)):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


def _required(schema: type[Section], keys: list[str]) -> list[str]:
    fields = dict(known_keys(schema))
    return [key for key in keys if fields[key].is_required()]
