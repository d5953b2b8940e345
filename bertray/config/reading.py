"""How a config is read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from bertray.config.faults import describe
from bertray.config.keys import kinds_of
from bertray.config.section import Section
from bertray.errors import ConfigError

C = TypeVar("C", bound=Section)


class Loader(yaml.SafeLoader):
    """YAML whose booleans are true and false alone, as in YAML 1.2, and that takes no key twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, before its values are made; ConfigError if it has a key twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"{self.name}: line {line}: {key.value!r} is in line {lines[name]} already; "
                    "put both together"
                )
            lines[name] = line
        return node


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


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
        raise ConfigError(describe(schema, error, values, origin)) from None


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
        raise ConfigError(describe(type(config), error, values, origin)) from None


def dump_config(config: Section) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file; one without keys, as where all are commented out, is empty."""
    try:
        values = _load(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config file: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected sections with keys")
    return {name: {} if section is None else section for name, section in values.items()}


def _load(text: str, origin: str) -> Any:
    loader = Loader(text)
    loader.name = origin
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _parse(schema: type[Section], key: str, raw: str) -> Any:
    """The value of a command-line word. ``1e-4`` and ``no`` stay text where text is wanted."""
    words = {"null": type(None), "true": bool, "false": bool}
    kinds = kinds_of(schema, key)
    if str in kinds and words.get(raw) not in kinds:
        return raw
    try:
        return _load(raw, key)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={raw}: not valid YAML: {error}") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"{key}: {section} has a value of its own and so no keys; leave one of them out"
            )
    values[last] = value
