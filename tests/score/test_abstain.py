"""From which probability on a label is given, and that a row without one is no fault."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bertray.config import Abstain, ScoreConfig, load_config
from bertray.errors import ConfigError
from bertray.model.bundle import Bundle, open_bundle
from bertray.schema import ABSTAINED, OK, Cutoff
from bertray.score.abstain import abstain_below
from bertray.score.contract import contract_of
from bertray.score.summary import Summary


@pytest.fixture(scope="module")
def bundle(classifier_folder: Path) -> Bundle:
    cutoffs = (Cutoff(0.9, 0.6, 0.9, 0.92), Cutoff(0.95, 0.8, 0.7, 0.96))
    return replace(open_bundle(str(classifier_folder)), cutoffs=cutoffs)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"below": 0.0}, 0.0),
        ({"below": 0.75}, 0.75),
        ({"precision": 0.9}, 0.6),
        ({"precision": 0.91}, 0.8),
        ({"precision": 0.5}, 0.6),
    ],
)
def test_the_next_higher_precision_that_the_bundle_knows_is_taken(
    bundle: Bundle, settings: dict[str, float], expected: float | None
) -> None:
    assert abstain_below(Abstain(**settings), bundle) == expected


def test_what_the_bundle_cannot_do_is_said_with_what_it_can(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"precision=0\.97: .*\(of those they do: 0\.9, 0\.95\)"):
        abstain_below(Abstain(precision=0.97), bundle)
    with pytest.raises(ConfigError, match=r"they do: none\); set abstain\.below"):
        abstain_below(Abstain(precision=0.9), replace(bundle, cutoffs=()))
    with pytest.raises(ConfigError, match="multi_label model"):
        abstain_below(Abstain(below=0.5), replace(bundle, task="multi_label"))


def config(*words: str) -> ScoreConfig:
    paths = ["model.path=m", "input.path=i", "output.path=o"]
    return load_config(ScoreConfig, None, [*paths, *words])


def test_a_threshold_and_a_precision_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"exclude each other; give one"):
        config("abstain.below=0.5", "abstain.precision=0.9")


def test_the_contract_says_from_when_on_rows_abstain_and_else_is_what_it_was(
    bundle: Bundle,
) -> None:
    plain = contract_of(config(), bundle)
    assert "abstain" not in plain.settings
    unsure = contract_of(config("abstain.below=0.7"), bundle)
    assert unsure.settings["abstain"] == {"below": 0.7}
    assert unsure.digests != plain.digests


def test_a_row_that_abstains_is_no_quarantined_row() -> None:
    summary = Summary(status_counts=Counter({OK: 5, ABSTAINED: 3, "the model broke": 2}))
    assert summary.num_rows_quarantined == 2
