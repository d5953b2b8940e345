"""Whether a night differs from a reference night by more than nights do.

Each signal of a `Profile` is compared by the Jensen-Shannon divergence, in bits: 0 for equal
distributions, 1 for disjoint ones, defined where bins are empty. The population stability index is
given beside it, because people know it. A signal drifted if its divergence is above both

- what chance does to so few rows: the rows of both nights are shuffled and dealt out again, the
  quantile of what that gives (a permutation test, so exact for small nights too);
- what nights do: the divergences of past nights from the same reference, thinned to tonight's rows.
  Squared distances are about chi-squared, and their fourth roots about normal, with few degrees of
  freedom too (Hawkins & Wixley 1986). So of H nights, 5 of them or 50, the limit is the upper
  prediction limit of one more such value, (mean + q s sqrt(1 + 1/H))^4 of the roots, where q is
  Student's t(H - 1). The quantile of 30 nights itself would be exceeded by every 30th. What is rare
  comes in bursts, and roots then lean to the right: one of 300 such nights exceeds what one of 600
  should. So q grows with the skewness g of past roots, where that is above 0, by the first term of
  Cornish & Fisher (1938), g (q^2 - 1) / 6. Where roots do not lean, chance alone then lifts the
  limit by a tenth (10 to 30 nights) or a third (5 nights).

Both take a level of `FALSE_ALARMS` over the number of signals (Bonferroni), so that of nights that
are like the others about `FALSE_ALARMS` at most raise an alarm by any signal. Few nights that
wander far tell too little: where shares vary by Dirichlet draws of spread 0.03, 1.9% did of 5 past
nights and 1.3% of 8; of spread 0.1 6.5% of 5 and 2.2% of 12. With fewer than
`MIN_NIGHTS` past nights nobody knows what nights do, and the rule of thumb stands in: an index
under 0.1 is no shift (Siddiqi 2006).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr
from scipy.stats import t as student

from bertray.report.profile import EDGES, Profile

FALSE_ALARMS = 0.01  # of nights, at most, over all signals
MIN_NIGHTS = 5
NUM_SHUFFLES = 1_999
USUAL_PSI = 0.1
# Of small shifts the index, in nats, is eight times the Jensen-Shannon divergence.
USUAL_DIVERGENCE = USUAL_PSI / (8 * math.log(2))
MOST_BINS = 20  # of categories; the rarest are taken together
NUMERIC_BINS = 10  # of a number, about equally full on the reference night
MOST_ROWS = 500_000_000  # together, of numpy's shuffle
OTHERS = "(all others)"


@dataclass(frozen=True)
class Bin:
    """One bin of a signal: its share of the rows on either night."""

    name: str
    reference: float
    tonight: float


@dataclass(frozen=True)
class Verdict:
    """What became of one signal.

    Attributes:
        signal: see `bertray.report.profile`.
        divergence: Jensen-Shannon, in bits.
        threshold: that it would have to exceed.
        psi: the population stability index.
        bins: of categories by their rows on the reference night, of numbers in order.
        num_nights: past nights that the threshold is drawn from.
    """

    signal: str
    divergence: float
    threshold: float
    psi: float
    bins: tuple[Bin, ...]
    num_nights: int

    @property
    def drifted(self) -> bool:
        """Whether nights differ less than that."""
        return self.divergence > self.threshold

    @property
    def largest(self) -> Bin:
        """The bin whose share changed most."""
        return max(self.bins, key=lambda one: abs(one.tonight - one.reference))


def compare(
    tonight: Profile, reference: Profile, past: Sequence[Profile] = (), *, seed: int = 0
) -> list[Verdict]:
    """Compare two nights by each signal that both have.

    Args:
        tonight: the night in question.
        reference: what it is compared with.
        past: other nights, tonight and the reference not among them, that went well.
        seed: of the shuffles.
    """
    signals = [signal for signal in tonight.counts if reference.counts.get(signal)]
    rng = np.random.default_rng(seed)
    level = FALSE_ALARMS / max(len(signals), 1)
    return [
        _judge(
            signal,
            tonight.counts[signal],
            reference.counts[signal],
            [night.counts[signal] for night in past if night.counts.get(signal)],
            level=level,
            rng=rng,
        )
        for signal in signals
    ]


def population_stability_index(tonight: np.ndarray, reference: np.ndarray) -> float:
    """Sum of (p - q) ln(p / q) over bins, in nats; half a row is added to each bin.

    Args:
        tonight: rows of each bin.
        reference: likewise.
    """
    p, q = ((rows + 0.5) / (rows + 0.5).sum() for rows in (tonight, reference))
    return float(((p - q) * np.log(p / q)).sum())


def _judge(
    signal: str,
    tonight: Mapping[str, int],
    reference: Mapping[str, int],
    past: Sequence[Mapping[str, int]],
    *,
    level: float,
    rng: np.random.Generator,
) -> Verdict:
    names, groups = _bins(signal, reference, [tonight, *past])
    ours, theirs = _rows(tonight, groups), _rows(reference, groups)
    threshold = _by_chance(ours, theirs, level=level, rng=rng)
    if len(past) >= MIN_NIGHTS:
        nights = [_thinned(_rows(night, groups), int(ours.sum()), rng) for night in past]
        others = _divergence(np.stack(nights), theirs)
        threshold = max(threshold, float(_prediction_limit(others, level=level)))
    else:
        threshold = max(threshold, USUAL_DIVERGENCE)
    shares = zip(names, theirs / theirs.sum(), ours / ours.sum(), strict=True)
    return Verdict(
        signal=signal,
        divergence=float(_divergence(ours, theirs)),
        threshold=threshold,
        psi=population_stability_index(ours, theirs),
        bins=tuple(Bin(name, float(before), float(now)) for name, before, now in shares),
        num_nights=len(past) if len(past) >= MIN_NIGHTS else 0,
    )


def _by_chance(
    tonight: np.ndarray, reference: np.ndarray, *, level: float, rng: np.random.Generator
) -> float:
    """The divergence that two nights of the same rows exceed with probability ``level``."""
    halvings = max(0, math.ceil(math.log2((tonight.sum() + reference.sum()) / MOST_ROWS)))
    both = (tonight + reference) >> halvings
    num_ours = int(np.clip(tonight.sum() >> halvings, 1, both.sum() - 1))
    dealt = rng.multivariate_hypergeometric(both, num_ours, NUM_SHUFFLES, method="marginals")
    divergences = np.sort(_divergence(dealt, both - dealt))
    return float(divergences[math.ceil((1 - level) * (NUM_SHUFFLES + 1)) - 1])


def _prediction_limit(divergences: np.ndarray, *, level: float) -> np.ndarray:
    """What one more of such nights, along the last axis, exceeds with probability ``level``."""
    roots, num_nights = divergences**0.25, divergences.shape[-1]
    mean, spread = roots.mean(axis=-1), roots.std(axis=-1, ddof=1)
    cubes = ((roots - mean[..., None]) ** 3).mean(axis=-1)
    least = np.finfo(float).tiny
    skewness = np.maximum(cubes, 0.0) / np.maximum(roots.std(axis=-1) ** 3, least)
    quantile = student.ppf(1 - level, num_nights - 1)
    quantile = quantile + skewness * (quantile**2 - 1) / 6
    limit = mean + quantile * spread * math.sqrt(1 + 1 / num_nights)
    return np.asarray(limit**4)


def _divergence(tonight: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits of rows by bin, along the last axis."""
    p, q = (rows / rows.sum(axis=-1, keepdims=True) for rows in (tonight, reference))
    middle = (p + q) / 2
    nats = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2
    return np.asarray(np.maximum(nats, 0.0) / math.log(2))  # rounding may go below 0


def _thinned(rows: np.ndarray, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """A night of so many rows at most, drawn from a larger one's."""
    while rows.sum() >= 2 * MOST_ROWS:
        rows = rows >> 1
    if rows.sum() <= num_rows:
        return rows
    return rng.multivariate_hypergeometric(rows, num_rows, method="marginals")


def _bins(
    signal: str, reference: Mapping[str, int], others: Sequence[Mapping[str, int]]
) -> tuple[list[str], dict[str, int]]:
    """Names of the bins to compare by, and into which of them each bin of the profiles goes."""
    found = dict.fromkeys([*reference, *(name for other in others for name in other)])
    if signal not in EDGES:
        ranked = sorted(found, key=lambda name: -reference.get(name, 0))
        if len(ranked) <= MOST_BINS:
            return ranked, {name: index for index, name in enumerate(ranked)}
        kept = ranked[: MOST_BINS - 1]
        groups = {name: min(index, MOST_BINS - 1) for index, name in enumerate(ranked)}
        return [*kept, OTHERS], groups
    ordered = sorted(found, key=float)
    rows = np.array([reference.get(name, 0) for name in ordered], float)
    middles = (rows.cumsum() - rows / 2) / rows.sum()
    chosen = np.minimum((middles * NUMERIC_BINS).astype(int), NUMERIC_BINS - 1)
    _, first, groups_of = np.unique(chosen, return_index=True, return_inverse=True)
    return [ordered[index] for index in first], dict(zip(ordered, groups_of.tolist(), strict=True))


def _rows(counts: Mapping[str, int], groups: Mapping[str, int]) -> np.ndarray:
    """Rows by bin to compare by, int64."""
    rows = np.zeros(max(groups.values()) + 1, np.int64)
    np.add.at(rows, [groups[name] for name in counts], list(counts.values()))
    return rows
