from dataclasses import replace

import numpy as np
import pytest
from small_models import random_texts

from bertray.model import doubt
from bertray.model.bundle import open_bundle
from bertray.model.doubt import CLOSE, in_doubt
from bertray.model.engine import Engine, EngineStats, verify_int8
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


@pytest.mark.parametrize(
    ("below", "best", "wanted"),
    [
        (0.8, [0.79, 0.82, 0.83, 0.77, np.nan], [True, True, False, False, False]),
        (0.99, [0.97, 0.986, 0.994, 0.996], [False, True, True, False]),
    ],
)
def test_rows_that_8_bits_alone_might_let_abstain_are_in_doubt(below, best, wanted):
    rows = np.array([[one, 1 - one] for one in best])
    found = in_doubt(rows, dtype="int8", task="single_label", thresholds=None, abstain_below=below)
    assert found.tolist() == wanted


def test_rows_near_the_cutoff_are_computed_in_float32_and_counted_as_labels(
    classifier_folder, monkeypatch
):
    bundle, texts = open_bundle(str(classifier_folder)), random_texts(1_000)
    plain = resolve_settings(bundle, device="cpu", backend="onnx")
    settings = replace(plain, abstain_below=0.6)

    def top(settings):
        return Engine(bundle, settings, num_threads=1).predict(texts).probabilities.max(axis=1)

    exact, found = top(plain), top(replace(settings, dtype="int8"))
    agreed = verify_int8(bundle, settings, texts, num_threads=1)
    monkeypatch.setattr(doubt, "CLOSE", 0.0)
    first_pass = top(replace(settings, dtype="int8"))
    near = np.abs(first_pass - 0.6) < CLOSE / 2
    assert near.sum() > 10
    np.testing.assert_allclose(found[near], exact[near], atol=1e-5)
    moved = (exact < 0.6) != (first_pass < 0.6)
    assert moved.any()
    assert verify_int8(bundle, settings, texts, num_threads=1) <= 1 - moved.mean()
    assert agreed > verify_int8(bundle, settings, texts, num_threads=1)


def test_close_calls_of_int8_are_computed_in_float32(classifier_folder, monkeypatch):
    bundle, texts = open_bundle(str(classifier_folder)), random_texts(1_000)

    def predict(dtype):
        settings = resolve_settings(bundle, device="cpu", backend="onnx", dtype=dtype)
        stats = EngineStats()
        found = Engine(bundle, settings, num_threads=1).predict(texts, stats=stats).probabilities
        return found, stats.num_tokens_again

    exact, none_again = predict("float32")
    found, tokens_again = predict("int8")
    monkeypatch.setattr(doubt, "CLOSE", 0.0)
    first_pass, _ = predict("int8")
    second, first = np.sort(first_pass, axis=1)[:, -2:].T
    close = first - second < CLOSE
    assert 10 < close.sum() < 100
    np.testing.assert_allclose(found[close], exact[close], atol=1e-5)
    np.testing.assert_array_equal(found[~close], first_pass[~close])
    assert none_again == 0 < close.sum() < tokens_again
    labels, wanted = first_pass.argmax(axis=1), exact.argmax(axis=1)
    assert 0 < (found.argmax(axis=1) != wanted).sum() < (labels != wanted).sum()
