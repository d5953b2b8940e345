"""Rows in windows: one line of logits each, and none is lost, doubled or moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertray.errors import ConfigError
from bertray.model import engine as engine_module
from bertray.model.bundle import load_model, open_bundle
from bertray.model.engine import Engine, EngineStats
from bertray.model.settings import resolve_settings
from bertray.model.windows import pool_windows
from bertray.schema import EMPTY_TEXT, NOT_FINITE, NULL_TEXT, OK
from bertray.text.long import LongText

WORDS = "good bad film plot the a is was very not great story actor".split()
BAD_WORD = "awful"
MAX_LENGTH, STRIDE = 12, 3
WINDOW = LongText("window", STRIDE)
text_st = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def bundle(classifier_folder):
    return replace(open_bundle(str(classifier_folder)), max_length=MAX_LENGTH, long_text=WINDOW)


def make_engine(bundle, **wanted):
    return Engine(bundle, resolve_settings(bundle, device="cpu", **wanted), num_threads=1)


def by_hand(bundle, texts, *, aggregate="mean"):
    """Window by window through Hugging Face, and plain numpy over them."""
    tokenizer, model = AutoTokenizer.from_pretrained(bundle.folder), load_model(bundle)
    rows = []
    for text in texts:
        windows = tokenizer(
            text,
            truncation=True,
            max_length=MAX_LENGTH,
            stride=STRIDE,
            return_overflowing_tokens=True,
        )["input_ids"]
        with torch.inference_mode():
            logits = [model(torch.tensor([ids])).logits[0].numpy() for ids in windows]
        pooled = np.mean(logits, axis=0) if aggregate == "mean" else np.max(logits, axis=0)
        rows.append(np.exp(pooled) / np.exp(pooled).sum())
    return np.array(rows)


def random_texts(count, *, seed=0, longest=60):
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, chance.integers(1, longest))) for _ in range(count)]


@given(counts=st.lists(st.integers(1, 5), max_size=8), aggregate=st.sampled_from(["mean", "max"]))
def test_logits_are_pooled_row_by_row(counts, aggregate):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(sum(counts), 3))).float()
    found = pool_windows(logits, np.array(counts, np.int64), aggregate=aggregate)
    parts = torch.split(logits, counts)
    wanted = [part.mean(0) if aggregate == "mean" else part.amax(0) for part in parts]
    assert found.shape == (len(counts), 3)
    for row, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_a_window_that_is_not_finite_makes_its_row_so(aggregate):
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, 4.0]])
    found = pool_windows(logits, np.array([2, 1]), aggregate=aggregate)
    assert found.isfinite().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_probabilities_are_those_made_by_hand(bundle, backend, aggregate):
    engine = make_engine(bundle, backend=backend, long_text=replace(WINDOW, aggregate=aggregate))
    texts = random_texts(12)
    wanted = by_hand(bundle, texts, aggregate=aggregate)
    np.testing.assert_allclose(engine.predict(texts).probabilities, wanted, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def engines(bundle):
    """At a few budgets; the smallest takes less than a window."""
    return [make_engine(bundle, max_batch_tokens=tokens) for tokens in (8, 60, 4096)]


@given(texts=st.lists(text_st | st.sampled_from([None, "", " \t"]), max_size=10))
@settings(max_examples=15)
def test_rows_in_are_rows_out_at_any_batch_size(engines, bundle, texts):
    first, *others = (engine.predict(texts) for engine in engines)
    wanted = [NULL_TEXT if t is None else OK if t.strip() else EMPTY_TEXT for t in texts]
    assert list(first.status) == wanted
    for other in others:
        assert other.status == first.status
        np.testing.assert_allclose(
            other.probabilities, first.probabilities, atol=1e-5, rtol=0, equal_nan=True
        )


def test_repeats_are_computed_once_and_keep_their_places(bundle):
    one, two = random_texts(2, seed=3)
    stats = EngineStats()
    found = make_engine(bundle).predict([one, two, None, one], stats=stats).probabilities
    assert (stats.num_rows, stats.num_distinct) == (4, 2)
    assert found[0].tobytes() == found[3].tobytes()
    np.testing.assert_allclose(found[:2], by_hand(bundle, [one, two]), atol=1e-5)


def test_the_same_rows_give_the_same_bytes_on_any_engine(bundle):
    texts = random_texts(40)
    first, second = (make_engine(bundle) for _ in range(2))
    second.predict(random_texts(10, seed=1))
    assert first.predict(texts).probabilities.tobytes() == (
        second.predict(texts).probabilities.tobytes()
    )


@pytest.mark.parametrize("long_text", [LongText("head_tail"), WINDOW])
def test_rows_that_fit_are_what_truncation_makes_of_them(bundle, long_text):
    texts = random_texts(20, longest=5)
    truncated = make_engine(bundle, long_text=LongText()).predict(texts).probabilities
    found = make_engine(bundle, long_text=long_text).predict(texts).probabilities
    assert found.tobytes() == truncated.tobytes()


def test_the_first_window_alone_costs_and_gives_what_truncation_does(bundle):
    texts = random_texts(20)
    costs, found = [], []
    for long_text in (LongText(), replace(WINDOW, aggregate="first")):
        costs.append(EngineStats())
        engine = make_engine(bundle, long_text=long_text)
        found.append(engine.predict(texts, stats=costs[-1]).probabilities.tobytes())
    assert found[0] == found[1]
    assert costs[0].num_padded_tokens == costs[1].num_padded_tokens


class Faulty:
    """A backend in which windows with a word fail, and batches over a size run out of memory."""

    pads, is_even, is_first_only, device = False, False, False, torch.device("cpu")

    def __init__(self, backend, bad_id, most_tokens):
        self.backend, self.bad_id, self.most_tokens = backend, bad_id, most_tokens

    def gather(self, encoded, rows):
        if encoded.lengths[rows].sum() > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        for row in rows:
            if self.bad_id in encoded.input_ids[encoded.offsets[row] : encoded.offsets[row + 1]]:
                raise IndexError("index out of range in self")
        return self.backend.gather(encoded, rows)

    def __call__(self, batch):
        return self.backend(batch)


def test_bad_windows_cost_their_own_rows_alone_though_memory_runs_out(bundle, monkeypatch):
    load = engine_module._load_backend
    bad_id = AutoTokenizer.from_pretrained(bundle.folder).convert_tokens_to_ids(BAD_WORD)
    monkeypatch.setattr(
        engine_module,
        "_load_backend",
        lambda *args, **kwargs: Faulty(load(*args, **kwargs), bad_id, 40),
    )
    texts = random_texts(15)
    for row in (2, 9):  # one is bad in its last window alone, the other in many
        texts[row] = f"{texts[row]} {'good ' * 30}{f'{BAD_WORD} good ' * (1 + row)}"
    stats = EngineStats()
    engine = make_engine(bundle, backend="torch", max_batch_tokens=160)
    found = engine.predict(texts, stats=stats)
    assert stats.num_halvings >= 2
    reason = "the model failed: IndexError: index out of range in self"
    assert [row for row, status in enumerate(found.status) if status == reason] == [2, 9]
    fine = [row for row, status in enumerate(found.status) if status == OK]
    assert len(fine) == 13
    wanted = by_hand(bundle, [texts[row] for row in fine])
    np.testing.assert_allclose(found.probabilities[fine], wanted, atol=1e-5)
    assert np.isnan(found.probabilities[[2, 9]]).all()


def test_a_row_with_a_window_that_is_not_finite_is_the_only_one_lost(bundle):
    engine = make_engine(bundle, backend="torch")
    bad_id = AutoTokenizer.from_pretrained(bundle.folder).convert_tokens_to_ids(BAD_WORD)
    with torch.no_grad():
        engine._backend._packed.embeddings.words.weight[bad_id] = float("nan")
    found = engine.predict(["good " * 30, "good " * 30 + BAD_WORD, "bad"])
    assert found.status == (OK, NOT_FINITE, OK)


def test_settings_refuse_what_windows_cannot_do(bundle):
    with pytest.raises(ConfigError, match=r"text\.long=window takes single texts"):
        resolve_settings(bundle, device="cpu", has_pairs=True)
    with pytest.raises(ConfigError, match=r"text\.stride=10; set a smaller"):
        resolve_settings(bundle, device="cpu", long_text=LongText("window", 10))
    assert resolve_settings(bundle, device="cpu").long_text == WINDOW
    assert (
        resolve_settings(bundle, device="cpu", long_text=LongText(), has_pairs=True).long_text
        == LongText()
    )
