import numpy as np
import pytest
import torch
from small_models import PACKED
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PerceiverConfig,
    T5GemmaConfig,
)

from bertray.model.packed import PackedModel
from bertray.model.rate import forward_flops, matmul_rate
from bertray.text.ragged import Encoded, offsets_of

ON_CPU = {  # which torch does not count by itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *rest, **more: sdpa_flop_count(query, key, value)
    )
}


def test_the_operations_of_bert_base_are_those_of_the_formula() -> None:
    lengths = np.array([128, 512, 7])
    expected = sum(n * (169_869_312 + 36_864 * n) for n in lengths.tolist())
    assert forward_flops(BertConfig(), lengths) == pytest.approx(expected)


def test_every_familys_config_is_understood() -> None:
    half = forward_flops(DistilBertConfig(), np.array([100]))
    assert half == pytest.approx(forward_flops(BertConfig(), np.array([100])) / 2)
    assert forward_flops(BertConfig(), np.array([], np.int64)) == 0


def test_the_measured_rate_is_one_a_real_device_can_have() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e16


def test_a_gate_and_windows_are_counted():
    config = ModernBertConfig(
        hidden_size=8, intermediate_size=10, num_hidden_layers=4, local_attention=6
    )
    per_token = 4 * 2 * (4 * 8 * 8 + 3 * 8 * 10)
    for length, seen in ((5, 4 * 5), (100, 2 * 100 + 2 * 7)):
        wanted = length * (per_token + 4 * 8 * seen)
        assert forward_flops(config, np.array([length])) == pytest.approx(wanted)


@pytest.mark.parametrize("family", ["bert", "modernbert", "modernbert-mean"])
def test_what_the_packed_forward_computes_is_what_torch_counts(family):
    model = AutoModelForSequenceClassification.from_config(PACKED[family])
    packed = PackedModel(model).eval()
    lengths = np.array([1, 5, 5, 2])  # no longer than a window reaches
    encoded = Encoded(np.ones(lengths.sum(), np.int32), offsets_of(lengths), None)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        packed.run(encoded, np.arange(len(lengths)), device=torch.device("cpu"))
    head = sum(counter.get_flop_counts()["PackedModel.head"].values())
    found = forward_flops(model.config, lengths, first_only=packed.is_first_only)
    assert found == counter.get_total_flops() - head
    assert (found < forward_flops(model.config, lengths)) == (family != "modernbert-mean")


def test_of_a_model_in_a_model_the_texts_part_is_counted_and_else_none():
    assert forward_flops(T5GemmaConfig(), np.array([100])) > 0
    assert forward_flops(PerceiverConfig(), np.array([100])) == 0.0
