"""Words change; what stands between them, and the case, stay."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.train.words import (
    WORD,
    delete_words,
    find_words,
    in_case_of,
    replace_by_synonyms,
    swap_words,
)

TEXT = 'The "plot" isn\'t well-made,  but\nGREAT actors... (2/5)!'


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in find_words(text)]


def test_words_keep_their_apostrophes_and_hyphens() -> None:
    assert words(TEXT) == "The plot isn't well-made but GREAT actors 2 5".split()
    assert words("naïve Füße 'tis _x_") == "naïve Füße tis x".split()


@given(text=st.text(), seed=st.integers(0, 99), alpha=st.sampled_from([0.05, 0.5, 1.0]))
def test_a_swap_keeps_all_words_and_all_between_them(text: str, seed: int, alpha: float) -> None:
    swapped = swap_words(text, np.random.default_rng(seed), alpha=alpha)
    assert sorted(words(swapped)) == sorted(words(text))
    assert WORD.sub("w", swapped) == WORD.sub("w", text)


@given(text=st.text(), seed=st.integers(0, 99), alpha=st.sampled_from([0.05, 0.5, 1.0]))
def test_a_deletion_takes_some_words_but_never_all(text: str, seed: int, alpha: float) -> None:
    left = delete_words(text, np.random.default_rng(seed), alpha=alpha)
    if len(words(text)) < 2:
        assert left == text
    else:
        assert left.strip()
        assert len(left) < len(text)


def test_a_deletion_leaves_one_space_and_the_punctuation() -> None:
    def left_of(text: str) -> set[str]:
        return {delete_words(text, np.random.default_rng(n), alpha=0.01) for n in range(40)}

    assert left_of("Good, bad film.") == {", bad film.", "Good, film.", "Good, bad."}
    assert left_of("so  so") == {" so", "so "}


def test_so_many_words_change_as_alpha_says() -> None:
    text = " ".join(f"w{number}" for number in range(100))
    found = replace_by_synonyms(
        text, np.random.default_rng(0), alpha=0.2, synonyms_of=lambda word: ("other",)
    )
    assert found.split().count("other") == 20
    gone = [
        100 - len(delete_words(text, np.random.default_rng(seed), alpha=0.2).split())
        for seed in range(50)
    ]
    assert np.mean(gone) == pytest.approx(20, abs=2)


def test_synonyms_take_the_place_and_the_case_of_their_word() -> None:
    table = {"the": (), "plot": ("story line",), "great": ("fine",), "actors": ()}
    found = replace_by_synonyms(
        TEXT,
        np.random.default_rng(0),
        alpha=1.0,
        synonyms_of=lambda word: table.get(word.lower(), ()),
    )
    assert found == 'The "story line" isn\'t well-made,  but\nFINE actors... (2/5)!'
    assert replace_by_synonyms(
        "it is", np.random.default_rng(0), alpha=1.0, synonyms_of=lambda word: ()
    ) == ("it is")


def test_case_is_that_of_the_word_replaced() -> None:
    cases = [("Film", "movie"), ("FILM", "movie"), ("film", "movie"), ("I", "we"), ("x", "IT")]
    assert [in_case_of(word, other) for word, other in cases] == "Movie MOVIE movie We IT".split()


def test_the_same_seed_changes_the_same_words() -> None:
    for change in (swap_words, delete_words):
        one, again = (change(TEXT, np.random.default_rng(3), alpha=0.3) for _ in range(2))
        assert one == again
        assert re.sub(r"\s", "", one) != re.sub(r"\s", "", TEXT)
