"""N ranks take the same steps as one with the N-fold batch, whichever way they share the model."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ranks import (
    NUM_ROWS,
    STRATEGIES,
    Trainer,
    idle_losses,
    in_windows,
    losses_of,
    run_ranks,
    weighted,
    without_dropout,
)
from small_models import save_classifier
from torch import multiprocessing
from transformers import AutoModelForSequenceClassification

from bertray.config import TrainModel
from bertray.model.heads import Head
from bertray.train.base import Base, open_base
from bertray.train.examples import Examples
from bertray.train.parallel import Strategy

IDLE: list[tuple[str, Head]] = [("xlnet", "family"), ("fnet", "linear")]


@dataclass
class TwoRanks:
    """What one rank did with some rows; what two did by each strategy lies in a folder."""

    folder: Path
    examples: Examples
    losses: list[float]
    weighted_losses: list[float]
    probabilities: np.ndarray


@pytest.fixture(scope="module")
def runs(
    base: Base,
    make_examples: Callable[..., Examples],
    classifier_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, TwoRanks]:
    root = tmp_path_factory.mktemp("two_ranks")
    rows = {"texts": make_examples(NUM_ROWS), "windows": in_windows(make_examples)}
    made = {}
    for name, examples in rows.items():
        folder = root / name
        folder.mkdir()
        one = without_dropout(Trainer(base, examples))
        losses = losses_of(one, 0)
        one.save(folder / "one")
        losses += losses_of(one, 1, 2)
        weighted_losses = weighted(one, accumulation_steps=1)
        made[name] = TwoRanks(folder, examples, losses, weighted_losses, one.predict())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    places = [(run.folder, run.examples) for run in made.values()]
    even = make_examples(NUM_ROWS, longest=2)  # padding would change these families' numbers
    idle = {}
    for family, head in IDLE:
        folder = root / family
        folder.mkdir()
        save_classifier(folder, family, tokenizer=classifier_folder)
        idle[folder] = open_base(TrainModel(base=str(folder), head=head, max_length=32))
        losses = idle_losses(without_dropout(Trainer(idle[folder], even)))
        made[family] = TwoRanks(folder, even, losses, [], np.zeros(0))
    multiprocessing.spawn(run_ranks, (base, places, idle, even, root / "meet"), nprocs=2)
    return made


@pytest.fixture(params=["texts", "windows"])
def two_ranks(request: pytest.FixtureRequest, runs: dict[str, TwoRanks]) -> TwoRanks:
    return runs[request.param]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_take_the_steps_of_one_with_the_double_batch(
    two_ranks: TwoRanks, strategy: Strategy
) -> None:
    assert len(two_ranks.losses) == 24
    for rank in (0, 1):
        two = np.load(two_ranks.folder / f"{strategy}{rank}.npz")
        # What comes after the steps has the rounding of all of them, other on each processor.
        for name, atol in (("losses", 1e-5), ("weighted_losses", 1e-4), ("probabilities", 1e-4)):
            np.testing.assert_allclose(two[name], getattr(two_ranks, name), rtol=0, atol=atol)
        said = (two_ranks.folder / f"{strategy}{rank}.txt").read_text()
        assert "the optimizer step was not taken" in said


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_are_interrupted_and_resumed_go_on_as_if_they_had_not_been(
    two_ranks: TwoRanks, strategy: Strategy
) -> None:
    for rank in (0, 1):
        whole, resumed = np.load(two_ranks.folder / f"{strategy}{rank}.npz")["dropout_losses"]
        np.testing.assert_allclose(resumed, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_is_resumed_by_another_number_of_ranks_and_another_strategy(
    two_ranks: TwoRanks, strategy: Strategy, base: Base
) -> None:
    expected = two_ranks.losses[-16:]
    two = np.load(two_ranks.folder / f"{strategy}0.npz")
    np.testing.assert_allclose(two["resumed_losses"], expected, rtol=0, atol=1e-5)
    checkpoint = two_ranks.folder / strategy
    one = without_dropout(Trainer(base, two_ranks.examples, checkpoint=checkpoint))
    np.testing.assert_allclose(losses_of(one, 1, 2), expected, rtol=0, atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert plain.config.architectures == ["BertForSequenceClassification"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", [family for family, _ in IDLE])
def test_parameters_that_no_gradient_comes_to_hold_up_no_rank(
    family: str, strategy: Strategy, runs: dict[str, TwoRanks]
) -> None:
    one = runs[family]
    assert len(one.losses) == 16
    for rank in (0, 1):
        two = np.load(one.folder / f"{strategy}{rank}.npz")
        np.testing.assert_allclose(two["losses"], one.losses, rtol=0, atol=1e-5)


def test_sharded_ranks_hold_one_model_between_them(two_ranks: TwoRanks) -> None:
    ddp, fsdp = (
        [int(np.load(two_ranks.folder / f"{name}{rank}.npz")["num_held"]) for rank in (0, 1)]
        for name in STRATEGIES
    )
    assert ddp[0] == ddp[1] == sum(fsdp)
    assert max(fsdp) < 0.55 * ddp[0]


def test_sharded_ranks_take_the_steps_of_copies_with_all_that_steps_can_have(
    two_ranks: TwoRanks,
) -> None:
    ddp, fsdp = (np.load(two_ranks.folder / f"{name}0.npz") for name in STRATEGIES)
    assert len(ddp["hard_losses"]) == 24
    np.testing.assert_allclose(ddp["hard_losses"], fsdp["hard_losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ddp["lower_losses"], fsdp["lower_losses"], rtol=0.03)
    assert len(set(ddp["half_losses"])) > 1  # the scale's first steps are not all it takes
    np.testing.assert_allclose(ddp["half_losses"], fsdp["half_losses"], rtol=0.03)
