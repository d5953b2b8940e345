"""The evaluation job: labelled shards through the scoring pipeline, then metrics.

bertray evaluate configs/demo/evaluate.yaml
ray job submit -- python jobs/evaluate.py configs/demo/evaluate.yaml
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from bertray import cluster, storage
from bertray.config import EvaluateConfig
from bertray.errors import DataError
from bertray.evaluate.calibrated_copy import check_copy, with_calibration, write_copy
from bertray.evaluate.calibration import calibrated, fit_calibration, reliability
from bertray.evaluate.cutoffs import find_cutoffs
from bertray.evaluate.evaluation import CalibratedCopy, Evaluation, main_metrics, measure
from bertray.evaluate.metrics import brier_of_rows
from bertray.evaluate.promotion import as_champion, decide, find_champion
from bertray.evaluate.report import write
from bertray.evaluate.rows import PREFIX, LabelledRows, Part, check_slices, join_rows, take_rows
from bertray.model.backend import Device
from bertray.model.bundle import Bundle, check_pairs, load_model, open_bundle
from bertray.model.engine import resolve_backend
from bertray.model.settings import EngineSettings
from bertray.schema import check_label_column
from bertray.score.ledger import Attempts
from bertray.score.pipeline import blocks_of, classified, engine_settings
from bertray.score.plan import Plan, plan_splits
from bertray.score.pool import plan_pool
from bertray.score.source import Reading, fault_of, split_of
from bertray.score.summary import Progress

SPLIT_ROWS = 8192  # only spreads the work: nothing is written per split


def evaluate(
    config: EvaluateConfig, *, on_progress: Callable[[Progress], None] = lambda progress: None
) -> Evaluation:
    """Classify the labelled rows and compare; writes metrics.json, report.md and a picture.

    With ``calibration.*`` a calibrated copy of the model as well. With ``gate.*`` the model goes
    into a store, and into use there if it holds to the rules.

    Raises:
        UserError: the config, the model or the data cannot be used; found before a cluster starts,
            but for labels that the model does not know.
    """
    bundle, plan, reading = prepare(config)
    champion = find_champion(config, bundle)
    parts, rows_per_s = predict(config, bundle, plan, reading, on_progress)
    rows = raw = join_rows(parts, bundle)
    if config.calibration.bundle is not None and bundle.calibration is not None:
        p = calibrated(raw.predictions, bundle.calibration, task=bundle.task)
        rows = replace(raw, predictions=p)
    every_slice = bool(config.gate.slices_at_least)
    result = measure(rows, bundle, config.intervals, every_slice=every_slice)
    if config.calibration.bundle is not None:
        result = replace(result, copy=copy_calibrated(config, bundle, raw))
    if config.gate.store is not None:
        in_use = None
        if champion is not None:
            parts, _ = predict(as_champion(config), champion, plan, reading, on_progress)
            in_use = champion, join_rows(parts, champion, takes_unknown=True)
        verdict = decide(config, bundle, rows, result=result, in_use=in_use, rows_per_s=rows_per_s)
        result = replace(result, verdict=verdict)
    write(config, bundle, result)
    return result


def prepare(config: EvaluateConfig) -> tuple[Bundle, Plan, Reading]:
    """Look at everything that can be wrong, without a cluster."""
    data = config.data
    bundle = open_bundle(config.model.path, root=config.model.store)
    check_pairs(bundle, data.text_pair, section="data")
    if config.calibration.bundle is not None:
        check_copy(bundle, config.calibration.bundle)
    columns = (data.label, *data.slices)
    reading = Reading(data.text, data.text_pair, columns, PREFIX, section="data", task=bundle.task)

    def check(schema: pa.Schema, where: str) -> None:
        check_label_column(schema, data.label, where=where, key="data.label", task=bundle.task)
        check_slices(schema, data.slices, where=where)
        reading.check(schema, where)

    plan = plan_splits(
        storage.absolute(data.path), check_schema=check, max_split_rows=SPLIT_ROWS, key="data.path"
    )
    if plan.bad_shards:
        bad = plan.bad_shards[0]
        raise DataError(
            f"data.path={data.path}: {len(plan.bad_shards)} shards cannot be read; the first, "
            f"{bad.shard}: {bad.reason}"
        )
    if not plan.num_rows:
        raise DataError(f"data.path={data.path}: no rows in there to evaluate on")
    settings_of(config, bundle, device="cuda" if config.pool.wants_gpus else "cpu")
    load_model(bundle)
    return bundle, plan, reading


def settings_of(config: EvaluateConfig, bundle: Bundle, *, device: Device) -> EngineSettings:
    """How the rows are classified; without calibration, where one is to be fitted."""
    settings = engine_settings(
        bundle,
        config.model,
        text=config.text,
        has_pairs=config.data.text_pair is not None,
        device=device,
    )
    return replace(settings, calibrated=config.calibration.bundle is None)


def predict(
    config: EvaluateConfig,
    bundle: Bundle,
    plan: Plan,
    reading: Reading,
    on_progress: Callable[[Progress], None],
) -> tuple[list[Part], float]:
    """The labels and the predictions of each split, in the order of the splits, and `rate_of`."""
    resources = cluster.connect()
    splits = [split for split in plan.splits if split.num_rows]
    pool = plan_pool(
        config.pool,
        resources,
        num_splits=len(splits),
    )
    engine = settings_of(config, bundle, device=pool.device)
    engine = resolve_backend(bundle, engine, wanted=config.model.backend)
    watch = cluster.PipelineGuard(resources.num_nodes)
    dataset = classified(
        splits,
        bundle=bundle,
        engine=engine,
        reading=reading,
        pool=pool,
        attempts=Attempts.start(),
        watch=watch,
    )
    parts: dict[str, Part] = {}
    came: list[tuple[float, int]] = []
    done, start = 0, time.perf_counter()
    for block in blocks_of(dataset):
        split, fault = split_of(block), fault_of(block)
        if fault is not None:
            raise DataError(f"data.path={config.data.path}: {split.shard}: {fault}")
        data = config.data
        parts[split.id] = take_rows(block, bundle, label=data.label, slices=data.slices)
        done += block.num_rows
        came.append((time.perf_counter(), block.num_rows))
        on_progress(Progress(done, plan.num_rows, len(parts), len(splits)))
    rate = rate_of(came, start=start, num_at_once=pool.max_actors * pool.calls_per_actor)
    return [parts[split.id] for split in splits], rate


def rate_of(came: Sequence[tuple[float, int]], *, start: float, num_at_once: int) -> float:
    """Rows a second, without the time in which actors start and load the model.

    The clock starts when as many splits have come as are computed at a time, and those do not
    count. From fewer than twice as many nothing could be told; then it starts with the pipeline.

    Args:
        came: when each split came, in seconds, and its rows.
        start: when the pipeline was started.
        num_at_once: splits that are computed at a time.
    """
    if len(came) >= 2 * num_at_once:
        start, came = came[num_at_once - 1][0], came[num_at_once:]
    return sum(num_rows for _, num_rows in came) / (came[-1][0] - start)


def copy_calibrated(config: EvaluateConfig, bundle: Bundle, rows: LabelledRows) -> CalibratedCopy:
    """Fit what ``calibration.method`` names, and put the copy of the model that has it.

    Args:
        config: of the job.
        bundle: the model.
        rows: with the probabilities that it gives without calibration.
    """
    output, targets = str(config.calibration.bundle), rows.targets
    calibration = fit_calibration(
        rows.predictions, targets, method=config.calibration.method, task=bundle.task
    )
    p = calibrated(rows.predictions, calibration, task=bundle.task)
    cutoffs = find_cutoffs(p, targets) if bundle.task == "single_label" else ()
    copy = with_calibration(bundle, calibration, cutoffs)
    shown = reliability(p, targets)
    more = {"brier": float(brier_of_rows(p, targets).mean()), "ece": shown.ece}
    return CalibratedCopy(
        path=output,
        digest=write_copy(copy, output),
        calibration=calibration,
        metrics={**main_metrics(p, targets, copy), **more},
        reliability=shown,
    )
