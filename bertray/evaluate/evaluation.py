"""What labelled rows say of a model's predictions: all that an evaluation reports.

# N = rows, C = labels
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from sklearn.metrics import confusion_matrix

from bertray.config import Intervals
from bertray.evaluate.calibration import Reliability, reliability
from bertray.evaluate.cutoffs import find_cutoffs
from bertray.evaluate.intervals import Interval, intervals_of, resampled_metrics
from bertray.evaluate.metrics import (
    class_table,
    classification_metrics,
    label_areas,
    label_table,
    mean_areas,
    more_classification_metrics,
    more_multi_label_metrics,
    multi_label_metrics,
    regression_metrics,
)
from bertray.evaluate.rows import LabelledRows
from bertray.model.bundle import Bundle
from bertray.schema import Calibration, Cutoff

FEW_ROWS = 30  # a slice of fewer says little
MOST_VALUES = 50  # of a column's that are shown, the most frequent first


@dataclass(frozen=True)
class Slice:
    """The rows that have one value in a column.

    Attributes:
        value: as text; None for null.
        num_rows: with a text and a label.
        is_small: whether they are too few to say much.
        metrics: those that pick an epoch in training.
    """

    value: str | None
    num_rows: int
    is_small: bool
    metrics: dict[str, float]


@dataclass(frozen=True)
class CalibratedCopy:
    """What a copy of the model with a calibration says of the very rows it was fitted on.

    Attributes:
        path: where it lies.
        digest: of its files.
        calibration: that it has.
        metrics: by name; those that tell of probabilities, and those that say which labels changed.
        reliability: of its predictions.
    """

    path: str
    digest: str
    calibration: Calibration
    metrics: dict[str, float]
    reliability: Reliability


@dataclass(frozen=True)
class Rule:
    """One rule, and whether the model holds to it.

    Attributes:
        name: what is looked at, and where.
        found: what it is, in words.
        wanted: what it must be, in words.
        holds: whether it is.
    """

    name: str
    found: str
    wanted: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.found}, wanted {self.wanted}"


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        rules: all of them, in the order of the settings.
        version: of the model in the store, whether it was promoted or not.
        champion: the version that it was compared with; None if there was none.
    """

    rules: tuple[Rule, ...]
    version: str
    champion: str | None

    @property
    def is_passed(self) -> bool:
        """Whether every rule holds."""
        return all(rule.holds for rule in self.rules)

    @property
    def broken(self) -> tuple[Rule, ...]:
        """The rules that do not hold."""
        return tuple(rule for rule in self.rules if not rule.holds)


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on labelled rows.

    Attributes:
        num_rows: rows read.
        num_rows_evaluated: of these, rows with a text and a label.
        metrics: by name, as in metrics.json.
        left_out: rows without a prediction or a label, by reason.
        labels: of each label, precision, recall, F1, rows and areas; empty for numbers.
        intervals: of the metrics that have one.
        confusion: rows by true and by predicted label; None but where rows have one label.
        reliability: None for numbers.
        cutoffs: how sure the model must be for a wanted precision; where rows have one label.
        slices: by column, the `MOST_VALUES` most frequent values first; where the gate looks at
            slices, all that are not small.
        copy: the calibrated copy, if one was asked for.
        verdict: of the gate, if there is one.
    """

    num_rows: int
    num_rows_evaluated: int
    metrics: dict[str, float]
    left_out: dict[str, int]
    labels: dict[str, dict[str, float | None]] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    confusion: np.ndarray | None = None
    reliability: Reliability | None = None
    cutoffs: tuple[Cutoff, ...] = ()
    slices: dict[str, tuple[Slice, ...]] = field(default_factory=dict)
    copy: CalibratedCopy | None = None
    verdict: Verdict | None = None


def measure(
    rows: LabelledRows, bundle: Bundle, intervals: Intervals, *, every_slice: bool = False
) -> Evaluation:
    """All figures of predicted rows; with ``every_slice`` of each value that is not rare."""
    p, targets = rows.predictions, rows.targets
    found = Evaluation(
        num_rows=rows.num_rows,
        num_rows_evaluated=len(rows),
        metrics=main_metrics(p, targets, bundle),
        intervals=intervals_of(
            resampled_metrics(p, targets, bundle, intervals), level=intervals.level
        ),
        left_out=rows.left_out,
        slices={
            column: tuple(_slices(rows, values, bundle, every_slice=every_slice))
            for column, values in rows.slices.items()
        },
    )
    if bundle.task == "regression":
        return found
    areas, shown = label_areas(p, targets), reliability(p, targets)
    if bundle.task == "single_label":
        more = more_classification_metrics(p, targets)
        table = class_table(p, targets, labels=bundle.labels)
        found = replace(
            found,
            confusion=confusion_matrix(
                targets, p.argmax(axis=1), labels=np.arange(len(bundle.labels))
            ),
            cutoffs=find_cutoffs(p, targets),
        )
    else:
        more = more_multi_label_metrics(p, targets, bundle.thresholds)
        table = label_table(p, targets, labels=bundle.labels, thresholds=bundle.thresholds)
    for place, row in enumerate(table.values()):
        row.update({name: of_labels[place] for name, of_labels in areas.items()})
    return replace(
        found,
        metrics={**found.metrics, **more, **mean_areas(areas), "ece": shown.ece},
        labels=table,
        reliability=shown,
    )


def main_metrics(predictions: np.ndarray, targets: np.ndarray, bundle: Bundle) -> dict[str, float]:
    """The metrics that pick an epoch in training, by the bundle's task."""
    if bundle.task == "regression":
        std = bundle.scale.std if bundle.scale is not None else 1.0
        return regression_metrics(predictions, targets, std=std)
    if bundle.task == "multi_label":
        return multi_label_metrics(predictions, targets, bundle.thresholds)
    return classification_metrics(predictions, targets)


def _slices(
    rows: LabelledRows, values: pa.DictionaryArray, bundle: Bundle, *, every_slice: bool
) -> Iterable[Slice]:
    names = [*values.dictionary.to_pylist(), None]
    codes = values.indices.fill_null(len(names) - 1).to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    by_code, ends = np.argsort(codes, kind="stable"), np.cumsum(counts)
    for place, code in enumerate(np.argsort(-counts, kind="stable")):
        is_small = bool(counts[code] < FEW_ROWS)
        if not counts[code] or (place >= MOST_VALUES and (is_small or not every_slice)):
            break
        here = by_code[ends[code] - counts[code] : ends[code]]
        metrics = main_metrics(rows.predictions[here], rows.targets[here], bundle)
        yield Slice(names[code], len(here), is_small, metrics)
