"""What a person sees: progress that is true, and a summary to read.

On a terminal one live line; elsewhere (a log, a job) a plain line at most every half minute.
"""

import logging
import time
from typing import TYPE_CHECKING, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bertray.config import EvaluateConfig, ScoreConfig, TrainConfig
    from bertray.doctor import Finding
    from bertray.evaluate.evaluation import Evaluation
    from bertray.nightly.run import Outcome
    from bertray.report.explain import Explanation
    from bertray.report.run import Report
    from bertray.score.lease import Holder
    from bertray.score.status import Status
    from bertray.score.summary import Progress, Summary
    from bertray.train.run import Event, TrainSummary, Trial

logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0
MOST_LABELS = 12
MOST_NAMES = 6
FAINTEST, STRONG = 0.08, 0.5  # of the strongest word's attribution


def _facts(title: str) -> Table:
    table = Table(
        title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


class View:
    """One live line on a terminal, kept up to date by a job; nothing elsewhere."""

    def __init__(self, what: str, *, unit: str) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[note]}· elapsed"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.task = self.bar.add_task(f"{what}: preparing", total=None, unit=unit, note="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, table: Table) -> None:
        """Print a summary on stdout, below what the live line leaves."""
        self.bar.stop()
        Console().print(table)


class TrainView(View):
    """Steps done of all steps, the loss, and a line for each epoch; of a search trials instead."""

    def __init__(self) -> None:
        super().__init__("training", unit="steps")
        self._num_epochs = 0
        self._num_trials = 0
        self._trials: list[Trial] = []

    def update(self, event: "Event") -> None:
        """Show one thing that happened in training."""
        from bertray.train.run import Epoch, Start, Step, Trial, TrialEpoch

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
            case Step():
                self.bar.update(
                    self.task,
                    description="training",
                    completed=event.step,
                    total=event.num_steps,
                    note=f"· loss {event.loss:.3f} ",
                )
            case Epoch():
                logger.info(
                    "epoch=%d/%d train_loss=%.4f %s tokens_per_s=%.0f",
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
        table = _facts(f"trained {config.output.path}")
        if not summary.is_new:
            table.add_row("trained now", "no: the bundle of this model, data and settings is there")
        table.add_row("rows", f"{summary.num_rows:,} ({summary.num_validation_rows:,} validation)")
        for method, count in summary.copies.items():
            table.add_row("of these, copies", f"{count:,} by {method}")
        if summary.num_rows_left_out:
            table.add_row("left out, no text", f"{summary.num_rows_left_out:,}")
        table.add_row("labels", escape(", ".join(summary.labels[:MOST_LABELS])))
        table.add_row("best epoch", f"{summary.best_epoch} of {len(summary.epochs)}")
        for name, value in summary.metrics.items():
            table.add_row(f"validation {name}", f"{value:.4f}")
        if (calibration := summary.kept.calibration) is not None:
            before, after = calibration["ece_before"], calibration["ece_after"]
            found = f"{before:.4f}, with {calibration['method']} scaling {after:.4f}"
            table.add_row("calibration error", found)
        table.add_row("tokens/s", f"{summary.tokens_per_s:,.0f}")
        table.add_row("time", _duration(summary.seconds))
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


class ScoreView(View):
    """Rows done of rows known, rows a second, time left; elsewhere a log line at times."""

    def __init__(self, what: str) -> None:
        super().__init__(what, unit="rows")
        self._what = what
        self._start: tuple[float, int] | None = None
        self._said = time.monotonic()

    def update(self, progress: "Progress") -> None:
        """Show how far the run is."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, progress.num_rows_done
        began, rows_then = self._start
        rate = (progress.num_rows_done - rows_then) / (now - began) if now > began else 0.0
        self.bar.update(
            self.task,
            description=self._what,
            completed=progress.num_rows_done,
            total=progress.num_rows,
            note=f"· {rate:,.0f} rows/s " if rate else "",
        )
        if not self.live and now - self._said >= LOG_EVERY_S:
            self._said = now
            logger.info(
                "%s rows=%d/%d splits=%d/%d rows_per_s=%.0f",
                self._what,
                progress.num_rows_done,
                progress.num_rows,
                progress.num_splits_done,
                progress.num_splits,
                rate,
            )

    def wait(self, holder: "Holder") -> None:
        """Say for whom the run waits."""
        logger.warning(
            "another run is at work on this output (%s, process %d, since %s); waiting for its end",
            holder.host,
            holder.pid,
            holder.started,
        )

    def finish_score(self, summary: "Summary", config: "ScoreConfig") -> None:
        """What stands in the output folder, and what this run did for it."""
        table = _facts(f"scored into {config.output.path}")
        table.add_row("rows", f"{summary.num_rows:,}")
        if summary.num_rows_scored:
            table.add_row("of these scored now", f"{summary.num_rows_scored:,}")
            table.add_row("rows/s", f"{summary.num_rows_scored / summary.seconds:,.0f}")
            table.add_row("tokens/s", f"{summary.stats['num_tokens'] / summary.seconds:,.0f}")
            table.add_row("time", _duration(summary.seconds))
            for name, value in summary.stages().items():
                table.add_row(name, value)
        else:
            done = "every shard was done already" if not summary.seconds else "no shard held rows"
            table.add_row("of these scored now", f"none: {done}")
        for label, count in summary.label_counts.most_common(MOST_LABELS):
            table.add_row(escape(f"labelled {label}"), f"{count:,}")
        rest = len(summary.label_counts) - MOST_LABELS
        if rest > 0:
            table.add_row("labelled otherwise", f"{rest} more labels")
        for status, count in summary.status_counts.items():
            if status == "abstained":
                table.add_row("abstained", f"{count:,} ({count / summary.num_rows:.1%})")
            elif status != "ok":
                table.add_row(escape(f"not scored: {status}"), f"{count:,}")
        self.show(table)
        for shard in summary.quarantined:
            self.console.print(
                f"quarantined: {shard['shard']}: {shard['reason']}", style="red", markup=False
            )

    def finish_evaluate(self, result: "Evaluation", config: "EvaluateConfig") -> None:
        """The metrics, and where they were written."""
        table = _facts(f"evaluated {config.model.path} on {config.data.path}")
        table.add_row("rows", f"{result.num_rows:,}")
        for reason, count in result.left_out.items():
            table.add_row(escape(f"left out: {reason}"), f"{count:,}")
        for name, value in result.metrics.items():
            interval = result.intervals.get(name)
            between = f"  ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            table.add_row(name, f"{value:.4f}{between}")
        if result.copy is not None:
            copy, before = result.copy, result.metrics
            table.add_row("calibrated copy", escape(copy.path))
            for name, value in copy.metrics.items():
                table.add_row(f"its {name}", f"{value:.4f}, was {before[name]:.4f}")
        if result.verdict is not None:
            verdict = result.verdict
            said = "promoted" if verdict.is_passed else "refused"
            table.add_row("gate", escape(f"{verdict.version} {said}"))
            for rule in verdict.rules:
                mark = "" if rule.holds else "[bold red]broken[/] "
                table.add_row("", f"{mark}{escape(str(rule))}")
        table.add_row("written to", escape(config.output.path))
        self.show(table)

    def finish_night(self, outcome: "Outcome") -> None:
        """What the night brought, and where to read of it."""
        night = outcome.night
        if night is None:
            table = _facts("nothing new: every shard was scored and reported before")
        else:
            table = _facts(f"night {night.id}")
            table.add_row("new rows", f"{night.num_rows_new:,} of {night.num_rows:,}")
            table.add_row("model", escape(night.model))
            table.add_row("time", _duration(night.seconds))
            table.add_row("verdict", escape(night.trouble or "all well"))
            for note in night.notes:
                table.add_row("", escape(note))
        table.add_row("page", escape(outcome.page))
        table.add_row("all nights", escape(outcome.index))
        self.show(table)


def show_status(status: "Status") -> None:
    """Print where the work on an output folder stands, and what a run would do."""
    console = Console()
    table = _facts(f"{status.output}, scored from {status.input}")
    table.add_row("model", escape(status.model))
    table.add_row("done", f"{status.num_rows_done:,} of {status.num_rows:,} rows")
    table.add_row("", f"{status.num_splits_done:,} of {status.num_splits:,} splits")
    for reason, count in status.bad_rows.items():
        table.add_row(escape(f"no prediction: {reason}"), f"{count:,}")
    if status.holder is not None:
        holder = status.holder
        at_work = f"{holder.host}, process {holder.pid}, since {holder.started}"
        table.add_row("at work", escape(at_work))
    table.add_row("a run would", escape(_next_step(status)))
    console.print(table)
    bad = [f"quarantined: {shard.shard}: {shard.reason}" for shard in status.quarantined]
    _print_some(console, bad, style="red")
    for what, names in (
        ("its shard has changed", status.stale),
        ("its shard is cut otherwise now", status.outdated),
        ("its shard is gone; output.prune=true removes it", status.vanished),
    ):
        _print_some(console, [f"{name}: {what}" for name in names], style="yellow")


def _print_some(console: Console, lines: list[str], *, style: str) -> None:
    """The first lines, and how many more there are: a screen holds no more."""
    for line in lines[:MOST_NAMES]:
        console.print(line, style=style, markup=False)
    if len(lines) > MOST_NAMES:
        console.print(f"... and {len(lines) - MOST_NAMES:,} more", style=style)


def _next_step(status: "Status") -> str:
    """What a run would do, in words."""
    rows = status.num_rows - status.num_rows_done
    splits = status.num_splits - status.num_splits_done
    if splits:
        time_needed = f", about {_duration(status.seconds)}" if status.seconds is not None else ""
        return f"score {rows:,} rows in {splits:,} splits{time_needed}"
    if status.quarantined:
        return "try the quarantined shards again"
    if status.outdated or not status.complete:
        return "write the manifest and _SUCCESS"
    return "do nothing: all is done"


def show_report(report: "Report") -> None:
    """Print what drifted, and where the page lies."""
    table = _facts(f"report on {report.num_rows:,} rows")
    if report.num_quarantined:
        table.add_row("shards left out", f"{report.num_quarantined:,}")
    for one in report.verdicts:
        found = f"{one.divergence:.4f} bits, threshold {one.threshold:.4f}"
        table.add_row(one.signal, f"[yellow]drifted[/]: {found}" if one.drifted else found)
    if report.num_examples:
        table.add_row("rows explained", f"{report.num_examples:,}")
    table.add_row("page", escape(report.page))
    Console().print(table)


def show_explanation(explanation: "Explanation", texts: "Sequence[str]") -> None:
    """Print the texts, words that speak for the label in green, those against it in red."""
    console = Console()
    strongest = max((abs(word.attribution) for word in explanation.words), default=0.0)
    for side, text in enumerate(texts):
        shown = Text(text)
        for word in explanation.words:
            share = abs(word.attribution) / strongest if strongest else 0.0
            if word.of_pair == bool(side) and share >= FAINTEST:
                colour = "green" if word.attribution > 0 else "red"
                weight = "bold " if share >= STRONG else ""
                shown.stylize(f"{weight}{colour}", word.start, word.end)
        console.print(shown)
    table = _facts("")
    table.add_row("label", f"{escape(explanation.label)}, {explanation.probability:.4g}")
    words = sorted(explanation.words, key=lambda word: -abs(word.attribution))[:MOST_NAMES]
    listed = ", ".join(f"{word.text} {word.attribution:+.2f}" for word in words)
    table.add_row("strongest words", escape(listed))
    change = explanation.value - explanation.baseline
    table.add_row("all words together", f"{change:+.3f}, against a text of masks")
    if not explanation.complete:
        table.add_row("off that by", f"{explanation.gap:+.3f} after {explanation.num_steps} steps")
    if not explanation.whole:
        table.add_row("not read", "what is behind the longest input of the model")
    console.print(table)


def show_findings(findings: "Iterable[Finding]") -> bool:
    """Print each finding as it comes; False if one of them would fail a job."""
    console = Console()
    fine = True
    for finding in findings:
        fine = fine and finding.ok
        mark, style = ("ok", "green") if finding.ok else ("!!", "bold red")
        console.print(
            f"{mark}  {finding.what}: {finding.found}", style=style, highlight=False, markup=False
        )
        if finding.advice:
            console.print(f"    {finding.advice}", highlight=False, markup=False)
    return fine
