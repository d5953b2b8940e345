import numpy as np
import pytest
import torch
from transformers import BertConfig, DistilBertConfig, ModernBertConfig

from bertray.model.rate import forward_flops, matmul_rate


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
