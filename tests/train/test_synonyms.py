"""Synonyms are those of a word's most frequent sense; what is missing is said with the remedy."""

import shutil
import sys
from pathlib import Path

import pytest

from bertray.errors import ConfigError, ModelError
from bertray.train.synonyms import WordNet, verify


def test_synonyms_are_those_of_the_most_frequent_sense(wordnet_folder: Path) -> None:
    wordnet = WordNet(str(wordnet_folder))
    assert wordnet.synonyms_of("Film") == ("movie", "motion picture")  # not celluloid
    assert wordnet.synonyms_of("terrible") == ("awful", "dire")
    for word in ("good", "unheard-of", "very", "films"):  # alone, unknown, a stop word, a plural
        assert wordnet.synonyms_of(word) == ()


def test_a_wordnet_as_nltk_downloads_it_is_read_from_its_zip(
    wordnet_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpora").mkdir()
    archive = str(tmp_path / "corpora/wordnet")
    shutil.make_archive(archive, "zip", wordnet_folder / "corpora", "wordnet")
    wordnet = WordNet(str(tmp_path))
    assert wordnet.synonyms_of("film") == ("movie", "motion picture")
    assert wordnet.digest == WordNet(str(wordnet_folder)).digest


def test_without_nltk_or_its_wordnet_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.wordnet=.*nltk\.downloader wordnet"):
        WordNet(str(tmp_path))
    monkeypatch.setitem(sys.modules, "nltk.data", None)
    with pytest.raises(ConfigError, match=r"pip install bertray\[augment\]"):
        WordNet("")


def test_a_wordnet_that_lacks_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpora/wordnet").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"augmentation\.wordnet=.*data\.adj|lexnames|cntlist"):
        WordNet(str(tmp_path))


def test_another_wordnet_than_the_drivers_is_refused(wordnet_folder: Path) -> None:
    wordnet = WordNet(str(wordnet_folder))
    assert verify(wordnet.digest, wordnet) is wordnet
    with pytest.raises(ModelError, match="another WordNet on this node"):
        verify("0" * 64, wordnet)
