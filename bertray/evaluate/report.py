"""What an evaluation leaves: for programs metrics.json, for people report.md and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bertray import storage
from bertray.config import EvaluateConfig, dump_config
from bertray.evaluate.calibration import NUM_BINS, Reliability
from bertray.evaluate.evaluation import (
    MOST_VALUES,
    CalibratedCopy,
    Evaluation,
    Slice,
    Verdict,
)
from bertray.evaluate.picture import draw_reliability
from bertray.model.bundle import Bundle
from bertray.schema import Cutoff

METRICS, REPORT, CONFIG, PICTURE = "metrics.json", "report.md", "config.yaml", "reliability.png"
WIDEST = 12  # labels of a confusion matrix that is shown whole
MOST_CONFUSED = 12  # pairs of labels that are shown of a larger one
COLUMNS = ("precision", "recall", "f1", "threshold", "rows", "roc_auc", "pr_auc")


def write(config: EvaluateConfig, bundle: Bundle, result: Evaluation) -> None:
    """Put all of it, and the resolved config, below ``output.path``."""
    output = config.output.path
    document = to_document(config, bundle, result)
    storage.put_json(storage.join(output, METRICS), document, overwrite=True)
    files = {REPORT: to_markdown(config, bundle, result).encode()}
    if result.reliability is not None:
        sides = {"the model": result.reliability}
        if result.copy is not None:
            sides["calibrated"] = result.copy.reliability
        files[PICTURE] = draw_reliability(sides)
    files[CONFIG] = dump_config(config).encode()
    for name, data in files.items():
        storage.put_bytes(storage.join(output, name), data, overwrite=True)


def to_document(config: EvaluateConfig, bundle: Bundle, result: Evaluation) -> dict[str, Any]:
    """metrics.json; what a task does not have is left out."""
    intervals = {
        "method": "percentile bootstrap",
        **config.intervals.model_dump(),
        "metrics": result.intervals,
    }
    matrix, copy = result.confusion, result.copy
    optional: dict[str, Any] = {
        "labels": result.labels,
        "intervals": intervals if result.intervals else {},
        "confusion": {"labels": list(bundle.labels), "rows": matrix.tolist()}
        if matrix is not None
        else {},
        "reliability": _bins(result.reliability) if result.reliability is not None else [],
        "cutoffs": [asdict(cutoff) for cutoff in result.cutoffs],
        "slices": {
            column: [asdict(one) for one in values] for column, values in result.slices.items()
        },
        "calibration": {
            "bundle": copy.path,
            "bundle_digest": copy.digest,
            **asdict(copy.calibration),
            "before": {name: result.metrics[name] for name in copy.metrics},
            "after": copy.metrics,
        }
        if copy is not None
        else {},
        "gate": {"is_passed": result.verdict.is_passed, **asdict(result.verdict)}
        if result.verdict is not None
        else {},
    }
    return {
        "model": bundle.source,
        "model_digest": bundle.digest,
        "data": config.data.path,
        "rows": result.num_rows,
        "rows_evaluated": result.num_rows_evaluated,
        "left_out": result.left_out,
        "metrics": result.metrics,
        **{name: value for name, value in optional.items() if value},
    }


def to_markdown(config: EvaluateConfig, bundle: Bundle, result: Evaluation) -> str:
    """The report for a person."""
    sections = [
        f"# {bundle.source} on {config.data.path}",
        f"{result.num_rows_evaluated:,} of {result.num_rows:,} rows evaluated; "
        f"model digest {bundle.digest[:12]}.",
        "\n".join(f"- left out, {reason}: {rows:,}" for reason, rows in result.left_out.items()),
        _metrics_table(result, level=config.intervals.level),
    ]
    if result.verdict is not None:
        sections += ["## Gate", _rules_table(result.verdict)]
    if result.labels:
        sections += ["## Labels", _labels_table(result.labels)]
    if result.confusion is not None:
        sections += ["## Confusion", _confusion(result.confusion, bundle.labels)]
    if result.copy is not None:
        sections += ["## Calibration", _before_and_after(result, result.copy)]
    if result.reliability is not None:
        sections += ["## Reliability", f"![share of right predictions by probability]({PICTURE})"]
    if result.cutoffs:
        sections += ["## Precision and coverage", _cutoffs_table(result.cutoffs)]
    for column, values in result.slices.items():
        sections += [f"## By {_escaped(column)}", _slices_table(values)]
    return "\n\n".join(filter(None, sections)) + "\n"


def _metrics_table(result: Evaluation, *, level: float) -> str:
    rows = []
    for name, value in result.metrics.items():
        low, high = result.intervals.get(name, (None, None))
        between = "" if low is None else f"{low:.4f} to {high:.4f}"
        rows.append((name, f"{value:.4f}", between))
    return _table(("metric", "value", f"{level:.0%} interval"), rows)


def _labels_table(labels: dict[str, dict[str, float | None]]) -> str:
    columns = [name for name in COLUMNS if name in next(iter(labels.values()))]
    return _table(
        ("label", *("F1" if name == "f1" else name.replace("_", " ") for name in columns)),
        ((label, *(_cell(name, row[name]) for name in columns)) for label, row in labels.items()),
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if name == "rows" else f"{value:.4f}"


def _confusion(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """The whole matrix, or of a large one the pairs of labels that are confused most."""
    if len(labels) <= WIDEST:
        rows = (
            (label, *(f"{count:,}" for count in counts))
            for label, counts in zip(labels, matrix, strict=True)
        )
        return _table(("true \\ predicted", *labels), rows)
    wrong = matrix - np.diag(matrix.diagonal())
    most = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = zip(*np.unravel_index(most, wrong.shape), strict=True)
    rows = (
        (labels[true], labels[predicted], f"{wrong[true, predicted]:,}")
        for true, predicted in pairs
        if wrong[true, predicted]
    )
    return _table(("true", "predicted", "rows"), rows)


def _before_and_after(result: Evaluation, copy: CalibratedCopy) -> str:
    rows = [
        (name, f"{result.metrics[name]:.4f}", f"{after:.4f}")
        for name, after in copy.metrics.items()
    ]
    return (
        f"{copy.calibration.method} scaling, in {copy.path} (model digest {copy.digest[:12]}), of "
        "the very rows it was fitted on:\n\n" + _table(("metric", "before", "after"), rows)
    )


def _rules_table(verdict: Verdict) -> str:
    says = "was promoted" if verdict.is_passed else "was refused"
    rows = (
        (rule.name, rule.found, rule.wanted, "holds" if rule.holds else "**broken**")
        for rule in verdict.rules
    )
    return f"{verdict.version} {says}.\n\n" + _table(("rule", "found", "wanted", ""), rows)


def _cutoffs_table(cutoffs: Iterable[Cutoff]) -> str:
    rows = (
        (f"{one.precision:g}", f"{one.threshold:.6f}", f"{one.coverage:.1%}", f"{one.found:.4f}")
        for one in cutoffs
    )
    return (
        "With `abstain.below` at the threshold, other rows like these have the wanted precision "
        "in some 19 of 20 cases.\n\n"
        + _table(("wanted precision", "threshold", "rows with a label", "of these right"), rows)
    )


def _slices_table(values: Sequence[Slice]) -> str:
    names = list(values[0].metrics)
    rows = (
        (
            "(null)" if one.value is None else one.value,
            f"{one.num_rows:,}" + " (few)" * one.is_small,
            *(f"{one.metrics[name]:.4f}" for name in names),
        )
        for one in values[:MOST_VALUES]
    )
    table = _table(("value", "rows", *names), rows)
    num_others = len(values) - MOST_VALUES
    return table if num_others <= 0 else f"{table}\n\n{num_others:,} more in {METRICS}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """What stands in the data must not break a table."""
    return " ".join(text.replace("|", "&#124;").split())


def _bins(found: Reliability) -> list[dict[str, float]]:
    return [
        {
            "from": place / NUM_BINS,
            "to": (place + 1) / NUM_BINS,
            "rows": int(found.rows[place]),
            "probability": float(found.confidence[place]),
            "right": float(found.right[place]),
        }
        for place in range(NUM_BINS)
    ]
