"""Scored folders as a run leaves them, without a cluster."""

from collections.abc import Callable, Sequence

import pytest


@pytest.fixture(scope="session")
def score_here() -> Callable[..., None]:
    """What ``bertray score WORDS`` does, by a model of the test's own."""
    import scored_here

    from bertray.config import ScoreConfig, load_config

    def score(words: Sequence[str], predict: scored_here.Predict) -> None:
        scored_here.score_here(load_config(ScoreConfig, None, words), predict)

    return score
