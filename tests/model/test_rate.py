import numpy as np
import pytest
import torch
from transformers import BertConfig, DistilBertConfig

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
