"""Copies of training rows: with other texts, the same whoever makes them, and never empty."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertray.config import Augmentation, TrainConfig, load_config
from bertray.errors import ConfigError, ModelError
from bertray.train.augment import (
    METHODS,
    Augmenter,
    choose_rows,
    count_by_method,
    load_rewrite,
    make_copies,
    open_augmenter,
)
from bertray.train.labels import Labelled

TEXTS = ["A great film!", "film", "!!!", "the plot was awful, the actor not", "very   good story"]
ROW_IDS = np.array([3, 4, 7, 20, 21])


@pytest.fixture(scope="module")
def settings(
    wordnet_folder: Path, masked_folder: Path, translation_folders: tuple[Path, Path]
) -> Augmentation:
    """Every method there is."""
    return Augmentation(
        methods=METHODS,
        num_copies=2,
        wordnet=str(wordnet_folder),
        masked_model=str(masked_folder),
        translation_models=(str(translation_folders[0]), str(translation_folders[1])),
    )


def augmenter_of(settings: Augmentation, seed: int = 0) -> Augmenter:
    augmenter = open_augmenter(settings, seed=seed)
    assert augmenter is not None
    return augmenter


def by_row(columns: list[list[str]], row_ids: np.ndarray, augmenter: Augmenter) -> dict[Any, Any]:
    copies = make_copies(columns, row_ids, augmenter)
    return {
        (row_ids[row], number): texts
        for row, number, *texts in zip(copies.rows, copies.numbers, *copies.columns, strict=True)
    }


def test_by_default_there_are_no_copies() -> None:
    assert open_augmenter(Augmentation(), seed=0) is None


def test_copies_differ_from_their_row_and_each_other_and_none_is_empty(
    settings: Augmentation,
) -> None:
    augmenter = augmenter_of(settings)
    copies = make_copies([TEXTS], ROW_IDS, augmenter)
    for row, text in enumerate(TEXTS):
        made = [copies.columns[0][place] for place in np.flatnonzero(copies.rows == row)]
        assert len({text, *made}) == 1 + len(made) <= 1 + augmenter.num_copies
        assert all(other.strip() for other in made)
    counts = count_by_method(np.concatenate([[0, 0], copies.numbers]), augmenter)
    assert list(counts) == list(METHODS)
    assert sum(counts.values()) == len(copies.rows)
    assert all(counts.values())


def test_a_rows_copies_depend_on_the_seed_and_on_no_other_row(settings: Augmentation) -> None:
    augmenter = augmenter_of(settings)
    together = by_row([TEXTS], ROW_IDS, augmenter)
    alone: dict[Any, Any] = {}
    for row in (2, 4, 0, 3, 1):
        alone |= by_row([TEXTS[row : row + 1]], ROW_IDS[row : row + 1], augmenter)
    assert alone == together
    assert by_row([TEXTS], ROW_IDS, augmenter_of(settings, seed=1)) != together
    assert by_row([TEXTS], ROW_IDS + 1, augmenter) != together


def test_of_a_pair_each_method_changes_one_text() -> None:
    augmenter = augmenter_of(Augmentation(methods=("swap", "deletion"), num_copies=3))
    pairs = [["one two three four"] * 20, ["five six seven eight"] * 20]
    copies = make_copies(pairs, np.arange(20), augmenter)
    sides = [
        [text != column[0] for text, column in zip(texts, pairs, strict=True)]
        for texts in zip(*copies.columns, strict=True)
    ]
    assert {tuple(side) for side in sides} == {(True, False), (False, True)}


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_training_rows_is_chosen_and_no_validation_row(share: float) -> None:
    is_validation = np.arange(100) % 5 == 0
    ids = np.zeros(100, np.int64)
    labelled = Labelled((), ("x", "y"), ids, is_validation, "single_label", None)
    settings = Augmentation(methods=("swap",), row_share=share)
    chosen = choose_rows(labelled, augmenter_of(settings))
    assert len(chosen) == len(set(chosen)) == round(80 * share)
    assert not is_validation[chosen].any()
    assert (np.diff(chosen) > 0).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["augmentation.methods=[masked]"], r"masked and augmentation\.masked_model go together"),
        (["augmentation.masked_model=x"], r"masked and augmentation\.masked_model go together"),
        (
            ["augmentation.methods=[back_translation]"],
            r"back_translation and augmentation\.translation_models go together",
        ),
        (["augmentation.methods=[swap, swap]"], r"names one twice"),
        (["augmentation.methods=[swop]"], r"augmentation\.methods='swop'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(words: list[str], named: str) -> None:
    needed = ["model.base=a", "data.train=b", "output.path=c"]
    with pytest.raises(ConfigError, match=named):
        load_config(TrainConfig, None, [*needed, *words])


def test_a_model_that_is_not_there_is_refused_by_its_setting(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    for changes in (
        {"methods": ("masked",), "masked_model": nothing},
        {"methods": ("back_translation",), "translation_models": (nothing, nothing)},
    ):
        with pytest.raises(ModelError, match=rf"augmentation\.{list(changes)[1]}=.*nothing"):
            open_augmenter(Augmentation(**changes), seed=0)


def test_a_model_that_changed_since_the_driver_saw_it_is_refused(settings: Augmentation) -> None:
    augmenter = augmenter_of(settings)
    sources = tuple(replace(source, digest="0" * 64) for source in augmenter.sources)
    for method in ("synonyms", "masked", "back_translation"):
        with pytest.raises(ModelError, match="on this node"):
            load_rewrite(replace(augmenter, sources=sources), method)
