"""What a search tries, and how what came of it compares."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bertray.config import (
    SEARCHABLE_BESIDE_OPTIM,
    Optim,
    Range,
    Search,
    TrainConfig,
    kinds_of,
    known_keys,
    unknown_key,
    with_settings,
)
from bertray.errors import BertrayError, ConfigError
from bertray.train.measure import score_of
from bertray.train.state import Epoch

SEARCHABLE = (*(key for key, _ in known_keys(Optim, "optim.")), *SEARCHABLE_BESIDE_OPTIM)
DRAWS_PER_TRIAL = 100  # until settings that differ from all before are given up
DIGITS = 3  # of a drawn number


@dataclass(frozen=True)
class Trial:
    """Some settings, and what came of them.

    Attributes:
        number: in the order drawn, counted from 1.
        settings: of the keys that are searched.
        status: whether it went to its end, or was stopped because others did better.
        metric: that epochs and trials are compared by.
        values: of the metric, after each epoch.
        metrics: all of them, after the best epoch; none if no epoch was done.
        seconds: of the optimizer steps.
        reason: why it failed.
    """

    number: int
    settings: dict[str, Any]
    status: Literal["done", "stopped", "failed"]
    metric: str
    values: tuple[float, ...]
    metrics: dict[str, float]
    seconds: float
    reason: str | None = None

    @property
    def scores(self) -> list[float]:
        """After each epoch; the more the better."""
        return [score_of({self.metric: value}, self.metric) for value in self.values]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trial":
        """Undo ``asdict`` and JSON."""
        return cls(**{**values, "values": tuple(values["values"])})


@dataclass(frozen=True)
class TrialEpoch:
    """A trial has done an epoch, and goes on.

    Attributes:
        number: of the trial.
        settings: its own, of the keys that are searched.
        epoch: what it came to.
    """

    number: int
    settings: dict[str, Any]
    epoch: Epoch


def draw(config: TrainConfig) -> list[TrainConfig]:
    """The config of each trial, no two alike and without a search of its own.

    They follow from the config alone: the same command tries the same settings.

    Raises:
        ConfigError: a key cannot be searched, or cannot have one of the values.
    """
    search = config.search
    if config.training.validation_steps is not None:
        raise ConfigError(
            f"training.validation_steps={config.training.validation_steps}: the trials of a "
            "search are compared epoch by epoch; leave it out"
        )
    plain = config.model_copy(update={"search": Search()})  # type: ignore[call-arg]
    for key, space in search.keys.items():
        _check_key(key, config)
        _check_space(key, space, plain)
    random = np.random.default_rng(search.seed)
    drawn: list[TrainConfig] = []
    for _ in range(DRAWS_PER_TRIAL * search.num_trials):
        settings = {key: _draw(space, key, random) for key, space in search.keys.items()}
        one = with_settings(plain, settings, origin="search.keys")
        if one not in drawn:
            drawn.append(one)
        if len(drawn) == search.num_trials:
            break
    most = max(one.training.num_epochs for one in drawn)
    if search.grace_epochs > most:
        raise ConfigError(
            f"search.grace_epochs={search.grace_epochs}: training.num_epochs is {most} at most; "
            "set no more than that, which stops no trial early"
        )
    return drawn


def settings_of(config: TrainConfig, keys: Iterable[str]) -> dict[str, Any]:
    """The values of some dotted keys, as JSON has them."""
    values = config.model_dump(mode="json")
    found = {}
    for key in keys:
        section, _, name = key.partition(".")
        found[key] = values[section][name]
    return found


def trial_of(
    number: int,
    config: TrainConfig,
    epochs: Sequence[Epoch],
    *,
    keys: Iterable[str],
    metric: str,
    ending: Literal["done", "stopped"] | BertrayError,
) -> Trial:
    """What the epochs of a trial, in order, say of it. Of equally good ones Ray keeps the last."""
    best = max(reversed(epochs), key=lambda epoch: score_of(epoch.metrics, metric), default=None)
    return Trial(
        number=number,
        settings=settings_of(config, keys),
        status="failed" if isinstance(ending, BertrayError) else ending,
        metric=metric,
        values=tuple(epoch.metrics[metric] for epoch in epochs),
        metrics=best.metrics if best is not None else {},
        seconds=sum(epoch.seconds for epoch in epochs),
        reason=str(ending) if isinstance(ending, BertrayError) else None,
    )


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The best first; those that failed last, whatever they had done before."""
    return sorted(
        trials,
        key=lambda trial: (
            trial.status == "failed",
            -max(trial.scores, default=-math.inf),
            trial.number,
        ),
    )


def _check_key(key: str, config: TrainConfig) -> None:
    if key in SEARCHABLE:
        if key.startswith("distillation.") and config.distillation.teacher is None:
            raise ConfigError(
                f"search.keys: {key} changes nothing without a teacher; leave it out, or set "
                "distillation.teacher"
            )
        return
    known = [name for name, _ in known_keys(TrainConfig)]
    if key not in known:
        raise ConfigError(f"search.keys: {unknown_key(TrainConfig, key)}")
    raise ConfigError(
        f"search.keys: {key} cannot be searched; take keys of optim, or of "
        f"{', '.join(SEARCHABLE_BESIDE_OPTIM)}"
    )


def _check_space(key: str, space: Range | tuple[Any, ...], config: TrainConfig) -> None:
    """Try each value by itself, for not all of them may be drawn."""
    values = space
    if isinstance(space, Range):
        values = (space.low, space.high)
        if not kinds_of(TrainConfig, key) & {int, float}:
            raise ConfigError(f"search.keys: {key} takes no numbers; give a list of values")
    for value in values:
        with_settings(config, {key: value}, origin="search.keys")


def _draw(space: Range | tuple[Any, ...], key: str, random: np.random.Generator) -> Any:
    if not isinstance(space, Range):
        return space[random.integers(len(space))]
    is_whole = float not in kinds_of(TrainConfig, key)
    low, high = space.low, space.high + is_whole
    if space.log:
        value = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        value = random.uniform(low, high)
    if is_whole:
        return min(math.floor(value), int(space.high))
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)
