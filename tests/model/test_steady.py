from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import COMMON, random_texts
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BigBirdConfig,
    PretrainedConfig,
    ReformerConfig,
)

from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings

TOO_SHORT = (5 + 2) * 4  # tokens, for sparse attention


CHUNK = 8  # tokens that hashing leaves together

REFORMER = ReformerConfig(
    vocab_size=COMMON["vocab_size"],
    hidden_size=32,
    attention_head_size=8,
    num_attention_heads=4,
    feed_forward_size=48,
    attn_layers=["local", "lsh", "local", "lsh"],
    axial_pos_shape=[8, 8],
    axial_pos_embds_dim=[16, 16],
    max_position_embeddings=64,
    num_buckets=4,
    lsh_attn_chunk_length=CHUNK,
    local_attn_chunk_length=CHUNK,
    num_labels=3,
    initializer_range=0.5,
    pad_token_id=0,
)


@pytest.fixture
def save(tmp_path: Path, classifier_folder: Path) -> Callable[[PretrainedConfig], Path]:
    def save_classifier(config: PretrainedConfig) -> Path:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path)
        return tmp_path

    return save_classifier


def make_engine(folder: Path) -> Engine:
    bundle = open_bundle(str(folder))
    return Engine(bundle, resolve_settings(bundle, device="cpu"), num_threads=1)


def alone(folder: Path, text: str) -> np.ndarray:
    """As plain transformers has it, with a model that has read nothing else."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        return model(**inputs).logits.softmax(-1)[0].numpy()


def test_a_row_of_big_birds_has_the_numbers_that_it_has_alone_whatever_came_before(save, caplog):
    big_bird = save(BigBirdConfig(**COMMON, block_size=4, num_random_blocks=1))
    texts = random_texts(12, longest=60)
    num_words = [len(text.split()) + 2 for text in texts]
    assert min(num_words) < TOO_SHORT < max(num_words)
    engine = make_engine(big_bird)
    wanted = np.array([alone(big_bird, text) for text in texts])
    for order in (np.argsort(num_words), np.argsort(num_words)[::-1]):
        found = np.concatenate([engine.predict([texts[row]]).probabilities for row in order])
        np.testing.assert_allclose(found, wanted[order], atol=1e-5, rtol=0)
    np.testing.assert_allclose(engine.predict(texts).probabilities, wanted, atol=1e-5, rtol=0)
    assert "this big_bird attends hangs on the longest row" in caplog.text


def test_a_row_of_reformers_has_the_same_numbers_in_all_batches_of_all_engines(save, caplog):
    folder = save(REFORMER)
    texts = random_texts(12, longest=60)
    assert max(len(text.split()) for text in texts) > 4 * CHUNK
    first, second = make_engine(folder), make_engine(folder)
    found = first.predict(texts).probabilities
    assert second.predict(texts).probabilities.tobytes() == found.tobytes()
    again = np.concatenate([first.predict([text]).probabilities for text in texts])
    np.testing.assert_allclose(again, found, atol=1e-5, rtol=0)
    assert "this reformer attends hangs on the longest row" in caplog.text
