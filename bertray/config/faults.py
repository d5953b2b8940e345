"""What is said of a config that does not fit: a line a key, what was found, what to do."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bertray.config.keys import known_keys
from bertray.config.section import Section

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# What people type for a key that has another name, by the whole key or its last word.
SYNONYMS = {
    "lr": "optim.learning_rate",
    "lr_scheduler_type": "optim.schedule",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "eval_steps": "training.validation_steps",
    "save_steps": "training.checkpoint_steps",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "label_smoothing_factor": "training.label_smoothing",
    "metric_for_best_model": "training.metric",
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
    if field is not None and not field.repr:  # a secret
        found = key
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
    near += [name for name in known if name.endswith(f".{last}")]  # of another section, or of none
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
