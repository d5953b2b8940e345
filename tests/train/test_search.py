"""What a search tries is known before a cluster starts; what came of it is put in order."""

import math
from pathlib import Path
from typing import Any

import pytest

from bertray.config import TrainConfig, load_config
from bertray.errors import BertrayError, ConfigError
from bertray.train.search import SEARCHABLE, Trial, draw, ranked, settings_of, trial_of
from bertray.train.state import Epoch

RATES = "optim.learning_rate: {low: 1e-5, high: 1e-3, log: true}"


def config(*words: str) -> TrainConfig:
    given = ["model.base=b", "data.train=t", "output.path=o"]
    return load_config(TrainConfig, None, [*given, *words])


def tried(*words: str, key: str) -> list[Any]:
    return [settings_of(one, [key])[key] for one in draw(config(*words))]


def test_the_same_command_tries_the_same_settings_and_more_trials_begin_with_them() -> None:
    words = [f"search.keys={{{RATES}, training.num_epochs: {{low: 2, high: 9}}}}"]
    few, many = (draw(config(*words, f"search.num_trials={count}")) for count in (5, 20))
    assert many[:5] == few == draw(config(*words, "search.num_trials=5"))
    assert draw(config(*words, "search.num_trials=5", "search.seed=1")) != few


def test_a_trial_is_the_same_training_without_a_search(tmp_path: Path) -> None:
    one, *_ = draw(config(f"search.keys={{{RATES}}}", "training.num_epochs=7"))
    rate = one.optim.learning_rate
    assert one == config("training.num_epochs=7", f"optim.learning_rate={rate}")


def test_ranges_are_drawn_from_end_to_end_and_never_beyond() -> None:
    rates = tried(f"search.keys={{{RATES}}}", "search.num_trials=200", key="optim.learning_rate")
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-3
    below = sum(rate < 1e-4 for rate in rates) / len(rates)
    assert below == pytest.approx(0.5, abs=0.15)  # the half of the powers of ten
    space = "search.keys={training.num_epochs: {low: 2, high: 5, log: true}}"
    assert sorted(tried(space, key="training.num_epochs")) == [2, 3, 4, 5]


def test_no_settings_are_tried_twice_and_small_lists_are_tried_whole() -> None:
    # YAML takes the first two for text, and as numbers they are equal.
    keys = "{optim.learning_rate: [1e-5, 0.00001, 3e-5], optim.schedule: [linear, cosine]}"
    drawn = draw(config(f"search.keys={keys}"))
    pairs = {(one.optim.learning_rate, one.optim.schedule) for one in drawn}
    assert len(drawn) == 4
    assert pairs == {(rate, name) for rate in (1e-5, 3e-5) for name in ("linear", "cosine")}


def test_any_searchable_key_is_one_of_the_configs() -> None:
    settings_of(config(), SEARCHABLE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "{output.path: [a, b]}",
            r"output\.path cannot be searched; take keys of optim, or of train",
        ),
        ("{data.text: [a, b]}", r"data\.text cannot be searched"),
        ("{scaling.num_workers: [1, 2]}", r"scaling\.num_workers cannot be searched"),
        ("{training.seed: [1, 2]}", r"training\.seed cannot be searched"),
        ("{training.metric: [loss]}", r"training\.metric cannot be searched"),
        ("{text.long: [window]}", r"text\.long cannot be searched"),
        ("{optim.lr: [1]}", r"unknown key 'optim\.lr'; did you mean 'optim\.\w+'"),
        ("{distillation.alpha: [1.0]}", r"distillation\.alpha changes nothing without a teacher"),
        ("{optim.learning_rate: [1e-5, -1]}", r"optim\.learning_rate=-1: expected more than 0"),
        ("{optim.learning_rate: {low: -1, high: 1}}", r"optim\.learning_rate=-1"),
        (
            "{training.num_epochs: {low: 1.5, high: 3}}",
            r"training\.num_epochs=1\.5: expected a whole",
        ),
        ("{optim.schedule: {low: 1, high: 3}}", r"optim\.schedule takes no numbers; give a list"),
        ("{optim.schedule: []}", r"optim\.schedule: give a list of values, or a range"),
        ("{optim.learning_rate: 1e-5}", r"optim\.learning_rate: give a list of values, or a range"),
        ("{optim.learning_rate: {low: 1}}", r"optim\.learning_rate: high must be given"),
        ("{optim.learning_rate: {low: 1, high: 2, lg: 1}}", r"unknown key 'lg'.*mean 'log'"),
        ("{optim.learning_rate: {low: 2, high: 1}}", r"expected low below high$"),
        ("{optim.learning_rate: {low: 0, high: 1, log: true}}", r"low below high, and above 0"),
        ("[optim.learning_rate]", r"search\.keys: give the keys with what to try"),
    ],
)
def test_what_cannot_be_searched_is_named(keys: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(config(f"search.keys={keys}"))


def test_a_grace_beyond_the_last_epoch_is_refused() -> None:
    words = [f"search.keys={{{RATES}}}", "training.num_epochs=2"]
    assert draw(config(*words, "search.grace_epochs=2"))
    with pytest.raises(ConfigError, match=r"search\.grace_epochs=3: training\.num_epochs is 2"):
        draw(config(*words, "search.grace_epochs=3"))


def test_validations_within_an_epoch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.validation_steps=5: .* epoch by epoch"):
        draw(config(f"search.keys={{{RATES}}}", "training.validation_steps=5"))


def epochs(metric: str, *values: float) -> list[Epoch]:
    return [
        Epoch(number, number, 0.5, {metric: value, "other": number}, 10, 100, 2.0)
        for number, value in enumerate(values, start=1)
    ]


def trial(number: int, *values: float, metric: str = "macro_f1", ending: Any = "done") -> Trial:
    done = epochs(metric, *values)
    return trial_of(number, config(), done, keys=["optim.schedule"], metric=metric, ending=ending)


def test_a_trial_is_worth_its_best_epoch() -> None:
    one = trial(1, 0.3, 0.9, 0.4)
    assert one.metrics == {"macro_f1": 0.9, "other": 2}
    assert (one.values, one.seconds) == ((0.3, 0.9, 0.4), 6.0)
    assert trial(1, 0.9, 0.9, 0.4).metrics["other"] == 2  # the one that Ray keeps
    assert trial(1, 3.0, 1.0, 2.0, metric="rmse").metrics["rmse"] == 1.0


def test_the_best_comes_first_and_what_failed_last() -> None:
    failed = trial(1, 1.0, ending=BertrayError("no memory"))
    assert (failed.status, failed.reason) == ("failed", "no memory")
    trials = [failed, trial(2, 0.5), trial(3, 0.1, 0.8), trial(4, 0.8, ending="stopped")]
    assert [one.number for one in ranked([*trials, trial(5)])] == [3, 4, 2, 5, 1]
    losses = [trial(number, value, metric="loss") for number, value in [(1, math.nan), (2, 9.0)]]
    assert [one.number for one in ranked(losses)] == [2, 1]
