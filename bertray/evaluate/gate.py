"""Whether a model may go into use: rules on what an evaluation found, and on the champion's.

# R = resamples
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertray.config import Gate
from bertray.errors import ConfigError
from bertray.evaluate.evaluation import MOST_VALUES, Evaluation, Rule, Slice
from bertray.evaluate.metrics import EVALUATED, HIGHER_IS_BETTER, METRICS
from bertray.schema import Task

SPEED = "rows_per_s"
NOT_RESAMPLED = ("spearman",)  # it is no function of sums over rows


@dataclass(frozen=True)
class Champion:
    """The model in use, on the same rows.

    Attributes:
        reference: names its version.
        metrics: of the rows, as the challenger's.
        resampled: by metric, R values of it, on the same resamples of rows as the challenger's.
    """

    reference: str
    metrics: Mapping[str, float]
    resampled: Mapping[str, np.ndarray]


def check_gate(gate: Gate, *, task: Task, slices: Sequence[str]) -> None:
    """Raise ConfigError for a metric that an evaluation of this task does not give."""
    known = (*EVALUATED[task], SPEED)
    named = {
        "gate.at_least": gate.at_least,
        "gate.at_most": gate.at_most,
        "gate.slices_at_least": gate.slices_at_least,
        "gate.metric": {compared_metric(gate, task): 0.0},
    }
    allowed = {
        "gate.slices_at_least": tuple(METRICS[task]),
        "gate.metric": tuple(name for name in METRICS[task] if name not in NOT_RESAMPLED),
    }
    for key, metrics in named.items():
        for name in metrics:
            if name not in allowed.get(key, known):
                raise ConfigError(
                    f"{key}: no metric {name!r} for a {task} model; there are "
                    f"{', '.join(allowed.get(key, known))}"
                )
    if gate.slices_at_least and not slices:
        raise ConfigError("gate.slices_at_least: set data.slices to the columns to slice by")


def compared_metric(gate: Gate, task: Task) -> str:
    """The metric that the champion is compared by: the first of the task's, unless told."""
    return gate.metric or next(iter(METRICS[task]))


def judge(
    gate: Gate,
    result: Evaluation,
    *,
    rows_per_s: float,
    champion: Champion | None,
    resampled: Mapping[str, np.ndarray],
    task: Task,
) -> tuple[Rule, ...]:
    """Hold an evaluation against the rules.

    Args:
        gate: the settings.
        result: what was found.
        rows_per_s: that were scored.
        champion: the model in use; None if none is yet.
        resampled: by metric, R values of it.
        task: of both models.
    """
    metrics = {**result.metrics, SPEED: rows_per_s}
    rules = [
        *_bounds(gate.at_least, metrics, at_least=True),
        *_bounds(gate.at_most, metrics, at_least=False),
    ]
    for column, slices in result.slices.items():
        rules += _of_slices(
            gate.slices_at_least, column, [one for one in slices if not one.is_small]
        )
    if champion is not None:
        name = compared_metric(gate, task)
        rules.append(_not_worse(gate, name, champion, metrics[name], resampled[name]))
    return tuple(rules)


def _bounds(
    bounds: Mapping[str, float], metrics: Mapping[str, float], *, at_least: bool, where: str = ""
) -> Iterator[Rule]:
    for name, bound in bounds.items():
        # What these rows do not have, such as an area where all have one label, is no pass.
        value = metrics.get(name, float("nan"))
        holds = value >= bound if at_least else value <= bound
        found = f"{value:.4f}" + ("" if holds else f", off by {abs(value - bound):.4f}")
        wanted = f"at {'least' if at_least else 'most'} {bound:g}"
        yield Rule(f"{name}{where}", found, wanted, holds)


def _of_slices(bounds: Mapping[str, float], column: str, slices: Sequence[Slice]) -> Iterator[Rule]:
    """A rule for each of the most frequent values, and for the worst of the others."""
    held = [(one, name, "") for one in slices[:MOST_VALUES] for name in bounds]
    if others := slices[MOST_VALUES:]:
        of = f", the worst of {len(others)} less frequent values"
        for name in bounds:
            worst = min if HIGHER_IS_BETTER[name] else max
            held.append((worst(others, key=lambda one: one.metrics[name]), name, of))
    for one, name, of in held:
        where = f" where {column} is {one.value}{of}"
        more = HIGHER_IS_BETTER[name]
        yield from _bounds({name: bounds[name]}, one.metrics, at_least=more, where=where)


def _not_worse(
    gate: Gate, name: str, champion: Champion, value: float, resampled: np.ndarray
) -> Rule:
    """The paired bootstrap: both models on the same resamples of rows (Koehn 2004).

    A challenger that is worse by k standard errors of the difference passes with a probability of
    about Phi(z - k), z being the confidence's quantile of the normal distribution: at 0.95 in 95 of
    100 cases if it is as good, in 36 if k = 2, in 9 if k = 3, in 1 if k = 4.
    """
    sign = 1 if HIGHER_IS_BETTER[name] else -1
    gain = sign * (resampled - champion.resampled[name])
    share = float((gain < -gate.margin).mean())
    there = champion.metrics[name]
    worse = "worse" if not gate.margin else f"worse by more than {gate.margin:g}"
    return Rule(
        f"{name} against {champion.reference}",
        f"{value:.4f} against {there:.4f}, {worse} on {share:.1%} of the resamples",
        f"on at most {gate.confidence:.1%} of them",
        share <= gate.confidence,
    )
