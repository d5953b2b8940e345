"""What a run would do, and what an output folder holds. Nothing in here writes."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
import yaml

from bertray import cluster, storage
from bertray.config import ScoreConfig
from bertray.errors import DataError, OutputError, SchemaError
from bertray.lease import Holder, read_holder
from bertray.model.engine import Engine, resolve_backend
from bertray.score import manifest as folder
from bertray.score.commits import list_outputs, task_of
from bertray.score.contract import read_contract
from bertray.score.plan import BadShard
from bertray.score.pool import plan_pool
from bertray.score.run import Job, settings_of
from bertray.score.source import Reading, read_split
from bertray.score.standing import Standing, take_stock

SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Status:
    """Where the work on an output folder stands.

    Attributes:
        output: the folder.
        input: where the shards lie.
        model: that the folder belongs to, as the user named it.
        num_splits: of the input as it is now; shards that cannot be read have none.
        num_splits_done: of them, those whose scored file stands in the folder.
        num_rows: of all splits.
        num_rows_done: of those done.
        bad_rows: rows in the folder without a prediction, by reason.
        quarantined: shards that cannot be scored, and why.
        stale: scored files of shards that have changed; a run replaces them.
        outdated: scored files of shards that are cut otherwise now; a run removes them.
        vanished: scored files of shards that are gone; removed with ``output.prune`` only.
        complete: whether ``_SUCCESS`` stands there.
        holder: the run that is at work on it, as far as it says so.
        seconds: that a run would take about; None if it is not known.
    """

    output: str
    input: str
    model: str
    num_splits: int
    num_splits_done: int
    num_rows: int
    num_rows_done: int
    bad_rows: dict[str, int]
    quarantined: tuple[BadShard, ...]
    stale: tuple[str, ...]
    outdated: tuple[str, ...]
    vanished: tuple[str, ...]
    complete: bool
    holder: Holder | None
    seconds: float | None = None


def status_of(output: str) -> Status:
    """Look at an output folder, and at the input it was scored from.

    Raises:
        OutputError: no run has begun there.
        UserError: the input cannot be listed.
    """
    contract = read_contract(output)
    text = storage.get_bytes(storage.join(output, folder.CONFIG))
    if text is None:
        raise OutputError(f"{output}: no run has begun there (no {folder.CONFIG})")
    config = ScoreConfig.model_validate(yaml.safe_load(text))
    task = task_of(output, sorted(list_outputs(output)), prefix=config.output.prefix)
    source, check = contract.cut(config.input), Reading.of_job(config, task).check
    standing = take_stock(source, output, contract.digests, check_schema=check)
    return _status(output, config.input.path, contract.model, standing)


def outlook(job: Job) -> Status:
    """What the run that a config asks for would do, and about how long it would take."""
    config = job.config
    status = _status(config.output.path, config.input.path, job.bundle.source, job.standing)
    return replace(status, seconds=_estimate_seconds(job))


def _status(output: str, source: str, model: str, standing: Standing) -> Status:
    bad_rows: Counter[str] = Counter()
    for receipt in standing.done:
        bad_rows.update(receipt.bad_rows)
    manifest = storage.get_json(storage.join(output, folder.MANIFEST)) or {}
    return Status(
        output=output,
        input=source,
        model=model,
        num_splits=len(standing.plan.splits),
        num_splits_done=len(standing.done),
        num_rows=standing.plan.num_rows,
        num_rows_done=sum(receipt.num_rows for receipt in standing.done),
        bad_rows=dict(bad_rows),
        quarantined=_quarantined(standing, manifest),
        stale=standing.stale,
        outdated=standing.outdated,
        vanished=standing.vanished,
        complete=storage.exists(storage.join(output, folder.SUCCESS)),
        holder=read_holder(output),
    )


def _quarantined(standing: Standing, manifest: dict[str, Any]) -> tuple[BadShard, ...]:
    """Shards that cannot be planned, and those that the last run could not score."""
    pending = {split.shard for split in standing.pending}
    earlier = [BadShard(**bad) for bad in manifest.get("quarantined", ())]
    later = (bad for bad in earlier if bad.shard in pending)
    return (*standing.plan.bad_shards, *later)


def _estimate_seconds(job: Job) -> float | None:
    """Rows to do over the rows/s of a sample on this machine, times the actors of the cluster."""
    pending = [split for split in job.standing.pending if split.num_rows]
    if not pending:
        return 0.0
    resources = cluster.connect()
    pool = plan_pool(
        job.config.pool,
        resources,
        num_splits=len(pending),
    )
    if pool.device == "cuda" and not torch.cuda.is_available():
        return None
    settings = settings_of(job.config, job.bundle, device=pool.device)
    settings = resolve_backend(job.bundle, settings, wanted=job.config.model.backend)
    try:
        rows = read_split(pending[0], job.reading).slice(0, SAMPLE_ROWS)
    except (SchemaError, DataError, OSError, pa.ArrowException):
        return None
    engine = Engine(job.bundle, settings, num_threads=pool.num_threads)
    texts = rows.column(job.reading.text)
    pairs = rows.column(job.reading.text_pair) if job.reading.text_pair else None
    engine.predict(texts.slice(0, 8), pairs.slice(0, 8) if pairs is not None else None)  # warm up
    start = time.perf_counter()
    engine.predict(texts, pairs)
    seconds_per_row = (time.perf_counter() - start) / rows.num_rows
    num_rows = sum(split.num_rows for split in pending)
    return float(seconds_per_row * num_rows / pool.max_actors)
