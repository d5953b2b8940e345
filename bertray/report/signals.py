"""How the signals of a profile are named and shown to a person."""

from collections.abc import Mapping, Sequence

from bertray.report.drift import OTHERS, Bin
from bertray.report.profile import EDGES

MOST_BARS = 14
NAMES = {
    "label": "predicted labels",
    "score": "scores",
    "confidence": "confidence",
    "length": "text length",
    "script": "script",
    "unknown": "unknown tokens",
    "status": "status",
}
UNITS = {
    "score": "score, from",
    "confidence": "probability of the label, from",
    "length": "characters, from",
    "unknown": "share of a text's tokens, from",
}
# Lower edges to show by, coarser than the profile's own.
SHOWN_EDGES: dict[str, Sequence[float]] = {
    "confidence": (0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99, 0.999),
    "length": (0, *(2**power for power in range(31))),
    "unknown": tuple(EDGES["unknown"].tolist()),
}
ANY = 1e-9  # the least share of unknown tokens that is not none
ROUNDING = 1e-6  # of an edge in a bin's name


def shown_bins(signal: str, tonight: Mapping[str, int], reference: Mapping[str, int]) -> list[Bin]:
    """Shares of the rows by few bins with names to read; of no reference they are 0.

    Args:
        signal: see `bertray.report.profile`.
        tonight: rows by bin of the profile; not empty.
        reference: likewise.
    """
    if signal in SHOWN_EDGES:
        places = _by_edge(SHOWN_EDGES[signal], {**tonight, **reference})
        names = [edge_name(edge) for edge in SHOWN_EDGES[signal]]
    elif signal in EDGES:
        ordered = sorted({**tonight, **reference}, key=float)
        size = -(-len(ordered) // MOST_BARS)
        places = {name: index // size for index, name in enumerate(ordered)}
        names = [edge_name(float(name)) for name in ordered[::size]]
    else:
        ranked = sorted({**tonight, **reference}, key=lambda name: -tonight.get(name, 0))
        last = len(ranked) if len(ranked) <= MOST_BARS else MOST_BARS - 1
        places = {name: min(index, last) for index, name in enumerate(ranked)}
        names = [*ranked[:last], OTHERS]
    first, end = min(places.values()), max(places.values()) + 1
    ours, before = ([0] * len(names) for _ in range(2))
    for name, place in places.items():
        ours[place] += tonight.get(name, 0)
        before[place] += reference.get(name, 0)
    totals = sum(before) or 1, sum(ours) or 1
    return [
        Bin(names[place], before[place] / totals[0], ours[place] / totals[1])
        for place in range(first, end)
    ]


def edge_name(edge: float) -> str:
    """A bin's lower edge in few signs."""
    if edge == ANY:
        return ">0"
    return f"{edge:,.0f}" if abs(edge) >= 1_000 else f"{edge:.4g}"


def bin_name(signal: str, name: str) -> str:
    """The name of a profile's bin, for a sentence."""
    return f"from {edge_name(float(name))}" if signal in EDGES else name


def _by_edge(edges: Sequence[float], names: Mapping[str, int]) -> dict[str, int]:
    """Of each bin the last edge that is not above it."""
    return {
        name: max(place for place, edge in enumerate(edges) if edge <= float(name) * (1 + ROUNDING))
        for name in names
    }
