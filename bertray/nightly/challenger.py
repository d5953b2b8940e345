"""A challenger, trained on fresh labels and put before the gate, ahead of the night's scoring."""

import logging

from bertray.config import Challenger, EvaluateConfig, TrainConfig, load_config
from bertray.errors import BertrayError

logger = logging.getLogger(__name__)


def challenge(settings: Challenger) -> str | None:
    """Train and judge a challenger, if one is asked for and its data are new.

    What goes wrong with it costs no row its label: the night goes on with the champion.

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
        if not train(training).is_new:
            return None
        verdict = evaluate(judging).verdict
    except BertrayError as error:
        logger.error("challenger: %s", error)
        return f"the challenger failed: {error}"
    if verdict is None:
        return f"the challenger was measured, but {settings.evaluate} has no gate.store"
    if verdict.is_passed:
        return f"{verdict.version} was promoted"
    broken = "; ".join(str(rule) for rule in verdict.broken)
    return f"{verdict.version} was refused: {broken}"
