"""The training job, read top to bottom.

bertray train configs/demo/train.yaml
ray job submit -- python jobs/train.py configs/demo/train.yaml

labels -> split -> augment, tokenize (Ray Data) -> workers (Ray Train) -> best checkpoint -> bundle
"""

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from typing import Any

import pyarrow.fs
import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from transformers import PreTrainedModel

from bertray import cluster, storage
from bertray.cluster import Resources
from bertray.config import Scaling, TrainConfig, dump_config
from bertray.errors import BertrayError, ConfigError, DataError
from bertray.model.backend import Device
from bertray.model.bundle import (
    Bundle,
    Manifest,
    load_tokenizer,
    open_bundle,
    package_versions,
    save_bundle,
)
from bertray.text.long import LongText
from bertray.train import lineage as folder
from bertray.train import loop
from bertray.train.augment import Augmenter, choose_rows, load_rewrite, open_augmenter
from bertray.train.base import Base, folder_of, load_base, load_checkpoint, open_base
from bertray.train.curves import draw_curves
from bertray.train.data import encode
from bertray.train.labels import Labelled, list_shards, read_labels
from bertray.train.layers import freeze, num_frozen
from bertray.train.loop import Epoch, WorkerJob, train_worker
from bertray.train.loss import make_loss
from bertray.train.measure import metric_of
from bertray.train.optim import parameter_groups
from bertray.train.steps import Step
from bertray.train.teacher import KEY as TEACHER
from bertray.train.teacher import Teacher, make_teacher

__all__ = ["Epoch", "Event", "Start", "Step", "TrainSummary", "train"]

CONFIG, SUMMARY = "_config.yaml", "_training.json"
STEPS, CURVES = "_steps.jsonl", "_curves.png"
MAX_FAILURES = 3  # times that a lost worker sends all of them back to the last epoch
CPU_SHARE = 0.8  # of the cluster that workers reserve on CPU; the rest is for Ray's own tasks


@dataclass(frozen=True)
class Start:
    """The inputs are checked; the cluster comes next.

    Attributes:
        num_rows: to train on.
        num_validation_rows: to validate on.
        max_copies: that augmentation adds to the rows to train on.
        labels: label names in label-id order.
        num_epochs: to be done, all in all.
    """

    num_rows: int
    num_validation_rows: int
    max_copies: int
    labels: tuple[str, ...]
    num_epochs: int


Event = Start | Step | Epoch


@dataclass(frozen=True)
class TrainSummary:
    """What a bundle's training was.

    Attributes:
        epochs: in order; those of an interrupted attempt included.
        best_epoch: the one whose weights were kept, counted from 1.
        labels: label names in label-id order.
        num_rows: trained on, copies included.
        num_validation_rows: validated on.
        num_rows_left_out: held no text.
        seconds: wall clock of the run that finished it, from the cluster's start on.
        copies: of ``num_rows``, how many each method of augmentation has made.
        is_new: False if the bundle was there already.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    labels: tuple[str, ...]
    num_rows: int
    num_validation_rows: int
    num_rows_left_out: int
    seconds: float
    copies: dict[str, int] = field(default_factory=dict)
    is_new: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """Of the validation rows, at the epoch that was kept."""
        return self.epochs[self.best_epoch - 1].metrics

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained on, padding not counted, by the seconds of the optimizer steps."""
        seconds = sum(epoch.seconds for epoch in self.epochs)
        return sum(epoch.num_tokens for epoch in self.epochs) / seconds


@dataclass(frozen=True)
class Job:
    """A training whose inputs have been checked; the metric is the one that picks an epoch."""

    config: TrainConfig
    base: Base
    lineage: dict[str, str]
    labelled: Labelled
    metric: str
    augmenter: Augmenter | None
    teacher: Bundle | None

    def teacher_on(self, device: Device) -> Teacher | None:
        """How the teacher is computed.

        Raises:
            ConfigError: its labels are not those of the rows.
        """
        if self.teacher is None:
            return None
        return make_teacher(
            self.teacher, task=self.labelled.task, labels=self.labelled.labels, device=device
        )

    @property
    def max_copies(self) -> int:
        """Rows that augmentation adds at most."""
        if self.augmenter is None:
            return 0
        return self.augmenter.num_copies * len(choose_rows(self.labelled, self.augmenter))


def train(
    config: TrainConfig, *, on_progress: Callable[[Event], None] = lambda event: None
) -> TrainSummary:
    """Fine-tune, and put the best epoch's model at ``output.path``.

    A bundle of the same model, data and settings is left as it is, and its summary returned.

    Raises:
        UserError: the config, the model, the data or the output folder cannot be used; found
            before a cluster starts, but for a loss that is not finite and texts that are blank.
        BertrayError: the workers were lost more often than is made up for.
    """
    job = prepare(config)
    if isinstance(job, TrainSummary):
        return job
    held = int(job.labelled.is_validation.sum())
    on_progress(
        Start(
            num_rows=len(job.labelled.targets) - held,
            num_validation_rows=held,
            max_copies=job.max_copies,
            labels=job.labelled.labels,
            num_epochs=config.training.num_epochs,
        )
    )
    folder.begin(config.output.path, job.lineage)
    start = time.perf_counter()
    resources = cluster.connect(dashboard=True)
    scaling = plan_scaling(config.scaling, resources)
    runs_models = job.teacher is not None or (
        job.augmenter is not None and job.augmenter.runs_models
    )
    training, validation, copies = encode(
        job.labelled,
        data=config.data,
        base=job.base,
        augmenter=job.augmenter,
        num_cpus=resources.num_cpus,
        teacher=job.teacher_on("cuda" if scaling.use_gpu else "cpu"),
        num_gpus=1 if scaling.use_gpu and runs_models else 0,
    )
    events = Queue(actor_options={"num_cpus": 0})
    worker_job = WorkerJob(
        base=job.base,
        task=job.labelled.task,
        scale=job.labelled.scale,
        labels=job.labelled.labels,
        metric=job.metric,
        optim=config.optim,
        training=config.training,
        loss=make_loss(
            config.training,
            task=job.labelled.task,
            labels=job.labelled.labels,
            targets=training.targets,
            scale=job.labelled.scale,
            distillation=config.distillation,
        ),
        pieces=job.labelled.pieces,
        num_threads=config.scaling.num_threads,
        max_workers=config.scaling.max_workers,
        examples=ray.put((training, validation)),
        events=events,
    )
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # what it returns comes back in the result
        train_loop_config={"job": worker_job},
        scaling_config=scaling,
        run_config=run_config(job),
    )
    try:
        result = fit(trainer, events=events, on_progress=on_progress)
    finally:
        events.shutdown()
    checkpoint, at_best = best_checkpoint(result)
    summary = TrainSummary(
        epochs=tuple(Epoch(**epoch) for epoch in (result.metrics or {})["history"]),
        best_epoch=len(at_best["history"]),
        labels=job.labelled.labels,
        num_rows=len(training),
        num_validation_rows=len(validation),
        num_rows_left_out=len(job.labelled.targets)
        - (len(training) - sum(copies.values()) + len(validation)),
        seconds=time.perf_counter() - start,
        copies=copies,
    )
    with checkpoint.as_directory() as weights, tempfile.TemporaryDirectory() as made:
        write_bundle(Path(made), weights=Path(weights), job=job, summary=summary)
        write_course(Path(made), steps_of(result), summary, metric=job.metric)
        folder.publish(Path(made), config.output.path)
    return summary


def prepare(config: TrainConfig) -> Job | TrainSummary:
    """Look at everything that can be wrong, without a cluster; a summary if all is done."""
    output = config.output
    shards = list_shards(config.data)
    base = open_base(config.model, LongText(**config.text.model_dump()))
    augmenter = open_augmenter(config.augmentation, seed=config.training.seed)
    named = config.distillation.teacher
    teacher = open_bundle(named, key=TEACHER) if named is not None else None
    lineage = folder.lineage_of(
        config, base=base, data_digest=shards.digest, augmenter=augmenter, teacher=teacher
    )
    found = folder.find_equal(output.path, lineage, base=config.model.base, replace=output.replace)
    if found is not None:
        folder.finish(output.path)
        return read_summary(output.path)
    training = config.training
    labelled = read_labels(shards, config.data, seed=training.seed, task=training.task)
    metric = metric_of(training, labelled.task)
    check(config, load_base(base, labels=labelled.labels, seed=0, task=labelled.task), labelled)
    if augmenter is not None:
        for method in config.augmentation.methods:
            load_rewrite(augmenter, method)
    job = Job(config, base, lineage, labelled, metric, augmenter, teacher)
    job.teacher_on("cpu")  # its labels are looked at here
    return job


def check(config: TrainConfig, model: PreTrainedModel, labelled: Labelled) -> None:
    """Find here, not in every worker, what the model or the labels do not allow.

    Raises:
        ConfigError: layers or labels are named that are not there, or the loss cannot be had.
    """
    training = config.training
    num_layers = model.config.num_hidden_layers
    freeze(model, num_layers=num_frozen(training, epoch=0, num_layers=num_layers))
    freeze(model, num_layers=training.freeze_layers)
    parameter_groups(model, config.optim)
    make_loss(
        training,
        task=labelled.task,
        labels=labelled.labels,
        targets=labelled.targets,
        scale=labelled.scale,
    )


def plan_scaling(scaling: Scaling, resources: Resources) -> ScalingConfig:
    """One GPU a worker where the cluster has enough, else shares of its CPUs.

    Workers that would not fit side by side reserve less than a CPU each: slow, but it runs. Of
    elastic ones that holds for the fewest there may be.

    Raises:
        ConfigError: GPUs are wanted, and the cluster has fewer than workers.
    """
    wanted = scaling.num_workers
    fewest, share = (wanted, CPU_SHARE) if isinstance(wanted, int) else (wanted[0], 1.0)
    enough = resources.num_gpus >= fewest
    if scaling.use_gpu is True and not enough:
        raise ConfigError(
            f"scaling.use_gpu=true, scaling.num_workers={wanted}: the cluster has "
            f"{resources.num_gpus:g} GPUs; set fewer workers, or scaling.use_gpu=auto"
        )
    cpus = min(float(scaling.num_threads or 1), share * resources.num_cpus / fewest)
    return ScalingConfig(
        num_workers=wanted,  # type: ignore[arg-type]  # v2's own
        use_gpu=enough and scaling.use_gpu is not False,
        resources_per_worker={"CPU": math.floor(cpus) if cpus > 1 else cpus},
    )


def run_config(job: Job) -> RunConfig:
    """Checkpoints below the output folder: the best one and the latest."""
    output = storage.absolute(job.config.output.path)
    fs, path = storage.resolve(storage.join(output, folder.RUN))
    remote = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return RunConfig(
        name=folder.run_name(job.lineage),
        storage_path=path,
        storage_filesystem=None if storage.is_local(output) else remote,
        failure_config=FailureConfig(max_failures=MAX_FAILURES),
        checkpoint_config=CheckpointConfig(
            num_to_keep=1,
            checkpoint_score_attribute=loop.SCORE,
            checkpoint_score_order="max",
        ),
        logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # v2's own
    )


def fit(trainer: TorchTrainer, *, events: Queue, on_progress: Callable[[Event], None]) -> Result:
    """Run the workers to the end, passing on what they say meanwhile.

    Raises:
        DataError: the loss came to be not finite.
        BertrayError: the workers failed; of an error of ours that one.
    """
    outcome: Future[Result] = Future()

    def work() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    # Not in this thread: it hands on events, and a user's interrupt must reach it.
    threading.Thread(target=work, daemon=True).start()
    while not (outcome.done() and events.empty()):
        try:
            on_progress(events.get(timeout=0.5))
        except Empty:
            continue
    try:
        result = outcome.result()
    except TrainingFailedError as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        for failure in failures:
            if isinstance(failure, BertrayError):
                raise failure from error
        said = str(failures[0] if failures else error).strip().splitlines()
        raise BertrayError(
            f"training failed {MAX_FAILURES + 1} times: {said[-1] if said else error}; "
            "the same command goes on after the last epoch that was done"
        ) from error
    if stopped := result.return_value:  # type: ignore[attr-defined]  # v2's own
        raise DataError(stopped)
    return result


def best_checkpoint(result: Result) -> tuple[Any, dict[str, Any]]:
    """The checkpoint to keep, and what was reported with it."""
    of_epochs = [pair for pair in result.best_checkpoints or () if loop.SCORE in pair[1]]
    return max(of_epochs, key=lambda pair: float(pair[1][loop.SCORE]))


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
            thresholds=summary.epochs[summary.best_epoch - 1].thresholds,
            scale=asdict(scale) if (scale := job.labelled.scale) is not None else None,
            head=job.base.head,
        ),
    )
    (made / CONFIG).write_text(dump_config(job.config), encoding="utf-8")
    (made / SUMMARY).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")


def steps_of(result: Result) -> list[Step]:
    """The optimizer steps of the whole training; the latest checkpoint knows them all."""
    latest: Any = result.checkpoint
    with latest.filesystem.open_input_stream(f"{latest.path}/{loop.STEPS}") as file:
        return loop.read_steps(file.read().decode())


def write_course(made: Path, steps: Sequence[Step], summary: TrainSummary, *, metric: str) -> None:
    """Put each step as a line of JSON, and the curves, beside the model."""
    (made / STEPS).write_text(loop.write_steps(steps), encoding="utf-8")
    draw_curves(made / CURVES, steps, summary.epochs, metric=metric, best_epoch=summary.best_epoch)


def read_summary(output: str) -> TrainSummary:
    """The summary of a finished training."""
    stored: dict[str, Any] = storage.get_json(storage.join(output, SUMMARY)) or {}
    stored["epochs"] = tuple(Epoch(**epoch) for epoch in stored["epochs"])
    stored["labels"] = tuple(stored["labels"])
    return TrainSummary(**{**stored, "is_new": False})
