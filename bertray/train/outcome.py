"""What a training leaves: its bundle, the course it took, and a summary of both."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertray import storage
from bertray.config import dump_config
from bertray.model.backend import Device
from bertray.model.bundle import save_bundle
from bertray.model.manifest import Manifest, package_versions
from bertray.model.pretrained import load_tokenizer
from bertray.train.base import folder_of, load_checkpoint
from bertray.train.curves import draw_curves, write_events
from bertray.train.job import Job
from bertray.train.search import Trial
from bertray.train.state import Epoch, write_steps
from bertray.train.steps import Step

CONFIG, SUMMARY = "_config.yaml", "_training.json"
STEPS, CURVES, EVENTS = "_steps.jsonl", "_curves.png", "_curves.tfevents"
TRIALS = "_trials.jsonl"


@dataclass(frozen=True)
class TrainSummary:
    """What a bundle's training was.

    Attributes:
        epochs: or parts of them, in order; those of an interrupted attempt included.
        best_epoch: its number, whose weights were kept.
        labels: label names in label-id order.
        num_rows: trained on, copies included.
        num_validation_rows: validated on.
        num_rows_left_out: held no text.
        seconds: wall clock of the run that finished it, from the cluster's start on.
        copies: of ``num_rows``, how many each method of augmentation has made.
        trials: of a search, the best first: the one that all else is about.
        device: that the run which finished it trained on; None of bundles that do not tell.
        is_new: False if the bundle was there already.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: float
    labels: tuple[str, ...]
    num_rows: int
    num_validation_rows: int
    num_rows_left_out: int
    seconds: float
    copies: dict[str, int] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    device: Device | None = None
    is_new: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """Of the validation rows, at the epoch that was kept."""
        return self.kept.metrics

    @property
    def kept(self) -> Epoch:
        """The epoch whose weights were kept."""
        return next(one for one in self.epochs if one.epoch == self.best_epoch)

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained on, padding not counted, by the seconds of the optimizer steps."""
        seconds = sum(epoch.seconds for epoch in self.epochs)
        return sum(epoch.num_tokens for epoch in self.epochs) / seconds


def write_bundle(made: Path, *, weights: Path, job: Job, summary: TrainSummary) -> None:
    """Fill a local folder with the bundle."""
    save_bundle(
        made,
        model=load_checkpoint(weights, job.base),
        tokenizer=load_tokenizer(folder_of(job.base)),
        manifest=Manifest(
            labels=list(summary.labels),
            task=job.labelled.task,
            max_length=job.base.max_length,
            base=job.config.model.base,
            metrics=summary.metrics,
            lineage=job.lineage,
            versions=package_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            long_text=job.base.long_text,
            thresholds=summary.kept.thresholds,
            scale=asdict(scale) if (scale := job.labelled.scale) is not None else None,
            head=job.base.head,
            calibration=summary.kept.calibration,
            cutoffs=summary.kept.cutoffs,
        ),
    )
    (made / CONFIG).write_text(dump_config(job.config), encoding="utf-8")
    told = asdict(summary)
    trials = told.pop("trials")
    (made / SUMMARY).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if trials:
        lines = "".join(json.dumps(trial) + "\n" for trial in trials)
        (made / TRIALS).write_text(lines, encoding="utf-8")


def write_course(made: Path, steps: Sequence[Step], *, job: Job, summary: TrainSummary) -> None:
    """Put each step as a line of JSON, and the curves, beside the model."""
    (made / STEPS).write_text(write_steps(steps), encoding="utf-8")
    epochs = summary.epochs
    draw_curves(made / CURVES, steps, epochs, metric=job.metric, kept=summary.kept)
    if job.config.tracking.tensorboard:
        write_events(made / EVENTS, steps, epochs)


def read_summary(output: str) -> TrainSummary:
    """The summary of a finished training."""
    stored: dict[str, Any] = storage.get_json(storage.join(output, SUMMARY)) or {}
    stored["epochs"] = tuple(Epoch(**epoch) for epoch in stored["epochs"])
    stored["labels"] = tuple(stored["labels"])
    lines = (storage.get_bytes(storage.join(output, TRIALS)) or b"").decode().splitlines()
    stored["trials"] = tuple(Trial.from_json(json.loads(line)) for line in lines)
    return TrainSummary(**{**stored, "is_new": False})
