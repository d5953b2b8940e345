"""The reliability diagram: how often predictions of each probability turn out right."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from bertray.evaluate.calibration import NUM_BINS, Reliability

INCHES = (5.5, 6.5)
COLOURS = ("tab:blue", "tab:orange")


def draw_reliability(found: Mapping[str, Reliability]) -> bytes:
    """A PNG of one or two sides by name: the share that is right over the probability, and rows."""
    figure = Figure(figsize=INCHES, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", linewidth=0.8, label="as it should")
    borders = np.linspace(0, 1, NUM_BINS + 1)
    for (name, side), colour in zip(found.items(), COLOURS, strict=False):
        filled = side.rows > 0
        label = f"{name}, ECE {side.ece:.3f}"
        top.plot(side.confidence[filled], side.right[filled], "o-", color=colour, label=label)
        share = side.rows / max(side.rows.sum(), 1)
        bottom.stairs(share, borders, color=colour, fill=True, alpha=0.4)
    top.set(ylabel="share that is right", ylim=(0, 1))
    top.legend(loc="upper left")
    bottom.set(xlabel="probability of the prediction", ylabel="share of all", xlim=(0, 1))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()
