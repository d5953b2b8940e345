import logging
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EVEN
from transformers import (
    BertConfig,
    ModernBertConfig,
    MPNetConfig,
)

from bertray.model import backend, packed
from bertray.model.bundle import load_model
from bertray.model.operations import Operations, attend_varlen
from bertray.model.packed import check_rows, ignores_padding, pack, plain_logits, position_ids
from bertray.text.ragged import Encoded, offsets_of

CPU = torch.device("cpu")


def random_rows(model, lengths, *, seed=0):
    lengths = np.array(lengths)
    chance = np.random.default_rng(seed)
    num_tokens = int(lengths.sum())
    return Encoded(
        input_ids=chance.integers(0, model.config.vocab_size, num_tokens, dtype=np.int32),
        offsets=offsets_of(lengths),
        token_type_ids=chance.integers(
            0, max(1, getattr(model.config, "type_vocab_size", 1)), num_tokens, dtype=np.int8
        )
        if model.config.model_type not in ("distilbert", "modernbert", "mpnet")
        else None,
    )


@cache
def loaded(bundle):
    """The model, and its forward pass without padding."""
    model = load_model(bundle)
    return model, pack(model)


def test_packed_numbers_are_hugging_faces(make_bundle, packed_family):
    model = load_model(make_bundle(packed_family))
    forward = pack(model)
    encoded = random_rows(model, [64, 1, 7, 7, 30, 2, 64, 7])
    rows = np.array([6, 0, 4, 3, 7, 2, 5, 1])
    with torch.inference_mode():
        found = forward.run(encoded, rows, device=CPU)
    torch.testing.assert_close(found, plain_logits(model, encoded, rows), atol=1e-5, rtol=0)
    for row in rows:
        alone = plain_logits(model, encoded, np.array([row]))[0]
        at = rows.tolist().index(row)
        torch.testing.assert_close(found[at], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "modernbert-mean"])
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_a_row_has_the_same_logits_in_any_batch(make_bundle, family, lengths, seed):
    model, forward = loaded(make_bundle(family))
    encoded = random_rows(model, lengths, seed=seed)
    with torch.inference_mode():
        together = forward.run(encoded, np.arange(len(lengths)), device=CPU)
        alone = [forward.run(encoded, np.array([row]), device=CPU) for row in range(len(lengths))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_other_families_take_the_padded_path(make_bundle, plain_family):
    assert pack(load_model(make_bundle(plain_family))) is None


def test_padding_is_harmless_or_said_not_to_be(make_bundle, plain_family, caplog):
    model = load_model(make_bundle(plain_family))
    assert ignores_padding(model, pad_token_id=0) == (plain_family not in EVEN)
    assert len(caplog.records) == (plain_family in EVEN)


def test_a_model_that_takes_no_rows_of_our_own_gets_no_padding(make_bundle, caplog):
    def as_bart_does(*_):
        raise ValueError("an <eos> is missing")

    model = load_model(make_bundle("deberta-v2"))
    model.register_forward_pre_hook(as_bart_does)
    assert not ignores_padding(model, pad_token_id=0)
    assert "(an <eos> is missing)" in caplog.text


def test_a_model_that_reads_the_last_token_of_a_row_is_given_one(make_bundle, caplog):
    """BART takes the state of ``</s>``, and refuses rows that have it nowhere or twice."""
    model = load_model(make_bundle("deberta-v2"))
    model.config.eos_token_id = 7

    def wants_one(_, __, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert ((ids == 7) & (mask == 1)).sum(dim=1).eq(1).all()

    model.register_forward_pre_hook(wants_one, with_kwargs=True)
    assert ignores_padding(model, pad_token_id=0)
    assert caplog.text == ""


def test_a_model_whose_packed_numbers_differ_takes_the_padded_path(
    make_bundle, monkeypatch, caplog
):
    monkeypatch.setitem(packed.FAMILIES, "bert", _forgets_a_layer(packed.FAMILIES["bert"]))
    with caplog.at_level(logging.WARNING):
        assert pack(load_model(make_bundle("bert"))) is None
    assert len(caplog.records) == 1


def _forgets_a_layer(family):
    def parts(model):
        whole = family(model)
        return replace(whole, layers=whole.layers[1:])

    return parts


def test_a_padding_token_in_a_text_is_counted_as_hugging_face_counts(make_bundle):
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    encoded = Encoded(np.array([0, 1, 5, 2, 0, 7, 1]), np.array([0, 4, 7]), None)
    wanted = [
        RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([row]), 1)[0].tolist()
        for row in ([0, 1, 5, 2], [0, 7, 1])
    ]
    assert position_ids(encoded, 1).tolist() == [*wanted[0], *wanted[1]]


@pytest.mark.parametrize(
    "family",
    ["bert", "modernbert", "modernbert-mean", "modernbert-sliding-last"],
)
def test_varlen_attention_gets_what_the_reference_gets(make_bundle, monkeypatch, family):
    """The call for CUDA, with the kernel replaced by its definition."""
    windows = set()

    def kernel(
        queries,
        keys,
        values,
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        *,
        window_size=(-1, -1),
    ):
        assert longest_query == int(query_ends.diff().max())
        assert longest_key == int(key_ends.diff().max())
        assert query_ends.dtype == key_ends.dtype == torch.int32
        windows.add(window_size)
        contexts = []
        for row in range(len(key_ends) - 1):
            query = queries[query_ends[row] : query_ends[row + 1]].transpose(0, 1)
            key = keys[key_ends[row] : key_ends[row + 1]].transpose(0, 1)
            value = values[key_ends[row] : key_ends[row + 1]].transpose(0, 1)
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            if window_size != (-1, -1):  # around the diagonal that ends in the last of both
                num_queries, num_keys = scores.shape[1:]
                places = torch.arange(num_queries)[:, None] + num_keys - num_queries
                right = torch.arange(num_keys) - places
                hidden = (right < -window_size[0]) | (right > window_size[1])
                scores = scores.masked_fill(hidden, -torch.inf)
            contexts.append((scores.softmax(-1) @ value).transpose(0, 1))
        return torch.cat(contexts)

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    model = load_model(make_bundle(family))
    forward = pack(model)
    assert not forward.has_bias
    encoded = check_rows(model)
    rows = np.arange(len(encoded))
    with torch.inference_mode():
        wanted = forward.run(encoded, rows, device=CPU)
        forward.operations = Operations(attend=attend_varlen)
        found = forward.run(encoded, rows, device=CPU)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert windows == ({(-1, -1)} if family == "bert" else {(-1, -1), (4, 4)})


def test_operations_that_fail_or_are_wrong_on_this_card_give_way(make_bundle, monkeypatch, caplog):
    model = load_model(make_bundle("bert"))
    forward = pack(model)
    slow = forward.operations

    def missing():
        raise RuntimeError("no compiler")

    def wrong(norm, x, residual):
        return norm(x - residual)

    right = replace(slow, expand=lambda up, activation, x: activation(up(x)))
    tried = [("first", missing), ("second", lambda: replace(slow, add_norm=wrong))]
    for last, wanted in ([("third", lambda: right)], right), ([], slow):
        monkeypatch.setattr(backend, "_faster", lambda *_, last=last, **__: [*tried, *last])
        forward.operations = slow
        caplog.clear()
        backend._use_fused(forward, [check_rows(model), check_rows(model, longest=50)])
        assert forward.operations is wanted
        assert "no first here (no compiler)" in caplog.text
        assert "the second gives other numbers here" in caplog.text
        assert "third" not in caplog.text


def test_a_model_with_a_bias_never_takes_the_kernel_that_has_none(make_bundle, monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", lambda *_, **__: pytest.fail("called"))
    model = load_model(make_bundle("mpnet"))
    forward = pack(model)
    assert forward.has_bias
    forward.operations = Operations(attend=attend_varlen)
    encoded = check_rows(model)
    rows = np.arange(len(encoded))
    with torch.inference_mode():
        found = forward.run(encoded, rows, device=CPU)
    torch.testing.assert_close(found, plain_logits(model, encoded, rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (BertConfig(), 0),
        (MPNetConfig(), 128),
        (ModernBertConfig(), 64),
        (ModernBertConfig(local_attention=600), 300),
    ],
)
def test_a_model_is_checked_on_a_row_that_reaches_farther_than_its_windows(config, reach):
    lengths = check_rows(SimpleNamespace(config=config)).lengths
    assert lengths.max() > max(reach + 1, 20)
    assert lengths.min() == 1


def test_a_window_that_is_off_by_one_is_found_when_a_model_loads(make_bundle, monkeypatch, caplog):
    whole = packed.FAMILIES["modernbert"]

    def off_by_one(model):
        parts = whole(model)
        for part in parts.layers:
            if part.attention.window is not None:
                part.attention.window += 1
        return parts

    monkeypatch.setitem(packed.FAMILIES, "modernbert", off_by_one)
    assert pack(load_model(make_bundle("modernbert"))) is None
    assert "gives other numbers" in caplog.text


def test_rotary_embeddings_of_another_kind_take_the_padded_path(make_bundle):
    model = load_model(make_bundle("modernbert"))
    model.config.rope_parameters["full_attention"]["rope_type"] = "yarn"
    assert pack(model) is None


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "modernbert-mean"])
def test_half_precision_keeps_the_head_in_full(make_bundle, family):
    model = load_model(make_bundle(family))
    forward = pack(model).lower(torch.bfloat16)
    assert forward.embeddings.words.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in forward.head.parameters()} == {torch.float32}
    encoded = check_rows(model)
    rows = np.arange(len(encoded))
    with torch.inference_mode():
        logits = forward.run(encoded, rows, device=CPU)
    assert logits.dtype == torch.float32
    wanted = plain_logits(load_model(make_bundle(family)), encoded, rows)
    torch.testing.assert_close(logits.softmax(-1), wanted.softmax(-1), atol=0.05, rtol=0)
