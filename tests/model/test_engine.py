import builtins
import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import WORDS, random_texts
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CanineConfig,
    CanineTokenizer,
    PreTrainedTokenizerFast,
)

from bertray.errors import ConfigError, ModelError
from bertray.model import engine as engine_module
from bertray.model import settings as settings_module
from bertray.model.bundle import load_model, open_bundle
from bertray.model.engine import (
    Engine,
    EngineStats,
    read_logits,
    resolve_backend,
    verify_int8,
)
from bertray.model.settings import resolve_settings
from bertray.schema import (
    EMPTY_TEXT,
    NO_TOKENS,
    NOT_FINITE,
    NOT_UTF8,
    NULL_TEXT,
    OK,
    UNKNOWN_ID,
    Scale,
)
from bertray.text.long import LongText

text_st = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
BACKENDS = ["torch", "onnx"]


@pytest.fixture(scope="module")
def bundle(classifier_folder):
    return open_bundle(str(classifier_folder))


def make_engine(bundle, **wanted):
    return Engine(bundle, resolve_settings(bundle, device="cpu", **wanted), num_threads=1)


def hugging_face(bundle, texts, pairs=None):
    """Row by row, as its documentation shows it."""
    tokenizer, model = AutoTokenizer.from_pretrained(bundle.folder), load_model(bundle)
    rows = []
    for row, text in enumerate(texts):
        inputs = tokenizer(
            text,
            pairs[row] if pairs is not None else None,
            truncation=True,
            max_length=bundle.max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            rows.append(model(**inputs).logits.softmax(-1)[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_are_hugging_faces_row_by_row(make_bundle, family, takes_onnx, backend):
    bundle = make_bundle(family)
    if not takes_onnx and backend == "onnx":
        with pytest.raises(ConfigError, match=r"model\.backend=torch"):
            make_engine(bundle, backend=backend)
        return
    engine = make_engine(bundle, backend=backend)
    texts, pairs = random_texts(12), random_texts(12, seed=1)
    found = engine.predict(texts).probabilities
    np.testing.assert_allclose(found, hugging_face(bundle, texts), atol=1e-5, rtol=0)
    found = engine.predict(pa.array(texts), pa.array(pairs)).probabilities
    np.testing.assert_allclose(found, hugging_face(bundle, texts, pairs), atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=BACKENDS)
def engines(request, bundle):
    """The same model at a few budgets; the smallest takes less than most rows."""
    return [
        make_engine(bundle, backend=request.param, max_batch_tokens=tokens)
        for tokens in (8, 60, 4096)
    ]


@given(texts=st.lists(text_st, min_size=1, max_size=20))
@settings(max_examples=15)
def test_predictions_do_not_depend_on_the_batch_size(engines, texts):
    first, *others = (engine.predict(texts).probabilities for engine in engines)
    assert np.allclose(first.sum(axis=1), 1, atol=1e-5)
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-5, rtol=0)


@given(texts=st.lists(text_st | st.sampled_from([None, "", " \t\u3000"]), max_size=12))
@settings(max_examples=15)
def test_rows_in_are_rows_out_and_those_without_text_say_why(engines, texts):
    found = engines[1].predict(texts)
    assert len(found) == len(texts) == len(found.probabilities)
    for text, status, row in zip(texts, found.status, found.probabilities, strict=True):
        wanted = NULL_TEXT if text is None else OK if text.strip() else EMPTY_TEXT
        assert status == wanted
        assert np.isnan(row).all() == (wanted != OK)


def test_of_a_pair_the_text_that_is_missing_is_named(bundle):
    engine = make_engine(bundle)
    texts, pairs = ["good", None, "good", " "], ["bad", "bad", "", None]
    assert engine.predict(texts, pairs).status == (OK, NULL_TEXT, EMPTY_TEXT, EMPTY_TEXT)


def test_a_text_that_is_not_utf8_loses_only_itself(bundle):
    buffers = pa.array([b"good film", b"caf\xe9", b"bad"], pa.binary()).buffers()
    found = make_engine(bundle).predict(pa.Array.from_buffers(pa.string(), 3, buffers))
    assert found.status == (OK, NOT_UTF8, OK)


BY_ALL_WAYS = pytest.mark.parametrize(
    "wanted",
    [
        {"backend": "torch"},
        {"backend": "onnx"},
        {"dtype": "int8"},
        {"dtype": "float16"},
        {"backend": "torch", "long_text": LongText("window", stride=2), "max_length": 8},
    ],
)


@pytest.fixture(scope="module")
def bare(bundle, tmp_path_factory):
    """The same model with a tokenizer that puts no [CLS] and [SEP] around a text."""
    folder = shutil.copytree(bundle.folder, tmp_path_factory.mktemp("bare") / "model")
    (folder / "vocab.txt").unlink(missing_ok=True)
    serialised = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(serialised | {"post_processor": None}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    return open_bundle(str(folder))


@BY_ALL_WAYS
def test_a_text_of_no_tokens_has_a_status_and_no_label(bare, wanted):
    engine, nothing = make_engine(bare, **wanted), "\u200b\x01"
    found = engine.predict(["good film", nothing, "a plot that is awful", nothing])
    assert found.status == (OK, NO_TOKENS, OK, NO_TOKENS)
    assert np.isnan(found.probabilities[1::2]).all()
    others = engine.predict(["good film", "a plot that is awful"])
    np.testing.assert_allclose(found.probabilities[::2], others.probabilities, atol=1e-6)
    stats = EngineStats()
    assert engine.predict([nothing], stats=stats).status == (NO_TOKENS,)
    assert (stats.num_batches, stats.num_tokens_again) == (0, 0)


@pytest.fixture(scope="module")
def unfit(bundle, tmp_path_factory):
    """A model that has no token of the tokenizer's from "awful" on."""
    folder = tmp_path_factory.mktemp("unfit")
    config = AutoConfig.from_pretrained(bundle.folder, vocab_size=AWFUL)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundle.folder).save_pretrained(folder)
    return open_bundle(str(folder))


@BY_ALL_WAYS
def test_a_token_that_the_model_does_not_have_costs_its_row_alone(unfit, wanted, caplog):
    texts = ["the story", "good film", "the plot is very awful", "the plot", "awful"]
    engine = make_engine(unfit, **wanted)
    found = engine.predict(texts)
    assert found.status == (UNKNOWN_ID, OK, UNKNOWN_ID, OK, UNKNOWN_ID)
    assert np.isnan(found.probabilities[::2]).all()
    assert f"token ids from {AWFUL} on" in caplog.text
    caplog.clear()
    fine = engine.predict(texts[1::2])
    assert found.probabilities[1::2].tobytes() == fine.probabilities.tobytes()
    assert not caplog.records


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["good film", "bad", "good film"]),
        pa.array(["good film", "bad", "good film"], pa.string_view()),
        pa.array(["good film", "bad", "good film"]).dictionary_encode(),
        pa.chunked_array([pa.array(["good film"]), pa.array(["bad", "good film"])]),
    ],
)
def test_repeats_are_computed_once_and_get_the_same_numbers(bundle, column):
    stats = EngineStats()
    found = make_engine(bundle).predict(column, stats=stats).probabilities
    assert (stats.num_rows, stats.num_distinct) == (3, 2)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found, hugging_face(bundle, column.to_pylist()), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_rows_give_the_same_bytes_on_any_engine(bundle, backend):
    texts = random_texts(60)
    first, second = (make_engine(bundle, backend=backend) for _ in range(2))
    second.predict(random_texts(10, seed=1))
    assert first.predict(texts).probabilities.tobytes() == (
        second.predict(texts).probabilities.tobytes()
    )


def test_one_call_tokenizes_while_another_computes(bundle, monkeypatch):
    made = faulty(monkeypatch)
    engine = make_engine(bundle, backend="torch")
    computing, tokenized = threading.Event(), threading.Event()
    gather, encode = made[0].gather, engine._encoder

    def wait_for_the_other(encoded, rows):
        computing.set()
        assert tokenized.wait(20), "nothing was tokenized meanwhile"
        return gather(encoded, rows)

    def tell(*columns):
        encoded = encode(*columns)
        if computing.is_set():
            tokenized.set()
        return encoded

    made[0].gather, engine._encoder = wait_for_the_other, tell
    one, two = random_texts(20), random_texts(30, seed=1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.predict, one)
        assert computing.wait(20)
        second = threads.submit(engine.predict, two)
        found = [first.result(20), second.result(20)]
    for texts, predictions in zip((one, two), found, strict=True):
        wanted = hugging_face(bundle, texts)
        np.testing.assert_allclose(predictions.probabilities, wanted, atol=1e-5)


def test_the_time_of_a_call_is_told_by_stage(bundle):
    stats = EngineStats()
    start = time.perf_counter()
    make_engine(bundle).predict(random_texts(200), stats=stats)
    whole = time.perf_counter() - start
    assert set(stats.seconds) == {"tokenize", "transfer", "compute"}
    assert all(seconds > 0 for seconds in stats.seconds.values())
    assert sum(stats.seconds.values()) < whole


def test_no_rows_give_no_predictions(bundle):
    assert len(make_engine(bundle).predict([])) == 0


class Faulty:
    """A backend in which some rows fail, and batches over a size run out of memory."""

    pads = False
    is_even = False
    is_first_only = True
    device = torch.device("cpu")

    def __init__(self, backend, *, is_bad=lambda ids: False, most_tokens=10**9, dead=False):
        self.backend, self.is_bad, self.most_tokens = backend, is_bad, most_tokens
        self.dead = dead
        self.sizes = []

    def gather(self, encoded, rows):
        tokens = int(encoded.lengths[rows].sum())
        if tokens > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ends = encoded.offsets
        if self.dead or any(self.is_bad(encoded.input_ids[ends[r] : ends[r + 1]]) for r in rows):
            raise IndexError("index out of range in self")
        self.sizes.append(tokens)
        return self.backend.gather(encoded, rows)

    def __call__(self, batch):
        return self.backend(batch)


def faulty(monkeypatch, **faults):
    load, made = engine_module._load_backend, []

    def broken(*args, **kwargs):
        made.append(Faulty(load(*args, **kwargs), **faults))
        return made[0]

    monkeypatch.setattr(engine_module, "_load_backend", broken)
    return made


def test_out_of_memory_halves_the_budget_and_remembers_it(bundle, monkeypatch):
    made = faulty(monkeypatch, most_tokens=100)
    texts = random_texts(50)
    engine = make_engine(bundle, backend="torch", max_batch_tokens=400)
    stats = EngineStats()
    found = engine.predict(texts, stats=stats)
    assert (stats.num_halvings, stats.num_new_halvings) == (2, 2)
    assert set(found.status) == {OK}
    np.testing.assert_allclose(found.probabilities, hugging_face(bundle, texts), atol=1e-5)
    later = EngineStats()
    engine.predict(texts, stats=later)
    assert (later.num_halvings, later.num_new_halvings) == (2, 0)
    assert max(made[0].sizes) <= 100


def test_memory_that_does_not_do_for_one_row_is_an_error(bundle, monkeypatch):
    faulty(monkeypatch, most_tokens=3)
    with pytest.raises(torch.OutOfMemoryError):
        make_engine(bundle, backend="torch").predict(["good bad film plot"])


@given(bad=st.sets(st.integers(0, 29), max_size=4))
@settings(max_examples=10)
def test_a_row_that_breaks_the_model_is_the_only_one_lost(bundle, bad):
    texts = [f"{text} awful" if row in bad else text for row, text in enumerate(TEXTS)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        faulty(monkeypatch, is_bad=lambda ids: AWFUL in ids)
        found = make_engine(bundle, backend="torch").predict(texts)
    rows = [row for row in range(len(texts)) if row not in bad]
    assert {row for row, status in enumerate(found.status) if status != OK} == bad
    for row in bad:
        assert found.status[row] == "the model failed: IndexError: index out of range in self"
        assert np.isnan(found.probabilities[row]).all()
    wanted = hugging_face(bundle, [texts[row] for row in rows])
    np.testing.assert_allclose(found.probabilities[rows], wanted, atol=1e-5)


TEXTS = sorted({text.replace("awful", "film") for text in random_texts(40, longest=12)})[:30]
AWFUL = 5 + "good bad film plot the a is was very not great awful".split().index("awful")


def test_a_row_that_is_too_short_for_a_model_is_the_only_one_lost(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 64, "num_hash_buckets": 64}
    torch.manual_seed(0)
    config = CanineConfig(**sizes, initializer_range=0.2, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    CanineTokenizer().save_pretrained(tmp_path)
    bundle, texts = open_bundle(str(tmp_path)), ["good film", "a", "a plot", "awful"]
    found = make_engine(bundle).predict(texts)
    assert [status == OK for status in found.status] == [True, False, True, True]
    assert found.status[1].startswith("the model failed: RuntimeError: max_pool1d()")
    del texts[1]
    found = np.delete(found.probabilities, 1, axis=0)
    np.testing.assert_allclose(found, hugging_face(bundle, texts), atol=1e-5, rtol=0)


def test_a_model_that_is_broken_itself_is_an_error(bundle, monkeypatch):
    faulty(monkeypatch, dead=True)
    with pytest.raises(IndexError):
        make_engine(bundle, backend="torch").predict(["good", "bad"])


def test_a_row_that_is_not_finite_is_the_only_one_lost(bundle, monkeypatch):
    made = faulty(monkeypatch)
    engine = make_engine(bundle, backend="torch")
    with torch.no_grad():
        made[0].backend._packed.embeddings.words.weight[AWFUL] = float("nan")
    found = engine.predict(["good film", "awful film", "bad"])
    assert found.status == (OK, NOT_FINITE, OK)
    assert np.isnan(found.probabilities[1]).all()


def test_a_row_beyond_float16_is_computed_again_in_bfloat16(bundle, tmp_path, caplog):
    folder = shutil.copytree(bundle.folder, tmp_path / "loud")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][AWFUL] *= 1e7  # LayerNorm follows
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loud = open_bundle(str(folder))
    texts = ["good film", "awful film", "bad", "a plot that is awful"]
    exact = make_engine(loud, backend="torch").predict(texts).probabilities
    coarse = make_engine(loud, dtype="bfloat16").predict(texts[1::2]).probabilities
    engine, stats = make_engine(loud, dtype="float16"), EngineStats()
    found = engine.predict(texts, stats=stats)
    assert found.status == (OK,) * 4
    np.testing.assert_allclose(found.probabilities[::2], exact[::2], atol=2e-3)
    np.testing.assert_array_equal(found.probabilities[1::2], coarse)
    assert 0 < stats.num_tokens_again < stats.num_padded_tokens == stats.num_tokens
    again = make_engine(loud, dtype="float16").predict(texts[::-1])
    np.testing.assert_allclose(again.probabilities[::-1], found.probabilities, atol=1e-4)
    assert "model.dtype=bfloat16 is faster" in caplog.text
    caplog.clear()
    assert engine.predict(texts[:1]).status == (OK,)
    assert not caplog.records


def test_a_row_that_breaks_float16_and_bfloat16_is_the_only_one_lost(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][AWFUL] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = make_engine(open_bundle(str(folder)), dtype="float16").predict(["good", "awful", "bad"])
    assert found.status == (OK, NOT_FINITE, OK)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "mpnet"])
def test_int8_stays_near_and_is_verified_on_a_sample(make_bundle, family):
    bundle = make_bundle(family)
    texts = random_texts(100)
    settings = resolve_settings(bundle, device="cpu", backend="torch")
    agreement = verify_int8(bundle, settings, [*texts, None], num_threads=1)
    assert agreement >= 0.96
    rounded = make_engine(bundle, dtype="int8").predict(texts).probabilities
    exact = make_engine(bundle, backend="torch").predict(texts).probabilities
    assert 0 < np.abs(rounded - exact).max() < 0.1
    assert verify_int8(bundle, settings, [None, ""], num_threads=1) is None


def test_graphs_are_made_once_and_kept(make_bundle, monkeypatch):
    bundle = replace(make_bundle("bert"), digest="kept")
    texts = random_texts(5)
    first = make_engine(bundle, backend="onnx").predict(texts).probabilities
    onnx = sys.modules["bertray.model.onnx"]
    monkeypatch.setattr(onnx, "load_model", lambda bundle: pytest.fail("loaded again"))
    second = make_engine(bundle, backend="onnx").predict(texts).probabilities
    np.testing.assert_array_equal(first, second)


def test_a_graph_whose_numbers_differ_is_refused_and_not_kept(make_bundle, monkeypatch):
    make_engine(make_bundle("bert"), backend="onnx")
    bundle = replace(make_bundle("bert"), digest="refused")
    onnx = sys.modules["bertray.model.onnx"]
    monkeypatch.setattr(onnx, "agree", lambda *args, **kwargs: False)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"set model\.backend=torch"):
            make_engine(bundle, backend="onnx")


def test_where_a_graphs_numbers_differ_auto_goes_on_with_torch_and_says_so_once(
    make_bundle, monkeypatch, caplog
):
    right, wrong = make_bundle("bert"), replace(make_bundle("bert"), digest="wrong")
    chosen = resolve_settings(right, device="cpu")
    assert resolve_backend(right, chosen, wanted="auto") == chosen
    monkeypatch.setattr(sys.modules["bertray.model.onnx"], "agree", lambda *_, **__: False)
    assert resolve_backend(wrong, chosen, wanted="onnx") == chosen
    found = resolve_backend(wrong, chosen, wanted="auto")
    assert found == replace(chosen, backend="torch")
    (said,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "goes on with torch" in said
    assert "ONNX Runtime gives other numbers" in said
    assert Engine(wrong, found, num_threads=1).predict(["good film"]).status == (OK,)


def test_what_is_left_to_us_is_resolved_in_the_open(bundle, monkeypatch):
    assert resolve_settings(bundle, device="cpu").backend == "onnx"
    assert resolve_settings(bundle, device="cuda").dtype == "float16"
    assert resolve_settings(bundle, device="cuda").backend == "torch"
    assert resolve_settings(bundle, device="cpu", dtype="bfloat16").backend == "torch"
    assert resolve_settings(bundle, device="cpu", dtype="int8").backend == "onnx"
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    assert resolve_settings(bundle, device="cpu").backend == "torch"


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2"])
def test_a_family_without_a_graph_is_computed_by_torch(make_bundle, family):
    bundle = make_bundle(family)
    assert resolve_settings(bundle, device="cpu").backend == "torch"
    with pytest.raises(ConfigError, match=rf"{family}.*set model\.backend=torch$") as refused:
        resolve_settings(bundle, device="cpu", backend="onnx")
    assert "mpnet" in str(refused.value)
    with pytest.raises(ConfigError, match=r"model\.backend=torch and model\.dtype=float32"):
        resolve_settings(bundle, device="cpu", dtype="int8")


@pytest.mark.parametrize("family", ["bert-silu", "bert-decoder", "distilbert-silu"])
def test_a_model_without_a_graph_is_computed_by_torch(make_bundle, family):
    bundle = make_bundle(family)
    assert resolve_settings(bundle, device="cpu").backend == "torch"
    named = "bert as a decoder with gelu" if family == "bert-decoder" else "bert with silu"
    with pytest.raises(ConfigError, match=rf"is (distil)?{named} .*set model\.backend=torch$"):
        resolve_settings(bundle, device="cpu", backend="onnx")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"max_length": 65}, "takes 64 at most"),
        ({"max_length": 2}, "adds 2 special tokens"),
        ({"device": "cuda", "backend": "onnx"}, "set model.backend=torch"),
        ({"device": "cuda", "dtype": "int8"}, "set model.backend=torch"),
        ({"backend": "torch", "dtype": "int8"}, "set model.backend=onnx"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "set model.backend=torch"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(bundle, wanted, message):
    with pytest.raises(ConfigError, match=message):
        resolve_settings(bundle, **{"device": "cpu", **wanted})


def test_without_the_extra_the_message_says_what_to_install(bundle, monkeypatch):
    settings = resolve_settings(bundle, device="cpu", backend="onnx")
    for name in [name for name in sys.modules if name.startswith("bertray.model.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    load = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModelError, match=r"install bertray\[fast\]"):
        Engine(bundle, settings)


def test_scores_come_in_the_unit_that_was_trained_on():
    logits = torch.tensor([[0.5], [-2.0]])
    scale = Scale(mean=1e6, std=100.0)
    assert read_logits(logits, task="regression").tolist() == logits.tolist()
    scores = read_logits(logits, task="regression", scale=scale)
    assert scores.tolist() == [[1_000_050], [999_800]]
    assert scores.dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_regression_model_gives_its_number_row_by_row(classifier_folder, tmp_path, backend):
    config = AutoConfig.from_pretrained(classifier_folder, id2label={0: "stars"})
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path)
    bundle = open_bundle(str(tmp_path))
    assert bundle.task == "regression"
    texts = random_texts(12)
    plain = make_engine(bundle, backend=backend).predict([*texts, None])
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), load_model(bundle)
    with torch.inference_mode():
        expected = [model(**tokenizer(t, return_tensors="pt")).logits[0].numpy() for t in texts]
    np.testing.assert_allclose(plain.probabilities[:-1], np.array(expected), atol=1e-5)
    assert np.isnan(plain.probabilities[-1]).all()
    scaled = replace(bundle, scale=Scale(mean=50.0, std=10.0))
    found = make_engine(scaled, backend=backend).predict([*texts, None])
    np.testing.assert_allclose(found.probabilities, 50 + 10 * plain.probabilities, rtol=1e-6)
    settings = resolve_settings(bundle, device="cpu")  # 8 bits are judged whatever the unit
    assert verify_int8(scaled, settings, texts) == verify_int8(bundle, settings, texts)
