"""Charts of many nights say what the nights' records and profiles say."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import LABELS, made_up_nights

from bertray.report.nights import (
    DECILES,
    MOST_LABELS,
    MOST_NIGHTS,
    UNKNOWN,
    Course,
    NightLine,
    courses,
    quantiles,
)
from bertray.report.page import render_index
from bertray.report.profile import Profile

Counts = dict[str, int]


def course(nights: list[NightLine], name: str) -> Course:
    (found,) = [one for one in courses(nights) if one.name == name]
    return found


def test_the_tables_beside_the_charts_hold_what_is_known_of_each_night() -> None:
    nights = made_up_nights(MOST_NIGHTS + 5)
    found = courses(nights)
    names = [night.name for night in nights[:MOST_NIGHTS]]
    assert [one.name for one in found] == [
        "New rows",
        "Rows a second",
        "Label shares",
        "Confidence",
    ]
    for one in found:
        assert [name for name, _ in one.rows] == names
    rows, rates, shares = (dict(one.rows) for one in found[:3])
    for night in nights[:MOST_NIGHTS]:
        assert rows[night.name] == (f"{night.num_rows:,}", night.trouble or "all well")
        known = night.rows_per_s
        assert rates[night.name] == (UNKNOWN if known is None else f"{known:,.1f}",)
        if night.profile is None:
            assert shares[night.name] == (UNKNOWN,) * len(LABELS)
        else:
            counts = night.profile.counts["label"]
            share = counts[LABELS[0]] / sum(counts.values())
            assert shares[night.name][0] == f"{share:.1%}"


def test_a_chart_has_a_bar_a_night_a_line_where_the_model_changes_and_marks_trouble() -> None:
    nights = made_up_nights(25)
    chart = str(course(nights, "New rows").chart)
    num_marked = sum(bool(night.trouble) for night in nights)
    bars = re.findall(r'd="M [^"]*z\s*"[^>]*style="fill: var\(--(\w+)\)', chart)
    assert (bars.count("tonight"), bars.count("before")) == (25 - num_marked, num_marked)
    assert num_marked == chart.count(">!</text>") == 2
    dotted = "stroke-dasharray"
    assert chart.count(dotted) == 1
    alike = [replace(night, model="one") for night in nights]
    assert dotted not in course(alike, "New rows").chart


def test_only_the_most_frequent_labels_are_drawn_and_it_is_said_of_how_many() -> None:
    labels = tuple(f"label {number}" for number in range(20))
    found = course(made_up_nights(4, labels=labels), "Label shares")
    assert len(found.columns) == MOST_LABELS
    assert found.told.startswith("The 6 most frequent of 20.")


def test_numbers_have_a_course_of_scores_and_no_labels() -> None:
    counts = {"score": {"-inf": 1, "0.5": 8, "2": 1}}
    nights = [replace(night, profile=Profile(10, counts)) for night in made_up_nights(3)]
    assert [one.name for one in courses(nights)] == ["New rows", "Rows a second", "Scores"]
    assert course(nights, "Scores").rows[0][1] == ("-inf", "0.5", "0.5")


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_night_has_no_course(count: int) -> None:
    assert courses(made_up_nights(count)) == []


def test_nights_of_which_little_is_known_are_shown_all_the_same() -> None:
    bare = [
        replace(night, num_rows=0, rows_per_s=None, profile=None) for night in made_up_nights(3)
    ]
    assert [one.name for one in courses(bare)] == ["New rows"]


def test_a_label_stays_text_in_the_charts() -> None:
    page = render_index(made_up_nights(3, labels=("<script>alert(1)</script>", "$x$")), place="")
    assert "<script" not in page
    assert "$x$" in page


def test_the_page_of_thirty_nights_is_small() -> None:
    assert len(render_index(made_up_nights(30), place="").encode()) < 150_000


@given(st.dictionaries(st.integers(0, 40), st.integers(1, 50), min_size=1))
def test_at_least_as_many_rows_as_said_lie_at_or_below_a_quantiles_bin(
    bins: dict[int, int],
) -> None:
    values = np.repeat(np.array([*bins]) / 50, [*bins.values()])
    found = quantiles({f"{edge / 50:.7g}": count for edge, count in bins.items()})
    for share, value in zip(DECILES, found, strict=True):
        assert (values <= value + 1e-9).mean() >= share - 1e-9
        assert (values < value - 1e-9).mean() < share + 1e-9
