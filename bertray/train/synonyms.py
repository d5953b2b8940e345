"""Synonyms from WordNet, as NLTK keeps it on this machine."""

import hashlib
import warnings
from functools import cache
from typing import Any

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from bertray.errors import ConfigError, ModelError

KEY = "augmentation.wordnet"
INSTALL = "pip install bertray[augment]"
FILES = [f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv")]


class WordNet:
    """Looks up synonyms; about three seconds to load.

    Args:
        folder: an NLTK data folder, which holds ``corpora/wordnet``; empty for where NLTK looks.

    Raises:
        ConfigError: NLTK is not installed, or finds no WordNet.
    """

    def __init__(self, folder: str) -> None:
        self._reader = _open_reader(folder)
        self.synonyms_of = cache(self._synonyms_of)

    @property
    def digest(self) -> str:
        """sha256 over the words and their senses."""
        whole = hashlib.sha256()
        for name in FILES:
            whole.update(self._reader.open(name).read().encode())
        return whole.hexdigest()

    def _synonyms_of(self, word: str) -> tuple[str, ...]:
        """What else is said for the most frequent sense of a word; empty for a word like "the".

        Only words as they stand in a dictionary have any: a plural's synonyms are singulars.
        """
        name = word.lower()
        if name in ENGLISH_STOP_WORDS:
            return ()
        senses = self._reader.lemmas(name)
        if not senses:
            return ()
        sense = max(senses, key=lambda sense: sense.count())
        others = [other.replace("_", " ") for other in sense.synset().lemma_names()]
        return tuple(other for other in others if other.lower() != name)


def verify(digest: str, wordnet: WordNet) -> WordNet:
    """The same WordNet, if it is the one that the driver saw.

    Raises:
        ModelError: it is not.
    """
    if wordnet.digest != digest:
        raise ModelError(
            f"{KEY}: another WordNet on this node than on the driver; put the same one on all nodes"
        )
    return wordnet


def _open_reader(folder: str) -> Any:
    try:
        import nltk.data
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError as error:
        raise ConfigError(
            f"augmentation.methods: synonyms need NLTK ({error}); {INSTALL} on all nodes"
        ) from error
    if folder and folder not in nltk.data.path:
        nltk.data.path.append(folder)  # it opens no file elsewhere
    paths = [folder] if folder else None
    try:
        try:
            root = nltk.data.find("corpora/wordnet", paths)
        except LookupError:
            root = nltk.data.find("corpora/wordnet.zip/wordnet/", paths)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it knows English alone
            return WordNetCorpusReader(root, None)
    except (LookupError, OSError) as error:
        where = f"{KEY}={folder}" if folder else "augmentation.methods: synonyms"
        reason = "" if isinstance(error, LookupError) else f" ({error})"
        raise ConfigError(
            f"{where}: NLTK finds no WordNet{reason}; run `python -m nltk.downloader wordnet` on "
            f"all nodes, or name a folder that holds corpora/wordnet as {KEY}"
        ) from error
