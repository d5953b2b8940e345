from collections.abc import Sequence

import numpy as np
import pytest

from bertray.report import drift
from bertray.report.drift import (
    FALSE_ALARMS,
    MIN_NIGHTS,
    Verdict,
    compare,
    population_stability_index,
)
from bertray.report.profile import EDGES, Profile

# Of each signal, how likely its bins are: even ones, rare ones, many.
SHARES = {
    "label": np.array([0.6, 0.3, 0.1]),
    "confidence": np.linspace(1, 3, 40) / np.linspace(1, 3, 40).sum(),
    "length": np.exp(-((np.arange(60) - 30) ** 2) / 60)
    / np.exp(-((np.arange(60) - 30) ** 2) / 60).sum(),
    "script": np.array([0.97, 0.02, 0.007, 0.003]),
    "unknown": np.array([0.9, 0.05, 0.03, 0.01, 0.007, 0.003]),
    "status": np.array([0.995, 0.004, 0.001]),
}

# The same as they are compared: of numbers, bins that are about equally full on the reference.
COARSE = {
    **SHARES,
    "confidence": np.full(10, 0.1),
    "length": np.full(10, 0.1),
    "unknown": np.array([0.9, 0.1]),
}


def night(
    rng: np.random.Generator,
    num_rows: int,
    *,
    spread: float | None = None,
    shares: dict[str, np.ndarray] = SHARES,
) -> Profile:
    """Rows drawn from the same distribution each night, or from one that wanders about it."""
    counts = {}
    for signal, likely in shares.items():
        tonight = likely if spread is None else rng.dirichlet(likely / spread)
        rows = rng.multinomial(num_rows, tonight)
        names = [f"{edge:.7g}" for edge in EDGES[signal]] if signal in EDGES else "abcd"
        counts[signal] = {name: int(n) for name, n in zip(names, rows, strict=False) if n}
    return Profile(num_rows, counts)


def drifted(verdicts: Sequence[Verdict]) -> list[str]:
    return [one.signal for one in verdicts if one.drifted]


@pytest.mark.parametrize(
    ("num_rows", "num_past", "spread"),
    [(40, 0, None), (40, 8, None), (400, 8, 0.01), (20_000, MIN_NIGHTS, 0.001), (20_000, 30, 0.01)],
)
def test_nights_like_the_others_raise_an_alarm_once_in_a_hundred_at_most(
    num_rows: int, num_past: int, spread: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "NUM_SHUFFLES", 599)  # of which the level of 1 in 600 takes the top
    rng = np.random.default_rng(7)
    trials = 200

    def one() -> Profile:
        return night(rng, int(num_rows * rng.uniform(0.5, 1.5)), spread=spread)

    alarms = sum(
        bool(drifted(compare(one(), one(), [one() for _ in range(num_past)], seed=trial)))
        for trial in range(trials)
    )
    assert alarms <= FALSE_ALARMS * trials
    assert FALSE_ALARMS == 0.01


@pytest.mark.parametrize(
    ("num_past", "spread"),
    [
        (MIN_NIGHTS, 0.001),
        (MIN_NIGHTS, 0.01),
        (8, 0.01),
        (12, 0.01),
        (30, 0.001),
        (30, 0.01),
        (30, 0.03),
        (30, 0.1),
    ],
)
def test_what_nights_do_is_exceeded_once_in_a_hundred_at_most(num_past: int, spread: float) -> None:
    """Of very many nights, by the limit that past ones give; chance can only raise it."""
    rng = np.random.default_rng(7)
    trials = 5_000
    exceeded = 0
    for likely in COARSE.values():
        drawn = rng.standard_gamma(likely / spread, (trials, 2 + num_past, len(likely)))
        rows = rng.multinomial(20_000, drawn / drawn.sum(axis=-1, keepdims=True))
        divergences = drift._divergence(rows[:, 1:], rows[:, :1])
        limits = drift._prediction_limit(divergences[:, 1:], level=FALSE_ALARMS / len(COARSE))
        exceeded += int((divergences[:, 0] > limits).sum())
    assert exceeded <= FALSE_ALARMS * trials  # were they all of different nights


@pytest.mark.parametrize(
    ("num_past", "label", "length"),
    [(MIN_NIGHTS, 0.5, 5), (7, 0.3, 4), (12, 0.15, 2), (30, 0.1, 2)],
)
def test_more_nights_let_smaller_shifts_be_caught(num_past: int, label: float, length: int) -> None:
    """Labels that move by a share, lengths that grow by bins of a fifth, 19 nights of 20."""
    rng = np.random.default_rng(0)
    labels = {**SHARES, "label": SHARES["label"] + np.array([-label, label, 0])}
    longer = {**SHARES, "length": np.roll(SHARES["length"], length)}
    caught = {"label": 0, "length": 0}
    trials = 20
    for _ in range(trials):
        reference, *past = (night(rng, 20_000, spread=0.0005) for _ in range(1 + num_past))
        for signal, shares in (("label", labels), ("length", longer)):
            tonight = night(rng, 20_000, shares=shares, spread=0.0005)
            caught[signal] += signal in drifted(compare(tonight, reference, past))
    assert min(caught.values()) >= 0.95 * trials


@pytest.mark.parametrize("num_past", [0, 10])
def test_an_injected_shift_is_caught_and_named(num_past: int) -> None:
    rng = np.random.default_rng(0)
    reference, *past = (night(rng, 20_000, spread=0.0005) for _ in range(1 + num_past))
    labels = {**SHARES, "label": np.array([0.35, 0.55, 0.1])}
    found = compare(night(rng, 20_000, shares=labels), reference, past)
    assert drifted(found) == ["label"]
    assert found[0].largest.name in ("a", "b")
    longer = {**SHARES, "length": np.roll(SHARES["length"], 4)}
    assert drifted(compare(night(rng, 20_000, shares=longer), reference, past)) == ["length"]


def test_a_shift_within_what_nights_do_is_none() -> None:
    rng = np.random.default_rng(0)
    calm, moved = {"label": np.array([0.5, 0.5])}, {"label": np.array([0.56, 0.44])}
    reference = night(rng, 20_000, shares=calm)
    quiet = [night(rng, 20_000, shares=calm) for _ in range(10)]
    lively = [night(rng, 20_000, shares=calm, spread=0.02) for _ in range(10)]
    tonight = night(rng, 20_000, shares=moved)
    assert drifted(compare(tonight, reference, quiet)) == ["label"]
    assert not drifted(compare(tonight, reference, lively))


def test_a_small_night_is_judged_by_its_few_rows() -> None:
    rng = np.random.default_rng(0)
    reference, *past = (night(rng, 20_000) for _ in range(11))
    few = Profile(8, {"label": {"a": 2, "b": 5, "c": 1}})
    assert not drifted(compare(few, reference, past))
    many = Profile(8_000, {"label": {"a": 2_000, "b": 5_000, "c": 1_000}})
    assert drifted(compare(many, reference, past)) == ["label"]


def test_a_label_never_seen_before_and_one_that_is_gone_are_caught() -> None:
    reference = Profile(1_000, {"label": {"a": 500, "b": 500}})
    (verdict,) = compare(Profile(1_000, {"label": {"a": 500, "new": 500}}), reference)
    assert verdict.drifted
    assert np.isfinite(verdict.psi)
    assert {one.name: one.tonight for one in verdict.bins} == {"a": 0.5, "b": 0.0, "new": 0.5}


def test_signals_that_one_night_lacks_are_left_out() -> None:
    reference = Profile(10, {"label": {"a": 10}, "length": {}})
    verdicts = compare(Profile(10, {"label": {"a": 10}, "script": {"Latin": 10}}), reference)
    assert [one.signal for one in verdicts] == ["label"]
    assert verdicts[0].divergence == 0.0


def test_rows_beyond_what_a_shuffle_holds_are_compared_all_the_same() -> None:
    huge = Profile(0, {"label": {"a": 3_000_000_000, "b": 5_000_000_000}})
    moved = Profile(0, {"label": {"a": 5_000_000_000, "b": 3_000_000_000}})
    assert drifted(compare(moved, huge, [huge] * MIN_NIGHTS)) == ["label"]
    assert not drifted(compare(huge, huge, [huge] * MIN_NIGHTS))
    single = Profile(0, {"label": {"a": 1}})
    assert not drifted(compare(single, huge, [huge] * MIN_NIGHTS))
    assert not drifted(compare(single, single))


def test_the_population_stability_index_is_the_textbooks() -> None:
    found = population_stability_index(np.array([300_000, 700_000]), np.array([500_000, 500_000]))
    assert found == pytest.approx(-0.2 * np.log(0.6) + 0.2 * np.log(1.4), abs=1e-5)
    assert population_stability_index(np.array([3, 7]), np.array([3, 7])) == 0.0
