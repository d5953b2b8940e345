import numpy as np
import pytest
from small_models import random_texts

from bertray.model import doubt
from bertray.model.bundle import open_bundle
from bertray.model.doubt import CLOSE, in_doubt
from bertray.model.engine import Engine, EngineStats
from bertray.model.settings import resolve_settings


def test_rows_that_are_not_finite_are_in_doubt_in_float16():
    rows = np.array([[0.5, 0.5], [np.nan, 0.1], [0.2, np.inf]])
    found = in_doubt(rows, dtype="float16", task="single_label", thresholds=None)
    assert found.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("task", "thresholds", "rows", "wanted"),
    [
        ("single_label", None, [[0.51, 0.49], [0.53, 0.47]], [True, False]),
        ("single_label", None, [[0.1, 0.46, 0.44], [0.45, 0.1, 0.45]], [True, True]),
        ("single_label", None, [[0.32, 0.3, 0.38], [np.nan] * 3], [False, False]),
        ("multi_label", None, [[0.51, 0.9], [0.1, 0.9], [0.9, 0.48]], [True, False, True]),
        ("multi_label", [0.1, 0.9], [[0.51, 0.5], [0.12, 0.5], [0.5, 0.88]], [False, True, True]),
        ("regression", None, [[0.5], [0.0]], [False, False]),
    ],
)
def test_close_calls_are_in_doubt_in_int8(task, thresholds, rows, wanted):
    found = in_doubt(np.array(rows), dtype="int8", task=task, thresholds=thresholds)
    assert found.tolist() == wanted


def test_close_calls_of_int8_are_computed_in_float32(classifier_folder, monkeypatch):
    bundle, texts = open_bundle(str(classifier_folder)), random_texts(1_000)

    def predict(dtype):
        settings = resolve_settings(bundle, device="cpu", backend="onnx", dtype=dtype)
        stats = EngineStats()
        found = Engine(bundle, settings, num_threads=1).predict(texts, stats=stats).probabilities
        return found, stats.num_padded_tokens

    exact, _ = predict("float32")
    found, tokens = predict("int8")
    monkeypatch.setattr(doubt, "CLOSE", 0.0)
    first_pass, fewer_tokens = predict("int8")
    second, first = np.sort(first_pass, axis=1)[:, -2:].T
    close = first - second < CLOSE
    assert 10 < close.sum() < 100
    np.testing.assert_allclose(found[close], exact[close], atol=1e-5)
    np.testing.assert_array_equal(found[~close], first_pass[~close])
    assert fewer_tokens < tokens < 1.1 * fewer_tokens
    labels, wanted = first_pass.argmax(axis=1), exact.argmax(axis=1)
    assert 0 < (found.argmax(axis=1) != wanted).sum() < (labels != wanted).sum()
