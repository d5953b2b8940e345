"""Nights that never were, for pages and charts that need many."""

from datetime import UTC, datetime, timedelta

import numpy as np

from bertray.report.nights import NightLine
from bertray.report.profile import Profile

LABELS = ("good", "bad", "so-so")
ROWS = 240_000


def made_up_nights(count: int, *, labels: tuple[str, ...] = LABELS) -> list[NightLine]:
    """Some in trouble, two models, one without a profile and one without a rate; latest first."""
    random, first = np.random.default_rng(0), datetime(2026, 1, 28, 1, 30, tzinfo=UTC)
    nights = []
    for number in range(count):
        began = first + timedelta(days=number)
        num_rows = int(ROWS * random.uniform(0.7, 1.3))
        weights = 60.0 / np.arange(1, len(labels) + 1) ** 1.5
        shares = random.dirichlet(weights * (1 + (number > 22) * (np.arange(len(labels)) == 1)))
        sure = np.clip(random.beta(6, 1.2 + 0.5 * (number > 22), 4_000), 0.34, 0.9999)
        bins, found = np.unique(np.round(np.floor(sure / 0.02) * 0.02, 2), return_counts=True)
        counts = {
            "label": dict(zip(labels, (shares * 20_000).astype(int).tolist(), strict=True)),
            "confidence": {f"{edge:.7g}": int(n) for edge, n in zip(bins, found, strict=True)},
        }
        nights.append(
            NightLine(
                name=f"{began:%-d %b %Y, %H:%M} UTC",
                day=f"{began:%-d %b}",
                page=f"{began:%Y%m%dT%H%M%S}.html",
                model=f"store://reviews@{1 + (number > 14)}",
                num_rows=num_rows,
                seconds=num_rows / 900,
                rows_per_s=None if number == 9 else random.normal(1_000, 60),
                profile=None if number == 5 else Profile(num_rows, counts),
                trouble="shards quarantined: 2" if number in (11, 24) else "",
            )
        )
    return nights[::-1]
