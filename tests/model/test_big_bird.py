from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import COMMON, random_texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BigBirdConfig

from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings

TOO_SHORT = (5 + 2) * 4  # tokens, for sparse attention


@pytest.fixture
def big_bird(tmp_path: Path, classifier_folder: Path) -> Path:
    torch.manual_seed(0)
    config = BigBirdConfig(**COMMON, block_size=4, num_random_blocks=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path)
    return tmp_path


def alone(folder: Path, text: str) -> np.ndarray:
    """As plain transformers has it, with a model that has read nothing else."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        return model(**inputs).logits.softmax(-1)[0].numpy()


def test_a_row_has_the_numbers_that_it_has_alone_whatever_came_before(big_bird, caplog):
    bundle = open_bundle(str(big_bird))
    texts = random_texts(12, longest=60)
    num_words = [len(text.split()) + 2 for text in texts]
    assert min(num_words) < TOO_SHORT < max(num_words)
    engine = Engine(bundle, resolve_settings(bundle, device="cpu"), num_threads=1)
    wanted = np.array([alone(big_bird, text) for text in texts])
    for order in (np.argsort(num_words), np.argsort(num_words)[::-1]):
        found = np.concatenate([engine.predict([texts[row]]).probabilities for row in order])
        np.testing.assert_allclose(found, wanted[order], atol=1e-5, rtol=0)
    np.testing.assert_allclose(engine.predict(texts).probabilities, wanted, atol=1e-5, rtol=0)
    assert "this big_bird attends hangs on the longest row" in caplog.text
