import torch
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from bertray.model.distance import RelativeBias, Rotary, band, bucket_of, rotated


def test_buckets_are_mpnets_at_any_distance():
    distances = torch.arange(-5000, 5001)
    wanted = MPNetEncoder.relative_position_bucket(distances, num_buckets=32)
    assert torch.equal(bucket_of(distances), wanted)


def test_a_shorter_rows_bias_is_the_top_left_of_a_longer_ones():
    bias = RelativeBias(torch.randn(32, 3), num_positions=300)
    longest = bias(300)
    assert longest.shape == (3, 300, 300)
    for length in (1, 2, 150):
        assert torch.equal(bias(length), longest[:, :length, :length])


def test_the_bias_is_by_the_key_minus_the_query():
    by_bucket = torch.randn(32, 2)
    found = RelativeBias(by_bucket, num_positions=200)(200)
    for query, key in ((0, 0), (3, 5), (5, 3), (0, 199), (199, 0)):
        bucket = int(bucket_of(torch.tensor(key - query)))
        assert torch.equal(found[:, query, key], by_bucket[bucket])


def test_queries_and_keys_are_turned_as_hugging_face_turns_them():
    config = ModernBertConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=600)
    x = torch.randn(600, 4, 8)
    reference = ModernBertRotaryEmbedding(config)
    for kind in ("full_attention", "sliding_attention"):
        theta = config.rope_parameters[kind]["rope_theta"]
        rotary = Rotary(theta=theta, size=8, num_positions=600)
        for dtype in (torch.float32, torch.bfloat16):
            places, row = torch.arange(600)[None], x.to(dtype).transpose(0, 1)[None]
            cos, sin = reference(row, places, kind)
            wanted, _ = apply_rotary_pos_emb(row, row, cos, sin)
            found = rotated(x.to(dtype), *rotary.to(dtype)(places[0]))
            assert torch.equal(found, wanted[0].transpose(0, 1))


def test_a_band_is_there_only_where_it_hides_a_key():
    device = torch.device("cpu")
    assert band(4, 4, window=3, device=device) is None
    assert band(1, 5, window=3, device=device).tolist() == [[True, True, True, True, False]]
    full = band(9, 9, window=2, device=device)
    for query in range(9):
        assert [key for key in range(9) if full[query, key]] == [
            key for key in range(9) if abs(key - query) <= 2
        ]
