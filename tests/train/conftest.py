"""Rows and models that train in no time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from bertray.config import TrainModel
from bertray.text.encoding import Encoded
from bertray.train.base import Base, open_base
from bertray.train.examples import Examples

MakeExamples = Callable[..., Examples]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These models are so small that a second thread only waits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(classifier_folder: Path) -> Base:
    """The small random BERT as a model to start from."""
    return open_base(TrainModel(base=str(classifier_folder), max_length=32))


@pytest.fixture(scope="session")
def make_examples() -> MakeExamples:
    """Rows of random tokens; row ids are not places, so that mixing them up shows."""

    def make(num_rows: int, *, num_labels: int = 2, longest: int = 20, seed: int = 0) -> Examples:
        random = np.random.default_rng(seed)
        lengths = random.integers(2, longest + 1, num_rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = random.integers(5, 40, offsets[-1]).astype(np.int32)
        return Examples(
            encoded=Encoded(ids, offsets, np.zeros(len(ids), np.int8)),
            targets=random.integers(0, num_labels, num_rows),
            row_ids=1000 + 3 * np.arange(num_rows),
        )

    return make


@pytest.fixture(scope="session")
def wordnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NLTK data folder with a WordNet of six senses."""
    return tiny_models.write_wordnet(tmp_path_factory.mktemp("nltk_data"))


@pytest.fixture(scope="session")
def masked_folder(tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path) -> Path:
    """A small random masked language model."""
    folder = tmp_path_factory.mktemp("masked") / "model"
    return tiny_models.save_masked_model(folder, like=classifier_folder)


@pytest.fixture(scope="session")
def translation_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Small random translation models, there and back."""
    root = tmp_path_factory.mktemp("translation")
    return (
        tiny_models.save_translation_model(root / "there", seed=0),
        tiny_models.save_translation_model(root / "back", seed=1),
    )
