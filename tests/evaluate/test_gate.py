"""A model goes into use if it holds to every rule; one that it breaks is named, and by how much."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertray.config import EvaluateConfig, Gate, Intervals, load_config
from bertray.errors import ConfigError, DataError
from bertray.evaluate.evaluation import Evaluation, Rule, Slice, main_metrics
from bertray.evaluate.gate import Champion, check_gate, judge
from bertray.evaluate.intervals import resampled_metrics
from bertray.evaluate.promotion import decide, find_champion
from bertray.evaluate.rows import LabelledRows
from bertray.model import store
from bertray.model.bundle import Bundle, open_bundle
from bertray.schema import Scale, Task

TRIALS = 100
NUM_ROWS = 2_000
MODEL = Bundle("m", "m", Path(), labels=("a", "b"), task="single_label", max_length=8, digest="d")


def gate(**rules: Any) -> Gate:
    return Gate(store="s", name="n", **rules)


def found(**metrics: float) -> Evaluation:
    return Evaluation(num_rows=100, num_rows_evaluated=100, metrics=metrics, left_out={})


def rules_of(settings: Gate, result: Evaluation) -> tuple[Rule, ...]:
    return judge(
        settings, result, rows_per_s=50.0, champion=None, resampled={}, task="single_label"
    )


def test_a_broken_rule_says_by_how_much() -> None:
    settings = gate(at_least={"accuracy": 0.9, "rows_per_s": 40}, at_most={"ece": 0.05})
    rules = rules_of(settings, found(accuracy=0.85, ece=0.05))
    assert [rule.holds for rule in rules] == [False, True, True]
    assert str(rules[0]) == "accuracy: 0.8500, off by 0.0500, wanted at least 0.9"


def test_a_metric_that_the_rows_do_not_have_is_no_pass() -> None:
    assert not rules_of(gate(at_least={"roc_auc": 0.5}), found(accuracy=1.0))[0].holds


def test_each_slice_that_enough_rows_have_is_held_to_its_rule() -> None:
    slices = (
        Slice("en", 500, is_small=False, metrics={"accuracy": 0.9, "loss": 0.3}),
        Slice("de", 90, is_small=False, metrics={"accuracy": 0.6, "loss": 0.9}),
        Slice("fr", 3, is_small=True, metrics={"accuracy": 0.0, "loss": 9.0}),
    )
    result = replace(found(accuracy=0.88), slices={"language": slices})
    rules = rules_of(gate(slices_at_least={"accuracy": 0.8, "loss": 0.5}), result)
    broken = [rule.name for rule in rules if not rule.holds]
    assert broken == ["accuracy where language is de", "loss where language is de"]
    assert len(rules) == 4


def test_of_many_slices_the_worst_of_those_that_are_not_shown_is_held_to_its_rule() -> None:
    slices = tuple(
        Slice(f"user {number}", 30, is_small=False, metrics={"accuracy": number != 70, "loss": 0.1})
        for number in range(80)
    )
    result = replace(found(accuracy=0.99), slices={"user": slices})
    rules = rules_of(gate(slices_at_least={"accuracy": 0.8, "loss": 0.5}), result)
    (broken,) = (rule for rule in rules if not rule.holds)
    assert broken.name == "accuracy where user is user 70, the worst of 30 less frequent values"
    assert len(rules) == 2 * (50 + 1)


def passes(random: np.random.Generator, *, accuracies: tuple[float, float], seed: int) -> bool:
    """Whether a challenger gets past a champion, both right on three rows of four alike."""
    alike, levels = random.random(NUM_ROWS) < 0.75, random.random(NUM_ROWS)
    settings, targets = Intervals(seed=seed), np.zeros(NUM_ROWS, int)
    models = []
    for accuracy in accuracies:
        level = np.where(alike, levels, random.random(NUM_ROWS))
        p = np.eye(2)[(level >= accuracy).astype(int)]
        resampled = resampled_metrics(p, targets, MODEL, settings)
        models.append((float((p[:, 0] == 1).mean()), resampled))
    (ours, our_draws), (theirs, their_draws) = models
    (rule,) = judge(
        gate(),
        found(accuracy=ours),
        rows_per_s=1.0,
        champion=Champion("store://n@1", {"accuracy": theirs}, their_draws),
        resampled=our_draws,
        task="single_label",
    )
    return rule.holds


def test_a_worse_challenger_is_never_promoted_and_an_equal_one_as_often_as_said() -> None:
    random = np.random.default_rng(0)
    worse = [passes(random, accuracies=(0.86, 0.90), seed=trial) for trial in range(TRIALS)]
    equal = [passes(random, accuracies=(0.90, 0.90), seed=trial) for trial in range(TRIALS)]
    assert sum(worse) == 0
    assert 0.88 <= sum(equal) / TRIALS <= 1.0  # 0.95 within three standard errors


@pytest.mark.parametrize(("errors", "passed"), [(0, 0.95), (2, 0.36), (3, 0.09), (4, 0.01)])
def test_how_often_a_worse_challenger_passes_is_as_documented(errors: int, passed: float) -> None:
    random, trials = np.random.default_rng(0), 2_000
    gains = random.standard_normal(trials) - errors  # in standard errors of the difference
    holds = [
        judge(
            gate(),
            found(accuracy=0.0),
            rows_per_s=1.0,
            champion=Champion("store://n@1", {"accuracy": 0.0}, {"accuracy": np.zeros(1_000)}),
            resampled={"accuracy": gain + random.standard_normal(1_000)},
            task="single_label",
        )[0].holds
        for gain in gains
    ]
    assert sum(holds) / trials == pytest.approx(passed, abs=0.03)


@pytest.mark.parametrize(
    ("rules", "task", "message"),
    [
        ({"at_least": {"acuracy": 0.9}}, "single_label", "gate.at_least: no metric 'acuracy'"),
        ({"at_most": {"ece": 0.1}}, "regression", "gate.at_most: no metric 'ece'"),
        ({"metric": "spearman"}, "regression", "gate.metric: no metric 'spearman'"),
        ({"slices_at_least": {"accuracy": 1}}, "single_label", "set data.slices"),
    ],
)
def test_a_rule_that_cannot_be_is_found_before_anything_runs(
    rules: dict[str, Any], task: Task, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_gate(gate(**rules), task=task, slices=())


@pytest.fixture
def config(classifier_folder: Path, tmp_path: Path) -> EvaluateConfig:
    words = [
        f"model.path={classifier_folder}",
        "data.path=unread",
        f"output.path={tmp_path}",
        f"gate.store={tmp_path / 'store'}",
        "gate.name=reviews",
    ]
    return load_config(EvaluateConfig, None, [*words, "gate.at_least.accuracy=0.5"])


def rows_with(num_right: int) -> LabelledRows:
    targets = np.zeros(10, np.int32)
    p = np.eye(3, dtype=np.float32)[(np.arange(10) >= num_right).astype(int)]
    return LabelledRows(p, targets, {}, 10, {})


def test_what_passes_is_promoted_and_what_does_not_leaves_the_champion_in_use(
    config: EvaluateConfig, classifier_folder: Path, other_classifier: Path, tmp_path: Path
) -> None:
    root, first = str(tmp_path / "store"), open_bundle(str(classifier_folder))
    assert find_champion(config, first) is None
    verdict = decide(
        config, first, rows_with(9), result=found(accuracy=0.9), in_use=None, rows_per_s=1.0
    )
    assert verdict.is_passed
    assert store.find(root, "store://reviews@champion").reference == verdict.version
    assert "accuracy: 0.9000" in store.promotions(root, "reviews")[0].why

    worse = open_bundle(str(other_classifier))
    champion = find_champion(config, worse)
    assert champion is not None
    verdict = decide(
        config,
        worse,
        rows_with(2),
        result=found(accuracy=0.2),
        in_use=(champion, rows_with(9)),
        rows_per_s=1.0,
    )
    assert [rule.holds for rule in verdict.rules] == [False, False]
    assert verdict.champion == "store://reviews@1"
    assert store.find(root, verdict.version).digest == worse.digest  # kept, to be looked at
    assert store.find(root, "store://reviews@champion").number == 1


def test_the_gate_promotes_in_mlflows_registry_too(
    config: EvaluateConfig,
    classifier_folder: Path,
    other_classifier: Path,
    tmp_path: Path,
    empty_mlflow: Path,
) -> None:
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    root = f"sqlite:///{tmp_path / 'mlflow.db'}"
    gate = config.gate.model_copy(update={"store": root})
    config = config.model_copy(update={"gate": gate})
    first = open_bundle(str(classifier_folder))
    assert find_champion(config, first) is None
    verdict = decide(
        config, first, rows_with(9), result=found(accuracy=0.9), in_use=None, rows_per_s=1.0
    )
    assert (verdict.is_passed, verdict.version) == (True, "models:/reviews/1")

    worse = open_bundle(str(other_classifier))
    champion = find_champion(config, worse)
    assert champion is not None
    assert champion.digest == first.digest
    verdict = decide(
        config,
        worse,
        rows_with(2),
        result=found(accuracy=0.2),
        in_use=(champion, rows_with(9)),
        rows_per_s=1.0,
    )
    assert not verdict.is_passed
    assert (verdict.version, verdict.champion) == ("models:/reviews/2", "models:/reviews/1")
    assert open_bundle("models:/reviews@champion", root=root).digest == first.digest


def test_a_champion_is_not_compared_with_itself(
    config: EvaluateConfig, classifier_folder: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(str(classifier_folder))
    version = store.add(str(tmp_path / "store"), "reviews", classifier_folder)
    store.promote(str(tmp_path / "store"), version, why="")
    assert find_champion(config, bundle) is None


def test_models_that_predict_other_rows_are_not_compared(
    config: EvaluateConfig, classifier_folder: Path
) -> None:
    bundle = open_bundle(str(classifier_folder))
    fewer = replace(rows_with(9), targets=np.zeros(9, np.int32))
    with pytest.raises(DataError, match="predicts 9 rows of unread"):
        decide(
            config,
            bundle,
            rows_with(9),
            result=found(accuracy=0.9),
            in_use=(bundle, fewer),
            rows_per_s=1.0,
        )


def judged(
    config: EvaluateConfig,
    models: tuple[Bundle, Bundle],
    rows: tuple[LabelledRows, LabelledRows],
    metric: str,
) -> Rule:
    """The last rule, which compares the first of two models with the second, by a metric."""
    gate = config.gate.model_copy(update={"metric": metric, "at_least": {}})
    verdict = decide(
        config.model_copy(update={"gate": gate}),
        models[0],
        rows[0],
        result=found(**main_metrics(rows[0].predictions, rows[0].targets, models[0])),
        in_use=(models[1], rows[1]),
        rows_per_s=1.0,
    )
    return verdict.rules[-1]


def test_losses_of_numbers_are_compared_in_one_unit(
    config: EvaluateConfig, classifier_folder: Path
) -> None:
    bundle = replace(open_bundle(str(classifier_folder)), task="regression", labels=("y",))
    models = replace(bundle, scale=Scale(0.0, 100.0)), replace(bundle, scale=Scale(0.0, 1.0))
    targets = np.arange(40.0)
    worse, better = (LabelledRows(targets + off, targets, {}, 40, {}) for off in (5.0, 1.0))
    assert not judged(config, models, (worse, better), "loss").holds
    assert judged(config, models[::-1], (better, worse), "loss").holds


def test_a_challenger_of_more_labels_beats_a_champion_that_gets_their_rows_wrong(
    config: EvaluateConfig, classifier_folder: Path
) -> None:
    bundle = open_bundle(str(classifier_folder))
    targets = np.arange(90, dtype=np.int32) % 3
    p = np.eye(3, dtype=np.float32)[targets]
    champion = replace(bundle, labels=bundle.labels[:2])
    theirs = np.where(targets[:, None] == 2, np.float32([1, 0, 0]), p)
    both = LabelledRows(p, targets, {}, 90, {}), LabelledRows(theirs, targets, {}, 90, {})
    for metric in ("accuracy", "macro_f1"):
        rule = judged(config, (bundle, champion), both, metric)
        assert rule.holds
        assert "1.0000 against 0." in rule.found
    with pytest.raises(ConfigError, match=r"gate\.metric=loss: .* do not have the same labels"):
        judged(config, (bundle, champion), both, "loss")
    none_known = replace(both[1], targets=np.full(90, 2, np.int32))
    with pytest.raises(DataError, match=r"gate\.name=reviews: no row has a label that .* knows"):
        judged(config, (bundle, champion), (both[0], none_known), "accuracy")

    has_label = np.eye(3, dtype=bool)[targets]
    several = replace(bundle, task="multi_label", thresholds=(0.5, 0.5, 0.5))
    champion = replace(several, labels=bundle.labels[:2], thresholds=(0.5, 0.5))
    both = replace(both[0], targets=has_label), replace(both[1], targets=has_label)
    assert judged(config, (several, champion), both, "subset_accuracy").holds
    both = tuple(replace(one, targets=has_label & [True, True, False]) for one in both)
    with pytest.raises(ConfigError, match=r"gate\.metric=loss: .* do not have the same labels"):
        judged(config, (several, champion), both, "loss")
