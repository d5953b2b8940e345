"""The training job, read top to bottom.

bertray train configs/demo/train.yaml
ray job submit -- python jobs/train.py configs/demo/train.yaml

labels -> split -> augment, tokenize (Ray Data) -> workers (Ray Train) -> best checkpoint -> bundle
                                                -> trials (Ray Tune) of such -> the best one's ->
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray

from bertray import cluster
from bertray.config import TrainConfig
from bertray.lease import Holder, hold, read_holder
from bertray.model.backend import Device
from bertray.train import lineage as folder
from bertray.train.data import encode
from bertray.train.job import Job, is_done, prepare
from bertray.train.outcome import (
    TrainSummary,
    read_summary,
    write_bundle,
    write_course,
)
from bertray.train.search import Trial, TrialEpoch
from bertray.train.state import Epoch, Resumed
from bertray.train.steps import Step
from bertray.train.tracking import Tracker, tracked
from bertray.train.workers import (
    best_checkpoint,
    history_of,
    plan_run,
    plan_scaling,
    result_of,
    share_out,
    steps_of,
    train_on_workers,
)

__all__ = [
    "Epoch",
    "Event",
    "Resumed",
    "Start",
    "Step",
    "TrainSummary",
    "Trial",
    "TrialEpoch",
    "train",
]


@dataclass(frozen=True)
class Start:
    """The inputs are checked; the cluster comes next.

    Attributes:
        num_rows: to train on.
        num_validation_rows: to validate on.
        max_copies: that augmentation adds to the rows to train on.
        labels: label names in label-id order.
        num_epochs: to be done, all in all; of each trial at most.
        num_trials: of a search; 0 without one.
    """

    num_rows: int
    num_validation_rows: int
    max_copies: int
    labels: tuple[str, ...]
    num_epochs: int
    num_trials: int


Event = Start | Resumed | Step | Epoch | TrialEpoch | Trial


def train(
    config: TrainConfig,
    *,
    on_progress: Callable[[Event], None] = lambda event: None,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> TrainSummary:
    """Fine-tune, and put the model that validation likes best at ``output.path``.

    A bundle of the same model, data and settings is left as it is, and its summary returned.

    Args:
        config: of the job.
        on_progress: called with what has happened.
        on_wait: called when another run is at work on the output, before waiting for it.

    Raises:
        UserError: the config, the model, the data or the output folder cannot be used; found
            before a cluster starts, but for a loss that is not finite and texts that are blank.
        BertrayError: the workers were lost more often than is made up for.
    """
    job, output = prepare(config), config.output.path
    if job is None:
        if read_holder(output) is None:  # nobody is at work on what is to take its place
            folder.finish(output)
        return read_summary(output)
    with hold(output, on_wait=on_wait) as waited:
        if waited:  # what the other run did is done
            job = prepare(config)
        if job is not None and not is_done(job):
            with tracked(config, job.lineage) as tracker:
                return fine_tune(job, tracker=tracker, on_progress=on_progress)
        folder.finish(output)
    return read_summary(output)


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
            num_epochs=max(one.config.training.num_epochs for one in job.trainings),
            num_trials=len(job.trials),
        )
    )
    folder.begin(config.output.path, job.lineage)
    start = time.perf_counter()
    resources = cluster.connect(dashboard=True)
    at_once, scaling = share_out(config.search, config.scaling, resources)
    workers = plan_scaling(scaling, resources, at_once=at_once)
    device: Device = "cuda" if workers.use_gpu else "cpu"
    training, validation, copies = encode(
        job.labelled,
        data=config.data,
        base=job.base,
        augmenter=job.augmenter,
        resources=resources,
        teacher=job.teacher_on(device),
        num_gpus=max(int(resources.num_gpus), scaling.max_workers) if workers.use_gpu else 0,
    )
    examples = ray.put((training, validation))
    runs = [
        plan_run(one, training=training, examples=examples, scaling=scaling, workers=workers)
        for one in job.trainings
    ]

    def tell(event: Event) -> None:
        on_progress(event)
        if tracker is not None:
            tracker.update(event)

    if job.trials:
        from bertray.train.trials import run_trials  # Ray Tune takes a second

        trials = run_trials(job, runs, at_once=at_once, on_progress=tell)
        best = trials[0].number - 1
        job, result = job.trials[best], result_of(runs[best].config)
    else:
        trials, result = [], train_on_workers(runs[0], on_progress=tell)
    checkpoint, at_best = best_checkpoint(result)
    summary = TrainSummary(
        epochs=tuple(history_of(result)),
        best_epoch=at_best["history"][-1]["epoch"],
        labels=job.labelled.labels,
        num_rows=len(training),
        num_validation_rows=len(validation),
        num_rows_left_out=len(job.labelled.targets)
        - (len(training) - sum(copies.values()) + len(validation)),
        seconds=time.perf_counter() - start,
        copies=copies,
        trials=tuple(trials),
        device=device,
    )
    with checkpoint.as_directory() as weights, tempfile.TemporaryDirectory() as made:
        write_bundle(Path(made), weights=Path(weights), job=job, summary=summary)
        steps = steps_of(result)
        write_course(Path(made), steps, job=job, summary=summary)
        if tracker is not None:
            tracker.finish(Path(made), steps, summary)
        folder.publish(Path(made), config.output.path)
    return summary
