"""The scoring job, read top to bottom.

bertray score configs/demo/score.yaml
ray job submit -- python jobs/score.py configs/demo/score.yaml

shards -> splits -> SplitSource -> Classifier actors -> ShardSink -> receipts -> manifest
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from bertray import cluster, storage
from bertray.config import ScoreConfig
from bertray.errors import ModelError, SchemaError
from bertray.model.bundle import Bundle, load_model, open_bundle
from bertray.model.engine import verify_int8
from bertray.model.settings import EngineSettings
from bertray.schema import append_predictions, no_predictions
from bertray.score import contract as folder
from bertray.score.contract import Contract
from bertray.score.pipeline import classified, engine_settings, few_tasks
from bertray.score.plan import Plan, Split, committed_splits, plan_splits
from bertray.score.pool import TASK_CPUS, plan_pool
from bertray.score.sink import Receipt, ShardSink
from bertray.score.source import Reading, read_split
from bertray.score.summary import Progress, Summary, summarize

logger = logging.getLogger(__name__)

INT8_SAMPLE_ROWS = 256
INT8_LEAST_AGREEMENT = 0.995


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
    num_rows = sum(receipt.num_rows for receipt in receipts)
    start = time.perf_counter()
    for receipt in run_pending(job):
        receipts.append(receipt)
        num_rows += receipt.num_rows
        on_progress(Progress(num_rows, job.plan.num_rows, len(receipts), len(job.plan.splits)))
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
    if bundle.task == "regression":
        raise ModelError(
            f"model.path={config.model.path}: a regression model has no labels to give"
        )
    # Checks the settings too; on which device class they will be used is not known yet.
    engine_settings(bundle, config.model, device="cuda" if config.pool.wants_gpus else "cpu")
    contract = folder.contract_of(config, bundle)
    footers = committed_splits(
        plan.splits,
        output.path,
        model_digest=contract.model_digest,
        settings_digest=contract.settings_digest,
    )
    done = tuple(
        Receipt.from_footer(split, footers[split.id])
        for split in plan.splits
        if split.id in footers
    )
    pending = tuple(split for split in plan.splits if split.id not in footers)
    if pending:
        load_model(bundle)  # a head that does not fit is found here, not in every actor
    # Last, since it may remove another model's work: all that could still go wrong has not.
    folder.agree(output.path, contract, replace=output.replace)
    return Job(config, bundle, reading, contract, plan, done, pending)


def run_pending(job: Job) -> Iterator[Receipt]:
    """Score what is missing; one receipt a split, as its file is put in place."""
    if not job.pending:
        return
    folder.begin(job.config.output.path, job.config)
    resources = cluster.connect()
    pool = plan_pool(
        job.config.pool,
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
        num_splits=len(job.pending),
    )
    engine = engine_settings(job.bundle, job.config.model, device=pool.device)
    sink = ShardSink(
        output=storage.absolute(job.config.output.path),
        model_digest=job.contract.model_digest,
        settings_digest=job.contract.settings_digest,
        engine=f"{engine.device} {engine.backend} {engine.dtype}",
        prefix=job.reading.prefix,
    )
    filled = [split for split in job.pending if split.num_rows]
    for split in job.pending:
        if not split.num_rows:  # Ray Data hands on no empty blocks
            yield commit_empty(split, job, sink)
    if not filled:
        return
    if engine.dtype == "int8":
        report_int8(filled, job, engine)
    dataset = classified(
        filled, bundle=job.bundle, engine=engine, reading=job.reading, pool=pool
    ).map_batches(
        sink,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=TASK_CPUS,
        compute=few_tasks(pool, len(filled)),
    )
    rows: Iterator[dict[str, str]] = iter(dataset.iter_rows())
    said: set[str] = set()
    for row in cluster.unwrapped(rows):
        receipt = Receipt.from_json(row["receipt"])
        for note in sorted(set(receipt.notes) - said):
            logger.warning(note)
        said.update(receipt.notes)
        yield receipt


def commit_empty(split: Split, job: Job, sink: ShardSink) -> Receipt:
    """A shard without rows gets its scored twin without rows, columns and all."""
    table, labels = read_split(split, job.reading), job.bundle.labels
    passed = table.select(job.reading.passed(table.column_names))
    nothing = no_predictions(num_labels=len(labels))
    scored = append_predictions(passed, nothing, labels=labels, prefix=job.reading.prefix)
    return sink.write(scored, split)


def report_int8(splits: Sequence[Split], job: Job, engine: EngineSettings) -> None:
    """Say how many labels of a sample of the run's rows 8 bits leave as they are."""
    for split in splits:
        try:
            rows = read_split(split, job.reading).slice(0, INT8_SAMPLE_ROWS)
            break
        except (SchemaError, OSError, pa.ArrowException):
            continue  # the actors' splits are read elsewhere, and it will be quarantined there
    else:
        return
    exact = engine_settings(job.bundle, job.config.model, device=engine.device, dtype="float32")
    pairs = rows.column(job.reading.text_pair) if job.reading.text_pair else None
    agreement = verify_int8(job.bundle, exact, rows.column(job.reading.text), pairs)
    fine = agreement >= INT8_LEAST_AGREEMENT
    logger.log(
        logging.INFO if fine else logging.WARNING,
        "int8 leaves %.1f%% of the labels of %d sampled rows as they are%s",
        100 * agreement,
        rows.num_rows,
        "" if fine else "; model.dtype=float32 is exact",
    )
