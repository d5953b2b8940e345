"""More rows to train on: changed copies of some, with their labels.

They are made once, where the texts are read, before batches are planned: so each is tokenized once,
a resumed training has the same ones, and models that rewrite texts run once. A row's copies depend
on the settings, the seed and the row alone, on neither the number of workers nor its neighbours.

# N = rows that are to have copies, K = copies
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np

from bertray import storage
from bertray.config import Augmentation, Method
from bertray.model.cache import digest_of, fetch, fetch_same
from bertray.train.labels import Labelled
from bertray.train.words import delete_words, replace_by_synonyms, swap_words

METHODS: tuple[Method, ...] = get_args(Method)
CHOICE = len(METHODS)  # seeds the choice of rows, as a method's number seeds its copies
WORDNET = "augmentation.wordnet"
MASKED = "augmentation.masked_model"
TRANSLATION = "augmentation.translation_models"

# N texts and a random generator for each to so many versions of each.
Rewrite = Callable[[Sequence[str], Sequence[np.random.Generator], int], list[list[str]]]


@dataclass(frozen=True)
class Source:
    """What a method reads, as the driver found it.

    Attributes:
        key: the setting that named it.
        place: what any node can find it by; empty for where NLTK looks.
        digest: sha256 over its contents.
    """

    key: str
    place: str
    digest: str


@dataclass(frozen=True)
class Augmenter:
    """How copies are made. Small and plain, so that it crosses to workers.

    Attributes:
        settings: the config's section.
        seed: of the training.
        sources: what the methods read; models to translate there and back in this order.
    """

    settings: Augmentation
    seed: int
    sources: tuple[Source, ...]

    @property
    def num_copies(self) -> int:
        """Copies of a row at most."""
        return self.settings.num_copies * len(self.settings.methods)

    @property
    def runs_models(self) -> bool:
        """Whether a GPU makes it faster."""
        return any(source.key != WORDNET for source in self.sources)

    def sources_of(self, key: str) -> list[Source]:
        """Those that a setting names."""
        return [source for source in self.sources if source.key == key]


@dataclass(frozen=True)
class Copies:
    """K changed copies.

    Attributes:
        rows: int64 of shape (K,), which of the N rows each is a copy of.
        numbers: int64 of shape (K,), from 1 on; a row's copies have different ones.
        columns: the texts of the K copies, for each text column.
    """

    rows: np.ndarray
    numbers: np.ndarray
    columns: list[list[str]]


def open_augmenter(settings: Augmentation, *, seed: int) -> Augmenter | None:
    """Look at what the methods need; None if there are none.

    Raises:
        ConfigError: NLTK or its WordNet is not there.
        ModelError: there is no such model.
    """
    if not settings.methods:
        return None
    models = [(TRANSLATION, name) for name in settings.translation_models or ()]
    if settings.masked_model is not None:
        models.append((MASKED, settings.masked_model))
    sources = [
        Source(key, _absolute(name), digest_of(fetch(name, key=key))) for key, name in models
    ]
    if "synonyms" in settings.methods:
        from bertray.train.synonyms import WordNet

        folder = storage.absolute(settings.wordnet) if settings.wordnet else ""
        sources.append(Source(WORDNET, folder, WordNet(folder).digest))
    return Augmenter(settings, seed, tuple(sources))


def choose_rows(labelled: Labelled, augmenter: Augmenter) -> np.ndarray:
    """Row ids of the training rows that are to have copies, ascending."""
    training = np.flatnonzero(~labelled.is_validation)
    size = round(augmenter.settings.row_share * len(training))
    random = np.random.default_rng([augmenter.seed, CHOICE])
    return np.sort(random.choice(training, size, replace=False))


def make_copies(
    columns: Sequence[Sequence[str]], row_ids: np.ndarray, augmenter: Augmenter
) -> Copies:
    """Copies of N rows, each with another text than its row and the other copies.

    A method that finds nothing to change in a row makes fewer copies of it, or none. Of a pair of
    texts each method changes one, drawn for the row, and leaves the other as it is.

    Args:
        columns: the N texts of the text column, and those of the second one where rows are pairs.
        row_ids: of the N rows.
        augmenter: from `open_augmenter`.
    """
    seen = [set(enumerate(texts)) for texts in zip(*columns, strict=True)]
    made: list[tuple[int, int, list[str]]] = []
    for place, method in enumerate(augmenter.settings.methods):
        key = METHODS.index(method)
        randoms = [np.random.default_rng([augmenter.seed, key, row_id]) for row_id in row_ids]
        sides = [int(random.integers(len(columns))) for random in randoms]
        texts = [columns[side][row] for row, side in enumerate(sides)]
        num_copies = augmenter.settings.num_copies
        versions = _rewriter(augmenter, method)(texts, randoms, num_copies)
        for row, side in enumerate(sides):
            for copy, text in enumerate(versions[row]):
                if text.strip() and (side, text) not in seen[row]:
                    seen[row].add((side, text))
                    others = [column[row] for column in columns]
                    others[side] = text
                    made.append((row, 1 + place * num_copies + copy, others))
    return Copies(
        rows=np.array([row for row, _, _ in made], np.int64),
        numbers=np.array([number for _, number, _ in made], np.int64),
        columns=[[texts[side] for _, _, texts in made] for side in range(len(columns))],
    )


def count_by_method(numbers: np.ndarray, augmenter: Augmenter) -> dict[str, int]:
    """How many copies each method has made, by their numbers; 0 is a row itself."""
    settings, copies = augmenter.settings, numbers[numbers > 0]
    counts = np.bincount((copies - 1) // settings.num_copies, minlength=len(settings.methods))
    return dict(zip(settings.methods, counts.tolist(), strict=True))


def load_rewrite(augmenter: Augmenter, method: Method) -> Rewrite:
    """What a method does, its model loaded.

    Raises:
        ConfigError: NLTK or its WordNet is not there.
        ModelError: the model cannot be used, or is not the one that the driver saw.
    """
    settings = augmenter.settings
    if method == "swap":
        return _one_by_one(partial(swap_words, alpha=settings.swap_alpha))
    if method == "deletion":
        return _one_by_one(partial(delete_words, alpha=settings.deletion_alpha))
    if method == "synonyms":
        from bertray.train.synonyms import WordNet, verify

        [source] = augmenter.sources_of(WORDNET)
        wordnet = verify(source.digest, WordNet(source.place))
        alpha = settings.synonyms_alpha
        return _one_by_one(
            partial(replace_by_synonyms, alpha=alpha, synonyms_of=wordnet.synonyms_of)
        )
    from bertray.train.paraphrase import BackTranslation, MaskedModel

    if method == "masked":
        [source] = augmenter.sources_of(MASKED)
        model = MaskedModel(_folder_of(source), source=source.place)
        return lambda texts, randoms, num_copies: model.rewrite(
            texts, randoms, alpha=settings.masked_alpha, num_copies=num_copies
        )
    there, back = augmenter.sources_of(TRANSLATION)
    translation = BackTranslation(
        (_folder_of(there), _folder_of(back)), sources=(there.place, back.place)
    )
    return lambda texts, randoms, num_copies: translation.rewrite(texts, num_copies=num_copies)


_rewriter = cache(load_rewrite)  # loaded once a process


def _one_by_one(change: Callable[[str, np.random.Generator], str]) -> Rewrite:
    """Each text by itself, its copies one after the other."""
    return lambda texts, randoms, num_copies: [
        [change(text, random) for _ in range(num_copies)]
        for text, random in zip(texts, randoms, strict=True)
    ]


def _folder_of(source: Source) -> Path:
    return fetch_same(source.place, source.digest, key=source.key)


def _absolute(name: str) -> str:
    """What any node can find a model by."""
    return storage.absolute(name) if Path(name).expanduser().is_dir() else name
