"""A model that was evaluated goes into a store, and into use there if the gate lets it pass."""

from bertray.config import EvaluateCalibration, EvaluateConfig, Gate
from bertray.errors import ConfigError, DataError
from bertray.evaluate.evaluation import Evaluation, Verdict, main_metrics
from bertray.evaluate.gate import Champion, check_gate, judge
from bertray.evaluate.intervals import resampled_metrics
from bertray.evaluate.rows import LabelledRows
from bertray.model import versions
from bertray.model.bundle import Bundle, check_pairs, open_bundle


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
    check_pairs(champion, config.data.text_pair, section="data")
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
        in_use: the champion, and the same rows as that one predicts them.
        rows_per_s: that were scored.

    Raises:
        DataError: one of the two gives no prediction for rows that the other one predicts.
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
        held = Champion(
            champion.source,
            main_metrics(theirs.predictions, theirs.targets, champion),
            resampled_metrics(theirs.predictions, theirs.targets, champion, config.intervals),
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
