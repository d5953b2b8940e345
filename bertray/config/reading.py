"""How a config is read, and what is said of one that does not fit."""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import ValidationError

from bertray.config.section import Section
from bertray.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

C = TypeVar("C", bound=Section)

# What people type for a key that has another name, by the whole key or its last word.
SYNONYMS = {
    "lr": "optim.learning_rate",
    "batch_size": "training.per_device_batch_size",
    "epochs": "training.num_epochs",
    "workers": "scaling.num_workers",
    "gpus": "scaling.num_workers",
    "num_gpus": "scaling.num_workers",
    "model.path": "model.base",
    "data.path": "data.train",
    "pool.num_workers": "pool.max_actors",
}
BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_long": "at most {max_length} values",
}
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "dict": "a mapping, as in {name: value}",
}


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
            raise ConfigError(
                f"{key}: {section} has the value {values!r} and so no keys; leave one of them out"
            )
    values[last] = value


def describe(
    schema: type[Section], error: ValidationError, values: Mapping[str, Any], origin: str
) -> str:
    """One line a key, each naming it, what was found and what to do.

    Args:
        schema: what the values were read as.
        error: what pydantic says of them.
        values: as they were given.
        origin: where they come from.
    """
    lines: list[str] = []
    strangers: list[str] = []
    problems: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors():
        key = _key_of(problem["loc"], values)
        if problem["type"] == "extra_forbidden":
            is_section = len(problem["loc"]) == 1 and isinstance(problem["input"], dict)
            if is_section:
                strangers.append(key)
            else:
                lines.append(unknown_key(schema, key))
        elif problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
            missing = f"{key}.{problem['loc'][-1]}".removeprefix(".")
            lines.append(f"{' and '.join(_required(schema, missing)) or missing} must be given")
        else:
            problems.setdefault(key, []).append(problem)
    for key, found in problems.items():
        if not any(other.startswith(f"{key}.") for other in problems if key):
            lines.append(_unfit(schema, key, found))
    if strangers:
        lines.insert(0, _unknown_sections(schema, strangers))
    return f"{origin}: " + "\n  ".join(lines)


def _unfit(schema: type[Section], key: str, problems: "Sequence[ErrorDetails]") -> str:
    """What is wrong with the value of a key; of a union pydantic tells of each member."""
    first = problems[0]
    if first["type"] == "value_error":
        said = first["msg"].removeprefix("Value error, ")
        return said if not key or said.startswith(key) else f"{key}: {said}"
    if first["type"] == "model_type":
        keys = [*_required(schema, key), *_keys_below(schema, key)]
        example = keys[0].removeprefix(f"{key}.")
        return f"{key}: expected a section with keys, such as {key}: {{{example}: ...}}"
    wanted = [_wanted(problem) for problem in problems if problem["type"] in BOUNDS]
    wanted = list(dict.fromkeys(wanted or map(_wanted, problems)))
    field = dict(known_keys(schema)).get(key)
    if field is not None and field.examples:
        wanted[-1] += f", as in {' or '.join(field.examples)}"
    found = f"{key} not given" if first["input"] is None else f"{key}={first['input']!r}"
    return f"{found}: expected {' or '.join(wanted)}"


def _wanted(problem: "ErrorDetails") -> str:
    kind = problem["type"].partition("_")[0]
    context = problem.get("ctx", {})
    if problem["type"] in BOUNDS:
        return BOUNDS[problem["type"]].format(**context)
    if kind == "missing":
        return "one value more"
    if kind == "literal":
        return str(context["expected"])
    return KINDS.get(kind) or problem["msg"]


def unknown_key(schema: type[Section], key: str) -> str:
    """What to write in place of a key that there is none of."""
    known = [name for name, _ in known_keys(schema)]
    section, dot, last = key.rpartition(".")
    if dot and key in known:
        return f"unknown key {key!r}: in a file write `{section}:`, and below it `{last}: ...`"
    beside = _keys_below(schema, section)
    near = [name for name in (SYNONYMS.get(key), SYNONYMS.get(last)) if name in known]
    if not dot:  # a key without its section
        near += [name for name in known if name.endswith(f".{key}")]
    near += difflib.get_close_matches(key, beside, n=1, cutoff=0.6)
    near += difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    names = [name.rpartition(".")[2] for name in beside] or list(schema.model_fields)
    return f"unknown key {key!r}; known are {', '.join(names)}"


def _unknown_sections(schema: type[Section], sections: Sequence[str]) -> str:
    known = list(schema.model_fields)
    near = [difflib.get_close_matches(section, known, n=1, cutoff=0.6) for section in sections]
    found = f"no section {', '.join(map(repr, sections))}"
    if all(near):
        return f"{found}; did you mean {', '.join(repr(names[0]) for names in near)}?"
    command = (schema.__doc__ or "").partition(":")[0].strip("`")
    return f"{found} in {command} ({', '.join(known)})"


def _key_of(loc: tuple[int | str, ...], values: Any) -> str:
    """The dotted key of a pydantic location, without the union members and list indices tried."""
    parts = []
    for part in map(str, loc):
        named = {str(name): name for name in values} if isinstance(values, Mapping) else {}
        if part in named:
            parts.append(part)
            values = values[named[part]]
    return ".".join(parts)


def _keys_below(schema: type[Section], section: str) -> list[str]:
    return [key for key, _ in known_keys(schema) if key == section or key.startswith(f"{section}.")]


def _required(schema: type[Section], section: str) -> list[str]:
    """The keys at or below ``section`` that have no default."""
    fields = dict(known_keys(schema))
    return [key for key in _keys_below(schema, section) if fields[key].is_required()]
