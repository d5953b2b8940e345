"""Charts as SVG that stands in a page: its text is text, its colours are the page's own.

matplotlib draws them in placeholder colours, and each is then made a CSS variable, so that one
picture does for light and for dark.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter

from bertray.report.drift import Bin

# What is drawn, and the page's variable that it becomes.
TONIGHT, BEFORE, INK, FAINT = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {
    TONIGHT: "var(--tonight)",
    BEFORE: "var(--before)",
    INK: "var(--ink-soft)",
    FAINT: "var(--line)",
}
WIDTH = 5.2  # inches of 72 points: on a telephone two thirds of that, and still to be read
ROW_HEIGHT = 0.42
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # only to measure by: the page says which font is shown
    "font.size": 12,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a label may well hold dollars
}
LONGEST_NAME = 26
STRIP_HEIGHT = 0.72
MOST_DAYS = 5  # that are named below nights


@dataclass(frozen=True)
class Axis:
    """The nights that a chart runs over.

    Attributes:
        days: names of all of them, the oldest first.
        changes: places of nights before which the model was another one.
    """

    days: Sequence[str]
    changes: Sequence[int]


@rc_context(STYLE)
def shares_chart(bins: Sequence[Bin], *, title: str, compared: bool) -> Markup:
    """Horizontal bars, one a category; two where nights are compared.

    Args:
        bins: from the top down.
        title: what a screen reader says of the picture.
        compared: whether there is a reference night.
    """
    figure, axes = _figure(height=0.7 + ROW_HEIGHT * len(bins))
    places = range(len(bins))
    height = 0.38 if compared else 0.6
    if compared:
        before = [one.reference for one in bins]
        axes.barh([p + 0.2 for p in places], before, height, color=BEFORE, label="reference")
    ours = [one.tonight for one in bins]
    axes.barh([p - 0.2 * compared for p in places], ours, height, color=TONIGHT, label="tonight")
    top = max(*ours, *(one.reference for one in bins if compared), 0.01)
    for place, share in zip(places, ours, strict=True):
        text = percent(share)
        axes.text(share + top / 60, place - 0.2 * compared, text, va="center", fontsize=11)
    axes.set_xlim(0, top * 1.16)
    _name_bars(axes, [shortened(one.name) for one in bins])
    return _svg(figure, title)


@rc_context(STYLE)
def histogram_chart(bins: Sequence[Bin], *, title: str, compared: bool, unit: str) -> Markup:
    """Shares of rows by bins of a number, each bin as wide as any other.

    Args:
        bins: in order; names are what stands below their left edge.
        title: what a screen reader says of the picture.
        compared: whether there is a reference night.
        unit: of the numbers.
    """
    figure, axes = _figure(height=2.6)
    edges = list(range(len(bins) + 1))
    ours = [one.tonight for one in bins]
    axes.bar(edges[:-1], ours, 0.86, color=TONIGHT, align="edge", label="tonight")
    if compared:
        before = [one.reference for one in bins]
        axes.stairs(before, edges, color=BEFORE, linewidth=2.2, label="reference")
    axes.set_xticks(edges[:-1], [one.name for one in bins])
    if len(bins) > 8:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(unit)
    _share_axis(axes)
    return _svg(figure, title)


@rc_context(STYLE)
def stages_chart(seconds: dict[str, float], *, texts: Sequence[str], title: str) -> Markup:
    """Bars of seconds by stage, with a text behind each."""
    figure, axes = _figure(height=0.7 + ROW_HEIGHT * len(seconds))
    axes.barh(range(len(seconds)), list(seconds.values()), 0.6, color=TONIGHT)
    top = max(seconds.values())
    for place, (value, text) in enumerate(zip(seconds.values(), texts, strict=True)):
        axes.text(value + top / 60, place, text, va="center", fontsize=11)
    axes.set_xlim(0, top * 1.55)
    _name_bars(axes, list(seconds))
    return _svg(figure, title)


@rc_context(STYLE)
def reliability_chart(
    confidence: Sequence[float], accuracy: Sequence[float], *, title: str
) -> Markup:
    """How often labels of a confidence are right; on the diagonal it is as often as they say.

    Args:
        confidence: mean probability of each bin's rows.
        accuracy: share of them that is right.
        title: what a screen reader says of the picture.
    """
    figure, axes = _figure(height=3.2)
    axes.plot([0, 1], [0, 1], color=BEFORE, linestyle="--", linewidth=1.4)
    axes.plot(confidence, accuracy, color=TONIGHT, marker="o", linewidth=2.2)
    axes.set_xlim(min(*confidence, 0.5) - 0.02, 1.01)
    axes.set_ylim(min(*accuracy, *confidence, 0.5) - 0.05, 1.02)
    axes.set_xlabel("probability of the label")
    axes.set_ylabel("share that is right")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _share_axis(axes)
    return _svg(figure, title)


@rc_context(STYLE)
def counts_chart(
    counts: Sequence[int], nights: Axis, *, marked: Sequence[bool], title: str
) -> Markup:
    """A bar for each night's count.

    Args:
        counts: by night.
        nights: they are of.
        marked: those that get another colour and an exclamation mark.
        title: what a screen reader says of the picture.
    """
    figure, axes = _figure(height=2.2)
    colors = [BEFORE if is_marked else TONIGHT for is_marked in marked]
    axes.bar(range(len(counts)), counts, 0.78, color=colors)
    for place, (count, is_marked) in enumerate(zip(counts, marked, strict=True)):
        if is_marked:
            axes.text(place, count, "!", ha="center", va="bottom", weight="bold")
    axes.margins(y=0.12)
    _night_axis(axes, nights)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _value_axis(axes, EngFormatter(sep=""))
    return _svg(figure, title)


@rc_context(STYLE)
def course_chart(
    values: Sequence[float],
    nights: Axis,
    *,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    is_share: bool = False,
    from_zero: bool = False,
    title: str,
) -> Markup:
    """A line through each night's value, with a gap where a night has none (NaN).

    Args:
        values: by night.
        nights: they are of.
        band: the lower and the upper edge of what is shaded around the line.
        is_share: whether values are shares.
        from_zero: whether the axis begins there.
        title: what a screen reader says of the picture.
    """
    figure, axes = _figure(height=2.2)
    places = range(len(values))
    if band is not None:
        axes.fill_between(places, *band, color=TONIGHT, alpha=0.2, linewidth=0)
    axes.plot(places, values, color=TONIGHT, linewidth=2, marker="o", markersize=3.5)
    _night_axis(axes, nights)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if is_share:
        _share_axis(axes)
    else:
        _value_axis(axes, FuncFormatter(lambda value, _: f"{value:,.4g}"))
    if from_zero:
        axes.set_ylim(0, _top_of(values) * 1.12)
    return _svg(figure, title)


@rc_context(STYLE)
def strips_chart(courses: Mapping[str, Sequence[float]], nights: Axis, *, title: str) -> Markup:
    """Shares by night, a strip for each name; a strip goes from 0 to a little above its most.

    Args:
        courses: by name, a share or NaN for each night.
        nights: they are of.
        title: what a screen reader says of the picture.
    """
    figure = Figure(figsize=(WIDTH, 0.45 + STRIP_HEIGHT * len(courses)), layout="constrained")
    strips = figure.subplots(len(courses), sharex=True, squeeze=False)[:, 0]
    for axes, (name, shares) in zip(strips, courses.items(), strict=True):
        places = range(len(shares))
        axes.fill_between(places, shares, color=TONIGHT, alpha=0.2, linewidth=0)
        axes.plot(places, shares, color=TONIGHT, linewidth=2, marker="o", markersize=2.5)
        axes.set_ylim(0, _top_of(shares) * 1.15)
        axes.set_title(shortened(name), loc="left", fontsize=12, pad=3)
        last = shares[-1]
        axes.set_title("" if isnan(last) else percent(last), loc="right", fontsize=12, pad=3)
        _night_axis(axes, nights)
        axes.yaxis.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(bottom=axes is strips[-1])
    return _svg(figure, title)


def shortened(name: str) -> str:
    """A name that fits beside a bar."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def percent(share: float) -> str:
    """A share to read; one that is not quite none or all never looks as if it were."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.0005 else ">99.9%" if share >= 0.9995 else f"{share:.1%}"


def _figure(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)


def _share_axis(axes: Axes) -> None:
    _value_axis(axes, FuncFormatter(lambda share, _: f"{share:.0%}"))


def _top_of(values: Sequence[float]) -> float:
    """The largest of them; 1 if there is none above zero."""
    return max((value for value in values if value > 0), default=1.0)


def _value_axis(axes: Axes, formatter: Formatter) -> None:
    axes.yaxis.set_major_formatter(formatter)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _night_axis(axes: Axes, nights: Axis) -> None:
    """Some of the nights by name, and a dotted line before each that has another model."""
    last = len(nights.days) - 1
    named = sorted({round(last * part / (MOST_DAYS - 1)) for part in range(MOST_DAYS)})
    axes.set_xticks(named, [nights.days[place] for place in named])
    axes.set_xlim(-0.6, last + 0.6)
    for place in nights.changes:
        axes.axvline(place - 0.5, color=BEFORE, linestyle=":", linewidth=1.6)


def _svg(figure: Figure, title: str) -> Markup:
    """The picture, scaled to where it stands; matplotlib has escaped its texts."""
    sink = io.StringIO()
    # Names inside a picture are made of the salt, and must be its own among all of the page.
    # Which fonts there are is the browser's business.
    with rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    inner = text[text.index(">") + 1 :]
    inner = re.sub(r"\s*<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r' id="[\w.]+_\d+"', "", inner)  # they would stand on the page many times
    for placeholder, variable in VARIABLES.items():
        inner = inner.replace(f": {placeholder}", f": {variable}")
    return Markup('<svg {} role="img" aria-label="{}" class="chart">{}').format(
        Markup(view_box.group()), title, Markup(inner)
    )
