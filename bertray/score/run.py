"""The scoring job, read top to bottom.

bertray score configs/demo/score.yaml
ray job submit -- python jobs/score.py configs/demo/score.yaml

shards -> splits -> SplitSource -> Classifier actors -> ShardSink -> receipts -> manifest
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from bertray import cluster, storage
from bertray.config import ScoreConfig
from bertray.errors import ClusterError
from bertray.lease import Holder, hold
from bertray.model.backend import Device
from bertray.model.bundle import Bundle, check_pairs, load_model, open_bundle
from bertray.model.engine import resolve_backend
from bertray.model.manifest import package_versions
from bertray.model.settings import EngineSettings
from bertray.score import contract as folder
from bertray.score import manifest
from bertray.score.abstain import abstain_below
from bertray.score.commits import Receipt
from bertray.score.contract import Contract
from bertray.score.int8 import report_agreement
from bertray.score.ledger import Attempts
from bertray.score.metrics import telling_prometheus
from bertray.score.pipeline import blocks_of, classified, engine_settings, written
from bertray.score.plan import Split
from bertray.score.pool import plan_pool
from bertray.score.sink import ShardSink
from bertray.score.source import Reading
from bertray.score.standing import Standing, take_stock
from bertray.score.summary import Progress, Summary, Tally

logger = logging.getLogger(__name__)

LAUNCHES = 3  # of the pipeline in a row, when Ray itself fails before a split is done
SWEEP_AFTER_S = 600.0  # no file takes that long to be built


@dataclass(frozen=True)
class Job:
    """A run whose inputs have been checked."""

    config: ScoreConfig
    bundle: Bundle
    reading: Reading
    contract: Contract
    standing: Standing


def score(
    config: ScoreConfig,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_wait: Callable[[Holder], None] = lambda holder: None,
) -> Summary:
    """Score every row of the input that the output does not hold yet.

    Args:
        config: the job.
        on_progress: called as rows are put in place.
        on_wait: called when another run is at work on the output, before waiting for it.

    Raises:
        UserError: the config, the model, the input or the output folder cannot be used; found
            before a cluster starts. Or more is bad than the config bears.
        ClusterError: Ray failed again and again. What is done is safe.
    """
    job = prepare(config)
    folder.agree(config.output.path, job.contract, job.standing, replace=config.output.replace)
    if not job.standing.pending:
        job.standing.index.close()
        return finish(job, tally_of(job))
    with hold(config.output.path, on_wait=on_wait) as waited:
        if waited:  # what the other run did is done
            job = prepare(config)
        if config.output.replace and folder.start_over(
            config.output.path, job.contract, job.standing
        ):
            job = replace(job, standing=job.standing.of_empty_folder())
        storage.sweep(config.output.path, older_than_s=SWEEP_AFTER_S)
        tally = tally_of(job)
        start = time.perf_counter()
        with closing(job.standing.index), telling_prometheus(config.output.path, tally) as metrics:
            for receipt in run_pending(job, tally.summary):
                tally.add(receipt, is_new=True)
                metrics.count(receipt)
                tally.check(config.input)
                on_progress(tally.progress())
        tally.summary.seconds = time.perf_counter() - start if job.standing.pending else 0.0
        return finish(job, tally)


def prepare(config: ScoreConfig) -> Job:
    """Look at everything that can be wrong, without a cluster and without writing a byte."""
    source, output = config.input, config.output
    folder.check_place(output.path, source.path)
    bundle = open_bundle(config.model.path, root=config.model.store)
    check_pairs(bundle, source.text_pair, section="input")
    # Checked here; on which device class the engine's will be used is not known yet.
    settings_of(config, bundle, device="cuda" if config.pool.wants_gpus else "cpu")
    contract = folder.contract_of(config, bundle)
    if not output.replace:
        contract = folder.as_begun(output.path, contract)
    reading = Reading.of_job(config, bundle.task)
    standing = take_stock(
        contract.cut(source), output.path, contract.digests, check_schema=reading.check
    )
    if standing.pending:
        load_model(bundle)  # a head that does not fit is found here, not in every actor
    job = Job(config, bundle, reading, contract, standing)
    tally_of(job).check(source)
    folder.check(output.path, contract, standing, replace=output.replace)
    return job


def settings_of(
    config: ScoreConfig, bundle: Bundle, *, device: Device, dtype: str | None = None
) -> EngineSettings:
    """How the job's rows are classified."""
    settings = engine_settings(
        bundle,
        config.model,
        text=config.text,
        has_pairs=config.input.text_pair is not None,
        device=device,
        dtype=dtype,
    )
    return replace(settings, abstain_below=abstain_below(config.abstain, bundle))


def tally_of(job: Job) -> Tally:
    """What earlier runs have done."""
    tally = Tally(job.standing.plan)
    for receipt in job.standing.done:
        tally.add(receipt, is_new=False)
    return tally


def finish(job: Job, tally: Tally) -> Summary:
    """Write the manifest, and what the next run need not look up again."""
    output = job.config.output
    manifest.put_config(job.config)
    tally.summary.quarantined = manifest.complete(
        output.path, job.contract, job.standing, tally.receipts, prune=output.prune
    )
    tally.summary.vanished = [] if output.prune else list(job.standing.vanished)
    if job.standing.pending:
        record = tally.summary.record(versions=package_versions())
        storage.put_json(storage.join(output.path, manifest.RUN), record, overwrite=True)
    return tally.summary


def run_pending(job: Job, summary: Summary) -> Iterator[Receipt]:
    """Score what is missing; one receipt a split, as its file is put in place.

    What the pipeline is made of is noted in ``summary``.
    """
    missing = {split.id: split for split in job.standing.pending}
    if missing:
        manifest.begin(job.config)
    launches = 0
    while missing:
        launches += 1
        try:
            for receipt in launch(job, tuple(missing.values()), summary):
                launches = 0
                split = missing.pop(receipt.split_id, None)
                if split is not None:
                    if receipt.fault is None:
                        job.standing.index.add(split, receipt)
                        job.standing.index.save_some()
                    yield receipt
            if missing:
                raise ClusterError(f"Ray ended without a word on {len(missing)} splits")
        except ClusterError as error:
            if launches >= LAUNCHES:
                raise
            logger.warning("%s; starting again with %d splits to do", error, len(missing))


def launch(job: Job, splits: Sequence[Split], summary: Summary) -> Iterator[Receipt]:
    """Send splits through the cluster once."""
    resources = cluster.connect()
    filled = [split for split in splits if split.num_rows]
    pool = plan_pool(job.config.pool, resources, num_splits=len(filled))
    engine = settings_of(job.config, job.bundle, device=pool.device)
    engine = resolve_backend(job.bundle, engine, wanted=job.config.model.backend)
    summary.pool = summary.pool or pool
    sink = ShardSink(
        output=storage.absolute(job.config.output.path),
        digests=job.contract.digests,
        engine=f"{engine.device} {engine.backend} {engine.dtype}",
        prefix=job.reading.prefix,
        keep_bad_rows=job.config.input.on_bad_row == "quarantine",
        attempts=None,
        task=job.bundle.task,
    )
    empty = [split for split in splits if not split.num_rows]
    yield from sink.write_empty(empty, reading=job.reading, labels=job.bundle.labels)
    if not filled:
        return
    if engine.dtype == "int8":
        exact = settings_of(job.config, job.bundle, device=engine.device, dtype="float32")
        report_agreement(filled, bundle=job.bundle, exact=exact, reading=job.reading)
    attempts, watch = Attempts.start(), cluster.PipelineGuard(resources.num_nodes)
    scored = classified(
        filled,
        bundle=job.bundle,
        engine=engine,
        reading=job.reading,
        pool=pool,
        attempts=attempts,
        watch=watch,
    )
    said: set[str] = set()
    for block in blocks_of(written(scored, replace(sink, attempts=attempts), pool)):
        receipt = Receipt.from_table(block)
        for note in sorted(set(receipt.notes) - said):
            logger.warning(note)
        said.update(receipt.notes)
        yield receipt
