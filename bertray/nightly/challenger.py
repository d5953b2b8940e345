"""A challenger, trained on fresh labels and put before the gate, ahead of the night's scoring."""

import logging
from collections.abc import Callable

from bertray import storage
from bertray.config import Challenger, EvaluateConfig, TrainConfig, load_config
from bertray.errors import BertrayError
from bertray.lease import Holder
from bertray.model.bundle import open_bundle

logger = logging.getLogger(__name__)


def challenge(
    settings: Challenger, *, on_wait: Callable[[Holder], None] = lambda holder: None
) -> str | None:
    """Train and judge a challenger, if one is asked for and its data are new.

    One that an earlier night has trained and not judged is judged now. What goes wrong with it
    costs no row its label: the night goes on with the champion.

    Args:
        settings: the config's section.
        on_wait: called when somebody trains the challenger already, before waiting for the end.

    Returns:
        What became of it, for people; None if there was nothing to do.
    """
    if settings.train is None or settings.evaluate is None:
        return None
    from bertray.evaluate.run import evaluate
    from bertray.train.run import train

    try:
        training = load_config(TrainConfig, settings.train)
        judging = load_config(EvaluateConfig, settings.evaluate)
        train(training, on_wait=on_wait)
        if _is_judged(judging):
            return None
        verdict = evaluate(judging).verdict
    except BertrayError as error:
        logger.error("challenger: %s", error)
        return f"the challenger failed: {error}"
    except Exception as error:  # whatever a library or a store says, rows come first
        logger.exception("challenger")
        return f"the challenger failed: {type(error).__name__}: {storage.reason_of(error)}"
    if verdict is None:
        said = f"the challenger was measured, but {settings.evaluate} has no gate.store"
    elif verdict.is_passed:
        said = f"{verdict.version} was promoted"
    else:
        broken = "; ".join(str(rule) for rule in verdict.broken)
        said = f"{verdict.version} was refused: {broken}"
    logger.info("challenger: %s", said)
    return said


def _is_judged(judging: EvaluateConfig) -> bool:
    """Whether the last evaluation there was of this very model; it is written after the verdict."""
    from bertray.evaluate.report import METRICS

    found = storage.get_json(storage.join(judging.output.path, METRICS))
    bundle = open_bundle(judging.model.path, root=judging.model.store)
    return found is not None and found["model_digest"] == bundle.digest
