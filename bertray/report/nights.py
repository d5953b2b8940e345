"""Nights beside each other: how pages list them, and their course in charts and tables."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

from markupsafe import Markup

from bertray.report import charts
from bertray.report.charts import Axis, percent
from bertray.report.profile import Profile

MOST_NIGHTS = 30  # that charts go back
MOST_LABELS = 6  # that have a strip of their own
UNKNOWN = "-"
DECILES = (0.1, 0.5, 0.9)  # of a night's rows, that its confidence or its scores are told by


@dataclass(frozen=True)
class NightLine:
    """A night among others.

    Attributes:
        name: when it began.
        day: the same in few signs.
        page: where its own page lies, from this one.
        model: that scored.
        num_rows: scored since the night before.
        seconds: that it took.
        rows_per_s: at which they were scored; None if that is not known.
        profile: of these rows; None where nothing is drawn of them.
        trouble: what was not fine, in words; empty if all was.
    """

    name: str
    day: str
    page: str
    model: str
    num_rows: int
    seconds: float
    rows_per_s: float | None
    profile: Profile | None
    trouble: str


@dataclass(frozen=True)
class Course:
    """One thing about each of some nights.

    Attributes:
        name: of it.
        told: how to read the chart.
        chart: the oldest night first.
        columns: heads of the table beside it.
        rows: of the table, the latest night first: its name, and a text for each column.
    """

    name: str
    told: str
    chart: Markup
    columns: Sequence[str]
    rows: Sequence[tuple[str, tuple[str, ...]]]


def courses(nights: Sequence[NightLine]) -> list[Course]:
    """What changed from night to night; nothing unless there are two of them.

    Args:
        nights: the latest first; charts show some of them, see `MOST_NIGHTS`.
    """
    shown = nights[:MOST_NIGHTS][::-1]
    if len(shown) < 2:
        return []
    models = [night.model for night in shown]
    changes = [place for place in range(1, len(models)) if models[place] != models[place - 1]]
    axis = Axis([night.day for night in shown], changes)
    found = [_rows(shown, axis), _rates(shown, axis), _labels(shown, axis)]
    found += [_quantiles("confidence", shown, axis), _quantiles("score", shown, axis)]
    return [course for course in found if course is not None]


def _rows(nights: Sequence[NightLine], axis: Axis) -> Course:
    counts = [night.num_rows for night in nights]
    marked = [bool(night.trouble) for night in nights]
    told = "An exclamation mark: a night with trouble. " * any(marked)
    told += "A dotted line: another model from there on." * bool(axis.changes)
    title = f"New rows of {_span(axis)}: {min(counts):,} to {max(counts):,} a night"
    chart = charts.counts_chart(counts, axis, marked=marked, title=title)
    cells = [(f"{night.num_rows:,}", night.trouble or "all well") for night in nights]
    return Course("New rows", told, chart, ("rows", "verdict"), _table(nights, cells))


def _rates(nights: Sequence[NightLine], axis: Axis) -> Course | None:
    known = [night.rows_per_s for night in nights if night.rows_per_s is not None]
    if not known:
        return None
    title = f"Rows scored a second, {_span(axis)}: {min(known):,.0f} to {max(known):,.0f}"
    rates = [nan if night.rows_per_s is None else night.rows_per_s for night in nights]
    chart = charts.course_chart(rates, axis, from_zero=True, title=title)
    cells = [_texts([rate], "{:,.1f}".format) for rate in rates]
    told = "As scored, the start of the actors included."
    return Course("Rows a second", told, chart, ("rows a second",), _table(nights, cells))


def _labels(nights: Sequence[NightLine], axis: Axis) -> Course | None:
    """Shares of labels, those of most rows."""
    counts = [_counts(night, "label") for night in nights]
    totals = sum((Counter(one) for one in counts), Counter[str]())
    if not totals:
        return None
    names = [name for name, _ in totals.most_common(MOST_LABELS)]
    shares = {name: [_share(one, name) for one in counts] for name in names}
    more = len(totals) > len(names)
    title = f"Shares of {'the most frequent' if more else 'the'} labels, {_span(axis)}"
    cells = [_texts(night, percent) for night in zip(*shares.values(), strict=True)]
    told = "Each from zero to a little above its most; the last night's share stands at the right."
    if more:
        told = f"The {len(names)} most frequent of {len(totals):,}. {told}"
    chart = charts.strips_chart(shares, axis, title=title)
    return Course("Label shares", told, chart, names, _table(nights, cells))


def _quantiles(signal: str, nights: Sequence[NightLine], axis: Axis) -> Course | None:
    """The middle row of a number, and where eight of ten lie."""
    found = [quantiles(_counts(night, signal)) for night in nights]
    if all(isnan(middle) for _, middle, _ in found):
        return None
    low, middle, high = zip(*found, strict=True)
    is_share = signal == "confidence"
    name = "Confidence" if is_share else "Scores"
    chart = charts.course_chart(
        middle,
        axis,
        band=(low, high),
        is_share=is_share,
        title=f"{name}: the median row and eight of ten rows around it, {_span(axis)}",
    )
    cells = [_texts(night, percent if is_share else "{:,.4g}".format) for night in found]
    told = "The line is the median row; eight of ten rows lie in the band."
    return Course(name, told, chart, ("10%", "median", "90%"), _table(nights, cells))


def quantiles(counts: Mapping[str, int]) -> tuple[float, float, float]:
    """`DECILES` of a histogram of a profile, each as the lower edge of its bin; NaN of none."""
    wanted, total = list(DECILES), sum(counts.values())
    if not total:
        return nan, nan, nan
    found, below = [], 0
    for name in sorted(counts, key=float):
        below += counts[name]
        while wanted and below >= wanted[0] * total:
            found.append(float(name))
            wanted.pop(0)
    low, middle, high = found
    return low, middle, high


def _counts(night: NightLine, signal: str) -> Mapping[str, int]:
    return {} if night.profile is None else night.profile.counts.get(signal, {})


def _share(counts: Mapping[str, int], name: str) -> float:
    total = sum(counts.values())
    return counts.get(name, 0) / total if total else nan


def _texts(values: Sequence[float], say: Callable[[float], str]) -> tuple[str, ...]:
    return tuple(UNKNOWN if isnan(value) else say(value) for value in values)


def _span(axis: Axis) -> str:
    return f"{len(axis.days)} nights from {axis.days[0]} to {axis.days[-1]}"


def _table(
    nights: Sequence[NightLine], cells: Sequence[tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...]]]:
    return [(night.name, texts) for night, texts in zip(nights, cells, strict=True)][::-1]
