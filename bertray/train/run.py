"""The training job, read top to bottom.

bertray train configs/demo/train.yaml
ray job submit -- python jobs/train.py configs/demo/train.yaml

labels -> split -> augment, tokenize (Ray Data) -> workers (Ray Train) -> best checkpoint -> bundle
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
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

from bertray import cluster, storage
from bertray.cluster import Resources
from bertray.config import Scaling, TrainConfig
from bertray.errors import BertrayError, ConfigError, DataError
from bertray.train import lineage as folder
from bertray.train import loop
from bertray.train.data import encode
from bertray.train.job import Job, prepare
from bertray.train.loop import Epoch, WorkerJob, train_worker
from bertray.train.loss import make_loss
from bertray.train.outcome import TrainSummary, read_summary, write_bundle, write_course
from bertray.train.steps import Step
from bertray.train.tracking import Tracker, tracked

__all__ = ["Epoch", "Event", "Start", "Step", "TrainSummary", "train"]

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
    if job is None:
        folder.finish(config.output.path)
        return read_summary(config.output.path)
    with tracked(config, job.lineage) as tracker:
        return fine_tune(job, tracker=tracker, on_progress=on_progress)


def fine_tune(
    job: Job, *, tracker: Tracker | None, on_progress: Callable[[Event], None]
) -> TrainSummary:
    """Train what has been prepared, and publish the bundle. Raises what `train` does."""
    config = job.config
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

    def tell(event: Event) -> None:
        on_progress(event)
        if tracker is not None:
            tracker.update(event)

    worker_job = WorkerJob(
        base=job.base,
        task=job.labelled.task,
        scale=job.labelled.scale,
        labels=job.labelled.labels,
        metric=job.metric,
        optim=config.optim,
        training=config.training,
        calibration=config.calibration.method,
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
        strategy=config.scaling.strategy,
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
        result = fit(trainer, events=events, on_progress=tell)
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
        steps = steps_of(result)
        write_course(Path(made), steps, job=job, summary=summary)
        if tracker is not None:
            tracker.finish(Path(made), steps, summary)
        folder.publish(Path(made), config.output.path)
    return summary


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


def steps_of(result: Result) -> list[Step]:
    """The optimizer steps of the whole training; the latest checkpoint knows them all."""
    latest: Any = result.checkpoint
    with latest.filesystem.open_input_stream(f"{latest.path}/{loop.STEPS}") as file:
        return loop.read_steps(file.read().decode())
