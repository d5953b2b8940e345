"""The course of a training as a picture: losses, the metric, the learning rate."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertray.evaluate.metrics import HIGHER_IS_BETTER
from bertray.train.state import Epoch
from bertray.train.steps import Step

INCHES = (9.0, 7.0)
SMOOTHED_SHARE = 0.02  # of the steps: the window of the running mean


def draw_curves(
    path: Path, steps: Sequence[Step], epochs: Sequence[Epoch], *, metric: str, kept: Epoch
) -> None:
    """Write a PNG: what training and validation found, over the optimizer steps.

    Args:
        path: of the picture.
        steps: of all epochs, in order.
        epochs: in order.
        metric: that picked the epoch whose weights were kept.
        kept: that one.
    """
    figure = Figure(figsize=INCHES, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    numbers = [step.step for step in steps]
    ends = [epoch.step for epoch in epochs]
    losses = [step.loss for step in steps]
    top.plot(numbers, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    top.plot(numbers, _running_mean(losses), color="tab:blue", label="training")
    validation = [epoch.metrics["loss"] for epoch in epochs]
    top.plot(ends, validation, color="tab:orange", marker="o", label="validation")
    top.set_ylabel("loss")
    top.legend()
    shares = {name for name in epochs[0].metrics if HIGHER_IS_BETTER[name]}
    shown = shares | {metric} if HIGHER_IS_BETTER[metric] or metric == "loss" else {metric}
    for name in sorted(shown - {"loss"}):
        middle.plot(ends, [epoch.metrics[name] for epoch in epochs], marker="o", label=name)
    middle.set_ylabel("validation")
    middle.legend()
    bottom.plot(numbers, [step.learning_rate for step in steps], color="tab:gray")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("optimizer step")
    better = "highest" if HIGHER_IS_BETTER[metric] else "lowest"
    at = f"epoch {kept.epoch:.4g}"
    top.set_title(f"weights kept: {at}, the {better} {metric}", fontsize="medium")
    for axes in (top, middle, bottom):
        _finish(axes, kept=kept.step)
    figure.savefig(path, dpi=120)


def write_events(path: Path, steps: Sequence[Step], epochs: Sequence[Epoch]) -> None:
    """Write the same as an event file of TensorBoard's, which shows any whose name has "tfevents".

    Args:
        path: of the file.
        steps: as of `draw_curves`.
        epochs: likewise.
    """
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for step in steps:
                writer.add_scalar("loss/training", step.loss, step.step)
                writer.add_scalar("learning_rate", step.learning_rate, step.step)
                if step.grad_norm is not None:
                    writer.add_scalar("grad_norm", step.grad_norm, step.step)
            for epoch in epochs:
                for name, value in epoch.metrics.items():
                    tag = "loss/validation" if name == "loss" else f"validation/{name}"
                    writer.add_scalar(tag, value, epoch.step)
        (written,) = Path(folder).iterdir()
        shutil.copyfile(written, path)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponentially weighted, without the bias of its beginning."""
    decay = 1 - 1 / max(SMOOTHED_SHARE * len(values), 1)
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        means.append(mean / weight)
    return means


def _finish(axes: Axes, *, kept: int) -> None:
    axes.axvline(kept, color="tab:green", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
