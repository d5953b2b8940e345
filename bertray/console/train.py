"""What `bertray train` shows."""

import logging
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from bertray.console.view import MOST_LABELS, Facts, View, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bertray.config import TrainConfig
    from bertray.train.run import Event, TrainSummary, Trial

logger = logging.getLogger(__name__)


class TrainView(View):
    """Steps done of all steps, the loss, and a line for each epoch; of a search trials instead."""

    def __init__(self) -> None:
        super().__init__("training", unit="steps")
        self._num_epochs = 0
        self._num_trials = 0
        self._trials: list[Trial] = []

    def update(self, event: "Event") -> None:
        """Show one thing that happened in training."""
        from bertray.train.run import Epoch, Resumed, Start, Step, Trial, TrialEpoch

        match event:
            case Start():
                self._num_epochs, self._num_trials = event.num_epochs, event.num_trials
                if event.num_trials:
                    self._show_trials()
                copies = f" copies<={event.max_copies}" if event.max_copies else ""
                logger.info(
                    "training rows=%d%s validation_rows=%d labels=%d",
                    event.num_rows,
                    copies,
                    event.num_validation_rows,
                    len(event.labels),
                )
            case Resumed():
                logger.info("training goes on after step %d of %d", event.step, event.num_steps)
            case Step():
                self.bar.update(
                    self.task,
                    description="training",
                    completed=event.step,
                    total=event.num_steps,
                    note=f"· loss {event.loss:.3f} ",
                )
                rate = self.rate(event.step)
                if self.is_line_due():
                    logger.info(
                        "training step=%d/%d loss=%.4f learning_rate=%.3g grad_norm=%s "
                        "steps_per_s=%.2f",
                        event.step,
                        event.num_steps,
                        event.loss,
                        event.learning_rate,
                        "none" if event.grad_norm is None else f"{event.grad_norm:.3g}",
                        rate,
                    )
            case Epoch():
                logger.info(
                    "epoch=%.4g/%d train_loss=%.4f %s tokens_per_s=%.0f",
                    event.epoch,
                    self._num_epochs,
                    event.train_loss,
                    _words(event.metrics),
                    event.num_tokens / event.seconds,
                )
            case TrialEpoch():
                logger.info(
                    "trial=%d/%d epoch=%d train_loss=%.4f %s",
                    event.number,
                    self._num_trials,
                    event.epoch.epoch,
                    event.epoch.train_loss,
                    _words(event.epoch.metrics),
                )
            case Trial():
                self._trials.append(event)
                self._show_trials()
                logger.info(
                    "trial=%d/%d %s epochs=%d %s %s",
                    event.number,
                    self._num_trials,
                    _outcome(event),
                    len(event.values),
                    _words(event.metrics),
                    " ".join(f"{key}={_value(it)}" for key, it in event.settings.items()),
                )

    def _show_trials(self) -> None:
        """Trials that have ended, of all, and the best so far."""
        from bertray.train.search import ranked

        best = ranked(self._trials)[0] if self._trials else None
        self.bar.update(
            self.task,
            description="searching",
            completed=len(self._trials),
            total=self._num_trials,
            unit="trials",
            note=f"· best {best.metric} {best.metrics[best.metric]:.4f} "
            if best is not None and best.metrics
            else "",
        )

    def finish(self, summary: "TrainSummary", config: "TrainConfig") -> None:
        """What the bundle is worth, and where it lies."""
        table = Facts(f"trained {config.output.path}")
        if not summary.is_new:
            table.add_row("trained now", "no: the bundle of this model, data and settings is there")
        table.add_row("rows", f"{summary.num_rows:,} ({summary.num_validation_rows:,} validation)")
        for method, count in summary.copies.items():
            table.add_row("of these, copies", f"{count:,} by {method}")
        if summary.num_rows_left_out:
            table.add_row("left out, no text", f"{summary.num_rows_left_out:,}")
        table.add_row("labels", escape(", ".join(summary.labels[:MOST_LABELS])))
        table.add_row("best epoch", f"{summary.best_epoch:.4g} of {summary.epochs[-1].epoch:.4g}")
        for name, value in summary.metrics.items():
            table.add_row(f"validation {name}", f"{value:.4f}")
        if (calibration := summary.kept.calibration) is not None:
            before, after = calibration["ece_before"], calibration["ece_after"]
            found = f"{before:.4f}, with {calibration['method']} scaling {after:.4f}"
            table.add_row("calibration error", found)
        if summary.device is not None:
            table.add_row("device", summary.device)
        table.add_row("tokens/s", f"{summary.tokens_per_s:,.0f}")
        table.add_row("time", duration(summary.seconds))
        self.show(table)
        if summary.trials:
            self.show(_table_of(summary.trials))


def _table_of(trials: "Sequence[Trial]") -> Table:
    """A search's trials in the order given, which is the best first."""
    table = Table(title="trials", title_justify="left", box=SIMPLE, pad_edge=False)
    keys = list(trials[0].settings)
    metric = trials[0].metric
    table.add_column("#", justify="right", style="dim")
    for key in keys:
        table.add_column(escape(key.partition(".")[2]), justify="right")
    for name in (metric, "epochs", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    for trial in trials:
        value = trial.metrics.get(metric)
        table.add_row(
            str(trial.number),
            *(escape(_value(trial.settings[key])) for key in keys),
            "" if value is None else f"{value:.4f}",
            str(len(trial.values)),
            f"{trial.seconds:,.1f}",
            escape(_outcome(trial)),
            style="bold" if trial is trials[0] else None,
        )
    return table


def _outcome(trial: "Trial") -> str:
    return f"failed: {trial.reason}" if trial.reason is not None else trial.status


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(metrics: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
