"""Random models say nonsense; what is promised holds all the same."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import NllbTokenizer

from bertray.errors import ModelError
from bertray.train.paraphrase import SENTENCE_END, BackTranslation, MaskedModel, _apart
from bertray.train.words import find_words

TEXTS = ["The plot was good, not GREAT!", "awful", "good " * 60, "...", "a bad film.\nGood actor?"]

Rewrite = Callable[..., list[list[str]]]


def randoms(num_texts: int = len(TEXTS)) -> list[np.random.Generator]:
    return [np.random.default_rng([7, row]) for row in range(num_texts)]


@pytest.fixture(scope="module")
def masked(masked_folder: Path) -> MaskedModel:
    return MaskedModel(masked_folder, source="tiny")


@pytest.fixture(scope="module")
def translation(translation_folders: tuple[Path, Path]) -> BackTranslation:
    return BackTranslation(translation_folders, sources=("there", "back"))


def changed(text: str, other: str) -> list[int]:
    """Which words differ."""
    one, two = ([t[start:end] for start, end in find_words(t)] for t in (text, other))
    return [place for place, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]


def test_a_share_of_the_words_is_guessed_and_all_else_stays(masked: MaskedModel) -> None:
    versions = masked.rewrite(TEXTS, randoms(), alpha=0.34, num_copies=3)
    assert [len(row) for row in versions] == [3] * len(TEXTS)
    for text in versions[0]:
        assert len(changed(TEXTS[0], text)) == 2
        assert (text[-1], text.count(",")) == ("!", 1)
        assert text[0].isupper()
    assert all(changed("awful", text) == [0] for text in versions[1])
    assert len(set(versions[0])) > 1  # copies are drawn anew
    assert versions[3] == ["..."] * 3


def test_words_that_the_model_does_not_see_stay(masked: MaskedModel) -> None:
    [[text]] = masked.rewrite([TEXTS[2]], randoms(1), alpha=1.0, num_copies=1)
    assert changed(TEXTS[2], text) == list(range(30))  # of 32 tokens two are special


def test_words_that_share_a_token_or_have_none_are_left_alone() -> None:
    """As in "the u.s. \u200dx is big", where "u.s." is one token, and the x is thrown away."""
    places = [(0, 3), (4, 5), (6, 7), (10, 11), (12, 14), (15, 18)]
    spans = [(0, 0), (0, 3), (3, 8), (11, 14), (14, 16), (16, 18), (0, 0)]
    assert _apart(places, spans) == [(0, 3), (12, 14), (15, 18)]


def test_a_row_is_rewritten_the_same_whatever_stands_beside_it(masked: MaskedModel) -> None:
    together = masked.rewrite(TEXTS, randoms(), alpha=0.3, num_copies=2)
    alone = [
        masked.rewrite([text], [random], alpha=0.3, num_copies=2)[0]
        for text, random in zip(TEXTS, randoms(), strict=True)
    ]
    assert together == alone


def test_a_translation_is_the_models_own_there_and_back(
    translation: BackTranslation, translation_folders: tuple[Path, Path]
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    text = "the film was good"
    for folder in translation_folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        inputs = tokenizer([text], return_tensors="pt")
        longest = 2 * inputs["input_ids"].shape[1] + 8
        made = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=longest)
        [text] = [tokenizer.decode(made[0], skip_special_tokens=True).strip()]
    assert translation.rewrite(["the film was good"], num_copies=1) == [[text]]
    assert text != "the film was good"


def test_sentences_are_translated_one_by_one_and_the_space_between_them_stays(
    translation: BackTranslation,
) -> None:
    one, two = (translation.rewrite([text], num_copies=1)[0][0] for text in ("a film.", "bad!"))
    [[both]] = translation.rewrite([" a film.  bad!\n"], num_copies=1)
    assert both == f" {one}  {two}\n"


def test_a_run_of_spaces_takes_no_longer_than_its_length() -> None:
    start = time.process_time()
    assert SENTENCE_END.split("a" + " " * 200_000 + "b \n c") == [
        "a" + " " * 200_000 + "b",
        " \n ",
        "c",
    ]
    assert time.process_time() - start < 10  # quadratic, it takes minutes


def test_copies_are_further_translations(translation: BackTranslation) -> None:
    [first, *more] = translation.rewrite(TEXTS, num_copies=3)
    assert len(first) == 3
    assert len(set(first)) > 1
    assert translation.rewrite(TEXTS, num_copies=3) == [first, *more]


def test_a_sentence_too_long_to_translate_stays_and_none_comes_back_empty(
    translation: BackTranslation,
) -> None:
    versions = translation.rewrite([*TEXTS, "film " * 80], num_copies=1)
    assert versions[-1] == ["film " * 80]
    assert all(text.strip() for row in versions for text in row)


def test_a_model_of_another_kind_is_refused_by_its_setting(
    classifier_folder: Path, translation_folders: tuple[Path, Path]
) -> None:
    with pytest.raises(ModelError, match=r"masked_model=x: the weights lack cls\.predictions"):
        MaskedModel(classifier_folder, source="x")
    with pytest.raises(ModelError, match=r"translation_models=y: cannot be loaded"):
        BackTranslation((translation_folders[0], classifier_folder), sources=("x", "y"))
    with pytest.raises(ModelError, match=r"masked_model=x: needs a mask token"):
        MaskedModel(translation_folders[0], source="x")


def test_a_translation_model_of_many_languages_is_refused(
    tmp_path: Path, translation_folders: tuple[Path, Path]
) -> None:
    words = ["<s>", "<pad>", "</s>", "<unk>", "film"]
    vocabulary = {word: place for place, word in enumerate(words)}
    NllbTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"translation_models: y must be told the languages"):
        BackTranslation((translation_folders[0], tmp_path), sources=("x", "y"))


def test_a_model_that_translates_when_told_to_is_refused(
    tmp_path: Path, translation_folders: tuple[Path, Path]
) -> None:
    """As T5 has it."""
    shutil.copytree(translation_folders[0], tmp_path / "model")
    file = tmp_path / "model/config.json"
    tasks = {"translation_en_to_de": {"prefix": "translate English to German: "}}
    settings = json.loads(file.read_text()) | {"task_specific_params": tasks}
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"translation_models: x is of many tasks"):
        BackTranslation((tmp_path / "model", translation_folders[1]), sources=("x", "y"))
