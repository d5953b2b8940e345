"""The evaluation job: labelled shards through the scoring pipeline, then metrics.

bertray evaluate configs/demo/evaluate.yaml
ray job submit -- python jobs/evaluate.py configs/demo/evaluate.yaml
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import cluster, storage
from bertray.config import EvaluateConfig, dump_config
from bertray.errors import DataError
from bertray.evaluate.metrics import (
    classification_metrics,
    label_table,
    multi_label_metrics,
    regression_metrics,
)
from bertray.model.backend import Device
from bertray.model.bundle import Bundle, check_pairs, load_model, open_bundle
from bertray.model.settings import EngineSettings
from bertray.schema import OK, check_label_column, scored_column_names, to_matrix
from bertray.score.ledger import Attempts
from bertray.score.pipeline import blocks_of, classified, engine_settings
from bertray.score.plan import Plan, plan_splits
from bertray.score.pool import plan_pool
from bertray.score.source import Reading, fault_of, split_of
from bertray.score.summary import Progress

# Evaluation never writes rows, so no column of the input can clash with the scored ones.
PREFIX = "bertray_"
SPLIT_ROWS = 8192  # only spreads the work: nothing is written per split


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on labelled rows.

    Attributes:
        num_rows: rows read.
        num_rows_evaluated: of these, rows with a text and a label.
        metrics: by name, as in metrics.json.
        left_out: rows without a prediction, by reason.
        labels: of independent labels, `label_table`.
    """

    num_rows: int
    num_rows_evaluated: int
    metrics: dict[str, float]
    left_out: dict[str, int]
    labels: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    config: EvaluateConfig, *, on_progress: Callable[[Progress], None] = lambda progress: None
) -> Evaluation:
    """Classify the labelled rows and compare; writes metrics.json and report.md.

    Raises:
        UserError: the config, the model or the data cannot be used; found before a cluster starts,
            but for labels that the model does not know.
    """
    bundle, plan, reading = prepare(config)
    tables = predict(config, bundle, plan, reading, on_progress)
    result = measure(
        pa.concat_tables(tables, promote_options="permissive"), bundle, label=config.data.label
    )
    write(config, bundle, result)
    return result


def prepare(config: EvaluateConfig) -> tuple[Bundle, Plan, Reading]:
    """Look at everything that can be wrong, without a cluster."""
    data = config.data
    bundle = open_bundle(config.model.path, root=config.model.store)
    check_pairs(bundle, data.text_pair, section="data")
    reading = Reading(
        data.text, data.text_pair, (data.label,), PREFIX, section="data", task=bundle.task
    )

    def check(schema: pa.Schema, where: str) -> None:
        check_label_column(schema, data.label, where=where, key="data.label", task=bundle.task)
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
    """How the rows are classified."""
    return engine_settings(
        bundle,
        config.model,
        text=config.text,
        has_pairs=config.data.text_pair is not None,
        device=device,
    )


def predict(
    config: EvaluateConfig,
    bundle: Bundle,
    plan: Plan,
    reading: Reading,
    on_progress: Callable[[Progress], None],
) -> Iterator[pa.Table]:
    """The label column and the predictions of each split, as they come."""
    resources = cluster.connect()
    splits = [split for split in plan.splits if split.num_rows]
    pool = plan_pool(
        config.pool,
        resources,
        num_splits=len(splits),
    )
    engine = settings_of(config, bundle, device=pool.device)
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
    done = 0
    for count, block in enumerate(blocks_of(dataset), start=1):
        fault = fault_of(block)
        if fault is not None:
            raise DataError(f"data.path={config.data.path}: {split_of(block).shard}: {fault}")
        done += block.num_rows
        on_progress(Progress(done, plan.num_rows, count, len(splits)))
        yield block.replace_schema_metadata(None)


def measure(table: pa.Table, bundle: Bundle, *, label: str) -> Evaluation:
    """Metrics of predicted rows.

    Args:
        table: the label column and the scored columns under `PREFIX`.
        bundle: whose labels they are.
        label: the column of the true labels.

    Raises:
        DataError: a label that the model does not know, or no row to measure on.
    """
    *_, probabilities, status = (
        table.column(name) for name in scored_column_names(PREFIX, bundle.task)
    )
    labels = table.column(label)
    if bundle.task == "regression":
        labels = labels.cast(pa.float64(), safe=False)
        labels = pc.if_else(pc.is_finite(labels), labels, None)
    present = pc.and_(pc.equal(status, OK), labels.is_valid())
    left_out = Counter(status.filter(pc.not_equal(status, OK)).to_pylist())
    left_out["null label"] = pc.sum(pc.and_(pc.equal(status, OK), labels.is_null())).as_py()
    kept, labels = probabilities.filter(present).combine_chunks(), labels.filter(present)
    if not len(kept):
        raise DataError(f"no row has both a text and a label in column {label!r}")
    metrics, table_of_labels = _compare(kept, labels, bundle)
    return Evaluation(
        num_rows=table.num_rows,
        num_rows_evaluated=len(kept),
        metrics=metrics,
        left_out={reason: count for reason, count in left_out.items() if count},
        labels=table_of_labels,
    )


def _compare(
    predicted: pa.Array, labels: pa.ChunkedArray, bundle: Bundle
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics, and of independent labels the `label_table`."""
    if bundle.task == "regression":
        std = bundle.scale.std if bundle.scale is not None else 1.0
        return regression_metrics(predicted.to_numpy(), labels.to_numpy(), std=std), {}
    names = bundle.labels
    probabilities = predicted.flatten().to_numpy().reshape(len(predicted), len(names))
    if bundle.task == "single_label":
        return classification_metrics(probabilities, label_ids(labels, names)), {}
    has_label, thresholds = label_matrix(labels, names), bundle.thresholds
    return (
        multi_label_metrics(probabilities, has_label, thresholds),
        label_table(probabilities, has_label, labels=names, thresholds=thresholds),
    )


def label_matrix(lists: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """Lists of true labels as bools of shape (rows, labels); integers as `label_ids` takes them.

    Raises:
        DataError: a label that the model does not know.
    """
    items = pc.list_flatten(lists)
    lengths = pc.list_value_length(lists).to_numpy()
    return to_matrix(label_ids(items, names), lengths, num_labels=len(names))


def label_ids(labels: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """Positions of true labels among the model's; integers that are no names count as ids.

    Raises:
        DataError: a label that the model does not know.
    """
    text = labels.cast(pa.string())
    ids = pc.index_in(text, value_set=pa.array(names))
    if (
        ids.null_count
        and pa.types.is_integer(labels.type)
        and not set(names) & set(text.unique().to_pylist())
    ):
        in_range = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
        ids = pc.if_else(in_range, labels.cast(pa.int64()), None)
    if ids.null_count:
        unknown = text.filter(ids.is_null()).unique().to_pylist()
        raise DataError(
            f"data.label: {len(unknown)} labels that the model does not know, such as "
            f"{unknown[0]!r}; it knows {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        )
    return np.asarray(ids.to_numpy())


def write(config: EvaluateConfig, bundle: Bundle, result: Evaluation) -> None:
    """Put metrics.json, report.md and the resolved config below ``output.path``."""
    output = config.output.path
    document = {
        "model": bundle.source,
        "model_digest": bundle.digest,
        "data": config.data.path,
        "rows": result.num_rows,
        "rows_evaluated": result.num_rows_evaluated,
        "left_out": result.left_out,
        "metrics": result.metrics,
        **({"labels": result.labels} if result.labels else {}),
    }
    storage.put_json(storage.join(output, "metrics.json"), document, overwrite=True)
    report = to_markdown(config, bundle, result)
    storage.put_bytes(storage.join(output, "report.md"), report.encode(), overwrite=True)
    resolved = dump_config(config).encode()
    storage.put_bytes(storage.join(output, "config.yaml"), resolved, overwrite=True)


def to_markdown(config: EvaluateConfig, bundle: Bundle, result: Evaluation) -> str:
    """The report for a person."""
    lines = [
        f"# {bundle.source} on {config.data.path}",
        "",
        f"{result.num_rows_evaluated:,} of {result.num_rows:,} rows evaluated; "
        f"model digest {bundle.digest[:12]}.",
        *(f"- left out, {reason}: {count:,}" for reason, count in result.left_out.items()),
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in result.metrics.items()),
        "",
    ]
    if result.labels:
        lines += [
            "| label | precision | recall | F1 | threshold | rows |",
            "|---|---|---|---|---|---|",
            *(_table_row(label, row) for label, row in result.labels.items()),
            "",
        ]
    return "\n".join(lines)


def _table_row(label: str, row: dict[str, float]) -> str:
    shares = (f"{row[name]:.4f}" for name in ("precision", "recall", "f1", "threshold"))
    return f"| {label.replace('|', '&#124;')} | {' | '.join(shares)} | {row['rows']:,.0f} |"
