"""Words of a text changed, moved or taken out; all that stands between them stays.

The operations are those of EDA (Wei & Zou 2019, https://arxiv.org/abs/1901.11196). A word is a run
of letters and digits, apostrophes and hyphens within it included. Languages that are written
without spaces have no words in this sense, and their texts come out unchanged, or nearly so.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def find_words(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends, in order."""
    return [match.span() for match in WORD.finditer(text)]


def replace_words(text: str, words: Mapping[tuple[int, int], str]) -> str:
    """The text with other words at some of its places."""
    pieces, last = [], 0
    for (start, end), word in sorted(words.items()):
        pieces += [text[last:start], word]
        last = end
    return "".join([*pieces, text[last:]])


def swap_words(text: str, random: np.random.Generator, *, alpha: float) -> str:
    """So many pairs of words, drawn one after the other, trade places."""
    places = find_words(text)
    if len(places) < 2:
        return text
    words = [text[start:end] for start, end in places]
    for _ in range(how_many(len(places), alpha=alpha)):
        one, other = random.choice(len(words), 2, replace=False)
        words[one], words[other] = words[other], words[one]
    return replace_words(text, dict(zip(places, words, strict=True)))


def delete_words(text: str, random: np.random.Generator, *, alpha: float) -> str:
    """Each word goes with probability alpha; at least one goes, and at least one stays."""
    places = find_words(text)
    if len(places) < 2:
        return text
    goes = random.random(len(places)) < alpha
    first, other = random.choice(len(places), 2, replace=False)
    if not goes.any():
        goes[first] = True
    if goes.all():
        goes[other] = False
    pieces, last = [], 0
    for place in np.flatnonzero(goes):
        start, end = places[place]
        pieces.append(text[last : start - (start > 0 and text[start - 1].isspace())])
        last = end
    left = "".join([*pieces, text[last:]])
    is_first_gone = goes[0] and places[0][0] == 0
    return left[1:] if is_first_gone and left[:1].isspace() else left


def replace_by_synonyms(
    text: str,
    random: np.random.Generator,
    *,
    alpha: float,
    synonyms_of: Callable[[str], tuple[str, ...]],
) -> str:
    """So many of the words that have synonyms are replaced by one of them, drawn at random."""
    places = find_words(text)
    choices = {place: synonyms_of(text[slice(*place)]) for place in places}
    able = [place for place in places if choices[place]]
    if not able:
        return text
    size = min(how_many(len(places), alpha=alpha), len(able))
    replaced = {}
    for index in random.choice(len(able), size, replace=False):
        place = able[index]
        synonym = choices[place][random.integers(len(choices[place]))]
        replaced[place] = in_case_of(text[slice(*place)], synonym)
    return replace_words(text, replaced)


def how_many(num_words: int, *, alpha: float) -> int:
    """Words to change of so many: a share of alpha, but one at least."""
    return max(1, round(alpha * num_words))


def in_case_of(word: str, other: str) -> str:
    """The other word in capitals, or with a capital, if the word is."""
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
