"""A model that was evaluated goes into a store, and into use there if the gate lets it pass."""

from dataclasses import replace

from bertray.config import EvaluateCalibration, EvaluateConfig, Gate
from bertray.errors import ConfigError, DataError
from bertray.evaluate.evaluation import Evaluation, Verdict, main_metrics
from bertray.evaluate.gate import Champion, check_gate, compared_metric, judge
from bertray.evaluate.intervals import resampled_metrics
from bertray.evaluate.rows import LabelledRows
from bertray.model import versions
from bertray.model.bundle import Bundle, check_pairs, open_bundle
from bertray.schema import DEFAULT_THRESHOLD


def find_champion(config: EvaluateConfig, bundle: Bundle) -> Bundle | None:
    """The model in use, which ``bundle`` is to be compared with; None if none is, or it is that.

    Raises:
        ConfigError: a rule names a metric that there is not, or the two cannot be compared.
    """
    root, name = config.gate.store, config.gate.name
    if root is None or name is None:
        return None
    check_gate(config.gate, task=bundle.task, slices=config.data.slices)
    in_use = versions.champion(root, name)
    if in_use is None:
        return None
    champion = open_bundle(in_use.reference, key="gate.name", root=root)
    if champion.digest == bundle.digest:
        return None
    if champion.task != bundle.task:
        raise ConfigError(
            f"gate.name={name}: {in_use.reference} is a {champion.task} model, {bundle.source} a "
            f"{bundle.task} one; they cannot be compared, choose another name"
        )
    check_pairs(champion, config.data.text_pair, section="data", key="gate.name")
    return champion


def as_champion(config: EvaluateConfig) -> EvaluateConfig:
    """The job by which the model in use is evaluated on the same rows."""
    return config.model_copy(
        update={"gate": Gate(), "calibration": EvaluateCalibration()}  # type: ignore[call-arg]
    )


def decide(
    config: EvaluateConfig,
    bundle: Bundle,
    rows: LabelledRows,
    *,
    result: Evaluation,
    in_use: tuple[Bundle, LabelledRows] | None,
    rows_per_s: float,
) -> Verdict:
    """Judge the model, put it into the store, and into use if every rule holds.

    Args:
        config: of the job; with a store.
        bundle: the model.
        rows: as it predicts them.
        result: what they say of it.
        in_use: the champion, and the same rows as that one predicts them, joined with
            ``takes_unknown``.
        rows_per_s: that were scored.

    Raises:
        DataError: one of the two gives no prediction for rows that the other one predicts, or the
            champion knows none of the labels.
        ConfigError: it does not know all of them, and is to be compared by its loss.
    """
    gate, root, name = config.gate, str(config.gate.store), str(config.gate.name)
    held = None
    if in_use is not None:
        champion, theirs = in_use
        if len(theirs) != len(rows):
            raise DataError(
                f"{champion.source} predicts {len(theirs)} rows of {config.data.path}, "
                f"{bundle.source} {len(rows)}; take out of data.path the rows that break a model"
            )
        _check_labels(gate, bundle, champion, theirs)
        measured = _measured_alike(champion, theirs, bundle)
        held = Champion(
            champion.source,
            main_metrics(theirs.predictions, theirs.targets, measured),
            resampled_metrics(theirs.predictions, theirs.targets, measured, config.intervals),
        )
    rules = judge(
        gate,
        result,
        rows_per_s=rows_per_s,
        champion=held,
        resampled=resampled_metrics(rows.predictions, rows.targets, bundle, config.intervals),
        task=bundle.task,
    )
    version = versions.add(root, name, bundle.folder)
    verdict = Verdict(rules, version.reference, held.reference if held is not None else None)
    if verdict.is_passed:
        why = "; ".join(map(str, rules)) or "the gate has no rules, and nothing was in use"
        versions.promote(root, version, why=why)
    return verdict


def _check_labels(gate: Gate, bundle: Bundle, champion: Bundle, theirs: LabelledRows) -> None:
    """Rows whose label the champion does not know it gets wrong; of a loss that is no measure."""
    if bundle.task == "regression":
        return
    known, num_labels = len(champion.labels), theirs.predictions.shape[1]
    is_known = theirs.targets[:, :known] if theirs.targets.ndim == 2 else theirs.targets < known
    if num_labels > known and not is_known.any():
        raise DataError(
            f"gate.name={gate.name}: no row has a label that {champion.source} knows "
            f"({', '.join(champion.labels[:8])}); choose another name for {bundle.source}"
        )
    differ = bundle.task == "multi_label" and set(bundle.labels) != set(champion.labels)
    if compared_metric(gate, bundle.task) == "loss" and (num_labels > known or differ):
        raise ConfigError(
            f"gate.metric=loss: {champion.source} and {bundle.source} do not have the same labels, "
            "so their losses cannot be compared; set gate.metric to another one, such as macro_f1"
        )


def _measured_alike(champion: Bundle, theirs: LabelledRows, bundle: Bundle) -> Bundle:
    """The champion in the challenger's unit of loss, with a threshold for each label it meets."""
    thresholds = champion.thresholds
    if thresholds is not None:
        num_unknown = theirs.predictions.shape[1] - len(thresholds)
        thresholds += (DEFAULT_THRESHOLD,) * num_unknown
    return replace(champion, thresholds=thresholds, scale=bundle.scale)
