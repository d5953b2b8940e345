"""The scoring job, read top to bottom.

bertray score configs/demo/score.yaml
ray job submit -- python jobs/score.py configs/demo/score.yaml

shards -> splits -> SplitSource -> Classifier actors -> ShardSink -> receipts -> manifest
"""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from bertray import cluster, storage
from bertray.config import InferenceModel, ScoreConfig
from bertray.model.bundle import Bundle, load_model, open_bundle
from bertray.model.engine import resolve_settings
from bertray.schema import NOTHING_TO_SCORE, OK, append_predictions
from bertray.score import contract as folder
from bertray.score.classifier import Classifier, ClassifierSettings
from bertray.score.contract import Contract
from bertray.score.plan import Plan, Split, committed_splits, plan_splits
from bertray.score.pool import TASK_CPUS, PoolPlan, plan_pool
from bertray.score.sink import Receipt, ShardSink
from bertray.score.source import Reading, SplitSource, read_split

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # of an actor, and of a split in an actor that died


@dataclass(frozen=True)
class Progress:
    """How far a run is; rows count once their file stands in the output folder."""

    num_rows_done: int
    num_rows: int
    num_splits_done: int
    num_splits: int


@dataclass
class Summary:
    """What a run did, and what the output folder holds now.

    Attributes:
        num_rows: rows in the output folder.
        num_rows_scored: of these, rows that this run put there.
        stats: seconds and counts of this run's stages, added up over splits and actors.
        seconds: wall clock of this run's pipeline, actors' start included; 0 if nothing was to do.
        status_counts: rows by prediction status.
        label_counts: rows by predicted label.
        quarantined: shards that are not in the output, each with ``shard`` and ``reason``.
    """

    num_rows: int = 0
    num_rows_scored: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    status_counts: Counter[str] = field(default_factory=Counter)
    label_counts: Counter[str] = field(default_factory=Counter)
    quarantined: list[dict[str, str]] = field(default_factory=list)

    @property
    def num_rows_quarantined(self) -> int:
        """Rows that held a text and yet got no prediction."""
        harmless = {OK, *NOTHING_TO_SCORE}
        return sum(n for status, n in self.status_counts.items() if status not in harmless)


@dataclass(frozen=True)
class Job:
    """A run whose inputs have been checked."""

    config: ScoreConfig
    bundle: Bundle
    reading: Reading
    contract: Contract
    plan: Plan
    done: tuple[Receipt, ...]
    pending: tuple[Split, ...]


def score(
    config: ScoreConfig, *, on_progress: Callable[[Progress], None] = lambda progress: None
) -> Summary:
    """Score every row of the input that the output does not hold yet.

    Raises:
        UserError: the config, the model, the input or the output folder cannot be used; found
            before a cluster starts.
    """
    job = prepare(config)
    receipts = list(job.done)
    start = time.perf_counter()
    for receipt in run_pending(job):
        receipts.append(receipt)
        on_progress(
            Progress(
                num_rows_done=sum(receipt.num_rows for receipt in receipts),
                num_rows=job.plan.num_rows,
                num_splits_done=len(receipts),
                num_splits=len(job.plan.splits),
            )
        )
    seconds = time.perf_counter() - start if job.pending else 0.0
    quarantined = folder.complete(config.output.path, job.contract, job.plan, receipts)
    return summarize(receipts, new=receipts[len(job.done) :], seconds=seconds, bad=quarantined)


def prepare(config: ScoreConfig) -> Job:
    """Look at everything that can be wrong, without a cluster."""
    source, output = config.input, config.output
    folder.check_place(output.path, source.path)
    reading = Reading(source.text, source.text_pair, source.columns, output.prefix)
    plan = plan_splits(
        storage.absolute(source.path),
        check_schema=reading.check,
        max_split_rows=source.max_split_rows,
    )
    bundle = open_bundle(config.model.path)
    contract = folder.contract_of(config, bundle)
    folder.agree(output.path, contract, replace=output.replace)
    footers = committed_splits(
        plan.splits,
        output.path,
        model_digest=contract.model_digest,
        settings_digest=contract.settings_digest,
    )
    pending = tuple(split for split in plan.splits if split.id not in footers)
    if pending:
        load_model(bundle)  # a head that does not fit is found here, not in every actor
    done = tuple(
        Receipt.from_footer(split, footers[split.id])
        for split in plan.splits
        if split.id in footers
    )
    return Job(config, bundle, reading, contract, plan, done, pending)


def run_pending(job: Job) -> Iterator[Receipt]:
    """Score what is missing; one receipt a split, as its file is put in place."""
    if not job.pending:
        return
    folder.begin(job.config.output.path, job.config)
    resources = cluster.connect()
    filled = [split for split in job.pending if split.num_rows]
    pool = plan_pool(
        job.config.pool,
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
        num_splits=len(filled),
    )
    sink = ShardSink(
        output=storage.absolute(job.config.output.path),
        model_digest=job.contract.model_digest,
        settings_digest=job.contract.settings_digest,
        device=pool.device,
        prefix=job.reading.prefix,
    )
    for split in job.pending:
        if not split.num_rows:  # Ray Data hands on no empty blocks
            yield _commit_empty(split, job, sink)
    if filled:
        dataset = classified(
            filled, bundle=job.bundle, model=job.config.model, reading=job.reading, pool=pool
        ).map_batches(
            sink,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=TASK_CPUS,
            compute=_tasks(pool, len(filled)),
        )
        rows: Iterator[dict[str, str]] = iter(dataset.iter_rows())
        for row in cluster.unwrapped(rows):
            yield Receipt.from_json(row["receipt"])


def classified(
    splits: Sequence[Split],
    *,
    bundle: Bundle,
    model: InferenceModel,
    reading: Reading,
    pool: PoolPlan,
) -> Dataset:
    """Blocks with predictions, one a split: what both scoring and evaluation stream."""
    engine = resolve_settings(
        bundle,
        device=pool.device,
        max_length=model.max_length,
        dtype=model.dtype,
        max_batch_tokens=model.max_batch_tokens,
    )
    settings = ClassifierSettings(
        model=bundle.location,
        model_digest=bundle.digest,
        engine=engine,
        reading=reading,
        num_threads=pool.num_threads,
    )
    context = DataContext.get_current()
    context.target_max_block_size = None  # a split stays one block from read to write
    context.enable_progress_bars = False  # Ray counts blocks in flight; we count files put
    blocks = ray.data.read_datasource(
        SplitSource(splits, reading),
        num_cpus=TASK_CPUS,
        override_num_blocks=len(splits),
        compute=_tasks(pool, len(splits)),
    )
    # Ray 2.60 warns that extra keywords will go, but has no named ones for bounded restarts.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    scored: Dataset = blocks.map_batches(
        Classifier,
        fn_constructor_args=(settings,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=pool.min_actors, max_size=pool.max_actors, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        max_restarts=ATTEMPTS,
        max_task_retries=ATTEMPTS,
    )
    return scored


def _tasks(pool: PoolPlan, num_splits: int) -> TaskPoolStrategy:
    """Enough tasks to keep the actors busy; each more would be a process that waits."""
    return TaskPoolStrategy(size=min(2 * pool.max_actors, num_splits))


def summarize(
    receipts: Sequence[Receipt],
    *,
    new: Sequence[Receipt],
    seconds: float,
    bad: list[dict[str, str]],
) -> Summary:
    """Add up receipts; ``new`` are this run's."""
    summary = Summary(
        num_rows=sum(receipt.num_rows for receipt in receipts),
        num_rows_scored=sum(receipt.num_rows for receipt in new),
        seconds=seconds,
        quarantined=bad,
    )
    for receipt in new:
        summary.stats.update(receipt.stats)
    for receipt in receipts:
        summary.status_counts.update(receipt.status_counts)
        summary.label_counts.update(receipt.label_counts)
    return summary


def _commit_empty(split: Split, job: Job, sink: ShardSink) -> Receipt:
    """A shard without rows gets its scored twin without rows, columns and all."""
    import numpy as np

    from bertray.schema import Predictions

    table = read_split(split, job.reading)
    nothing = Predictions(np.empty((0, len(job.bundle.labels)), np.float32), ())
    scored = append_predictions(
        table.select(job.reading.passed(table.column_names)),
        nothing,
        labels=job.bundle.labels,
        prefix=job.reading.prefix,
    )
    return sink.write(scored, split)
