"""Ray Train's side of a training: which workers, where their checkpoints go, what came of them."""

import heapq
import logging
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty
from queue import Queue as LocalQueue
from typing import Any, TypeVar

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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bertray import storage
from bertray.cluster import Resources
from bertray.config import Scaling, Search
from bertray.errors import BertrayError, ClusterError, ConfigError, DataError
from bertray.train import lineage as folder
from bertray.train import loop
from bertray.train.examples import Examples
from bertray.train.job import Job
from bertray.train.loop import WorkerJob, train_worker
from bertray.train.loss import make_loss
from bertray.train.plan import next_validation, num_steps_per_epoch
from bertray.train.state import STEPS, Epoch, Resumed, read_steps
from bertray.train.steps import Step

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEVICE_IS_FULL = re.compile("out of memory|can't allocate memory", re.IGNORECASE)  # says torch
NODE_IS_FULL = re.compile("running low on memory")  # says Ray, of a process that it killed
RAY_UNITS = 10_000  # of a CPU: what Ray counts shares of one in, to the nearest
CPU_SHARE = 0.8  # of the cluster that workers reserve on CPU; the rest is for Ray's own tasks


@dataclass(frozen=True)
class Run:
    """A training as Ray Train is told of it. Small, so that it crosses to a trial's process."""

    worker_job: WorkerJob
    scaling: ScalingConfig
    config: RunConfig


def share_out(search: Search, scaling: Scaling, resources: Resources) -> tuple[int, Scaling]:
    """How many trials train at once, and what each of them has of the workers' settings.

    On CPU their threads together are as many as there are cores, unless the settings say otherwise.
    Without a search that is one training, which has all.
    """
    if not search.keys:
        return 1, scaling
    most, on_gpus = scaling.max_workers, takes_gpus(scaling, resources)
    if on_gpus:
        room = resources.num_gpus
    elif scaling.num_threads is not None:
        room = resources.num_cpus / scaling.num_threads
    else:
        room = resources.num_nodes
    count = min(search.max_concurrent or max(int(room // most), 1), search.num_trials)
    if scaling.num_threads is None and not on_gpus:
        threads = min(resources.num_cpus / count / most, resources.largest_node_cpus)
        scaling = scaling.model_copy(update={"num_threads": max(int(threads), 1)})
    return count, scaling


def plan_run(
    job: Job,
    *,
    training: Examples,
    examples: "ray.ObjectRef[tuple[Examples, Examples]]",
    scaling: Scaling,
    workers: ScalingConfig,
) -> Run:
    """Put together what the workers of a training get.

    Args:
        job: the training.
        training: its rows.
        examples: an object of them and of the rows for validation.
        scaling: as the config has it, or less of it where others train beside.
        workers: as `plan_scaling` has them.
    """
    config, labelled = job.config, job.labelled
    worker_job = WorkerJob(
        base=job.base,
        task=labelled.task,
        scale=labelled.scale,
        labels=labelled.labels,
        metric=job.metric,
        optim=config.optim,
        training=config.training,
        calibration=config.calibration.method,
        loss=make_loss(
            config.training,
            task=labelled.task,
            labels=labelled.labels,
            targets=training.targets,
            scale=labelled.scale,
            distillation=config.distillation,
        ),
        pieces=labelled.pieces,
        num_threads=scaling.num_threads,
        max_workers=scaling.max_workers,
        strategy=scaling.strategy,
        marker=storage.join(storage.absolute(job.config.output.path), folder.OWNER),
        examples=examples,
    )
    every = worker_job.training.validation_steps
    num_steps = num_steps_per_epoch(len(training), global_batch_size=worker_job.global_batch_size)
    if every and next_validation(0, steps_per_epoch=num_steps, every=every) == num_steps:
        logger.warning(
            "training.validation_steps=%d: an epoch has %d steps, and is validated at its end",
            every,
            num_steps,
        )
    num_steps *= worker_job.training.num_epochs
    if (config.optim.warmup_steps or 0) >= num_steps:
        logger.warning(
            "optim.warmup_steps=%d: there are %d steps, which end before the rate has risen",
            config.optim.warmup_steps,
            num_steps,
        )
    return Run(worker_job, workers, run_config(job))


def plan_scaling(scaling: Scaling, resources: Resources, *, at_once: int = 1) -> ScalingConfig:
    """One GPU a worker where the cluster has enough, else shares of its CPUs.

    All of them fit its nodes side by side, if need be with less than a CPU each: slow, but it runs.
    Of elastic ones that holds for the fewest there may be. Workers whose nodes have yet to come ask
    for all that they keep busy.

    Workers on CPU go to as many nodes as there are, where each has more cores to itself; those on
    GPUs to as few, for the links within a node are the fast ones.

    Args:
        scaling: of each training.
        resources: that they share.
        at_once: trainings side by side.

    Raises:
        ConfigError: GPUs are wanted, the cluster has none, and how many will come is not said.
    """
    wanted, use_gpu = scaling.num_workers, takes_gpus(scaling, resources)
    has_room = resources.num_gpus >= scaling.min_workers if use_gpu else resources.num_cpus > 0
    if use_gpu and not has_room:
        if "num_workers" not in scaling.model_fields_set:
            raise ConfigError(
                "scaling.use_gpu=true, but the cluster has no GPU now; set scaling.num_workers if "
                "GPU nodes will join, or scaling.use_gpu=auto to train on CPU"
            )
        logger.warning(
            "scaling.use_gpu=true, scaling.num_workers=%s: the cluster has %g GPUs now, and "
            "training waits for GPU nodes to join; if none will, set fewer workers or "
            "scaling.use_gpu=auto",
            wanted,
            resources.num_gpus,
        )
    if scaling.use_gpu == "auto" and not use_gpu and (resources.num_gpus or not has_room):
        logger.warning(
            "scaling.use_gpu=auto: the cluster has %g GPUs now, fewer than scaling.num_workers=%s, "
            "and training runs on CPU; set no more workers than GPUs, or scaling.use_gpu=true if "
            "GPU nodes will join",
            resources.num_gpus,
            wanted,
        )
    is_chosen = "num_workers" in scaling.model_fields_set
    if use_gpu and at_once == 1 < resources.num_gpus and not is_chosen:
        logger.info(
            "training on 1 of the cluster's %g GPUs; scaling.num_workers=%d takes all, and as many "
            "times the rows a step",
            resources.num_gpus,
            resources.num_gpus,
        )
    cpus = float(scaling.num_threads or 1)
    if has_room:
        num_workers = at_once * scaling.min_workers
        share = CPU_SHARE if isinstance(wanted, int) else 1.0
        largest = largest_share(resources, num_workers, on_gpus=use_gpu)
        cpus = min(cpus, largest, share * resources.num_cpus / num_workers)
    return ScalingConfig(
        num_workers=wanted,  # type: ignore[arg-type]  # v2's own
        use_gpu=use_gpu,
        resources_per_worker={"CPU": math.floor(cpus) if cpus > 1 else cpus},
        placement_strategy="PACK" if use_gpu else "SPREAD",
    )


def largest_share(resources: Resources, num_workers: int, *, on_gpus: bool) -> float:
    """The most CPUs that each worker can have of one node, so that all of them find a place.

    A node that gives k workers a place gives each at most a k-th of its CPUs. So of all nodes' and
    all k's such shares it is the last that is still needed for a place each.
    """
    shares = [
        node.num_cpus / k
        for node in resources.nodes
        for k in range(1, (min(int(node.num_gpus), num_workers) if on_gpus else num_workers) + 1)
    ]
    least = heapq.nlargest(num_workers, shares)[-1]
    # Ray rounds shares of a CPU, and of elastic workers divides by them: 2 // 0.2 is 9.
    return least if least >= 1 else math.nextafter(int(least * RAY_UNITS) / RAY_UNITS, 0)


def takes_gpus(scaling: Scaling, resources: Resources) -> bool:
    """Whether workers are to have GPUs: where there are enough, or where the config insists."""
    if scaling.use_gpu == "auto":
        return resources.num_gpus >= scaling.min_workers
    return scaling.use_gpu


def run_config(job: Job) -> RunConfig:
    """Checkpoints below the output folder: the best one and the latest."""
    output = storage.absolute(job.config.output.path)
    fs, path = storage.resolve(storage.join(output, folder.RUN))
    remote = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return RunConfig(
        name=folder.run_name(job.lineage),
        storage_path=path,
        storage_filesystem=None if storage.is_local(output) else remote,
        failure_config=FailureConfig(max_failures=job.config.scaling.max_failures),
        checkpoint_config=CheckpointConfig(
            num_to_keep=1,
            checkpoint_score_attribute=loop.SCORE,
            checkpoint_score_order="max",
        ),
        logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # v2's own
    )


def train_on_workers(
    run: Run, *, on_progress: Callable[[Resumed | Step | Epoch], None], orders: Queue | None = None
) -> Result:
    """Start the workers and see them to the end, from the latest checkpoint if there is one.

    Args:
        run: the training.
        on_progress: is told of each epoch, and of some steps.
        orders: where an `Order` is waited for after each epoch but the last; None to do them all.

    Raises:
        DataError: the loss came to be not finite.
        ConfigError: a worker's device ran out of memory.
        ClusterError: a node did.
        BertrayError: the workers failed; of an error of ours that one.
    """
    events = queue_here()
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # what it returns comes back in the result
        train_loop_config={"job": run.worker_job, "events": events, "orders": orders},
        scaling_config=run.scaling,
        run_config=run.config,
    )
    try:
        return fit(trainer, events=events, on_progress=on_progress)
    finally:
        events.shutdown()


def queue_here() -> Queue:
    """A queue on this process's node; one on a worker's would be lost with that."""
    here = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(here, soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": place})


def fit(
    trainer: TorchTrainer, *, events: Queue, on_progress: Callable[[Resumed | Step | Epoch], None]
) -> Result:
    """Run the workers to the end, passing on what they say meanwhile. Raises as above."""
    try:
        result = in_background(trainer.fit, events=events, on_event=on_progress)
    except TrainingFailedError as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        for failure in failures:
            if isinstance(failure, BertrayError):
                raise failure from error
        for failure in failures:
            if line := _line_with(DEVICE_IS_FULL, failure):
                raise ConfigError(
                    f"training ran out of memory: {line}; raise training.accumulation_steps (the "
                    "same steps in smaller passes) or set training.gradient_checkpointing=true, "
                    "and run again: it goes on after the latest checkpoint; or start over with a "
                    "lower model.max_length, or scaling.strategy=fsdp2 and more workers"
                ) from error
            if line := _line_with(NODE_IS_FULL, failure):
                raise ClusterError(
                    f"training ran out of memory: {line}; take nodes with more of it, or fewer "
                    "workers or trials on each (search.max_concurrent), and run again"
                ) from error
        raise BertrayError(
            f"training failed: {_last_line(failures[0] if failures else error)}; "
            "the same command goes on after the latest checkpoint"
        ) from error
    if stopped := result.return_value:  # type: ignore[attr-defined]  # v2's own
        raise DataError(stopped)
    return result


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _line_with(pattern: re.Pattern[str], error: Exception) -> str | None:
    return next((line for line in str(error).splitlines() if pattern.search(line)), None)


def in_background(
    work: Callable[[], T], *, events: Queue | LocalQueue[Any], on_event: Callable[[Any], None]
) -> T:
    """Do some work in a thread of its own, and pass on here what comes of it meanwhile.

    A user's interrupt, and what ``on_event`` raises, so end it in the thread that called.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not (outcome.done() and events.empty()):
        try:
            on_event(events.get(timeout=0.5))
        except Empty:
            continue
    return outcome.result()


def result_of(config: RunConfig) -> Result:
    """What the workers of this name came to.

    Raises:
        RuntimeError: they have left nothing, says Ray.
    """
    path = f"{config.storage_path}/{config.name}"
    return Result.from_path(path, storage_filesystem=config.storage_filesystem)


def earlier_epochs(config: RunConfig) -> list[Epoch]:
    """Those that an attempt of the same name has done before."""
    try:
        result = result_of(config)
    except RuntimeError:
        return []
    return history_of(result) if result.metrics else []


def history_of(result: Result) -> list[Epoch]:
    """What each validation found, in order."""
    return [Epoch(**epoch) for epoch in (result.metrics or {})["history"]]


def best_checkpoint(result: Result) -> tuple[Any, dict[str, Any]]:
    """The checkpoint to keep, and what was reported with it."""
    of_epochs = [pair for pair in result.best_checkpoints or () if loop.SCORE in pair[1]]
    return max(of_epochs, key=lambda pair: float(pair[1][loop.SCORE]))


def steps_of(result: Result) -> list[Step]:
    """The optimizer steps up to the last validation; the latest checkpoint knows them all."""
    latest: Any = result.checkpoint
    with latest.filesystem.open_input_stream(f"{latest.path}/{STEPS}") as file:
        return read_steps(file.read().decode())[: history_of(result)[-1].step]
