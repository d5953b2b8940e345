"""Small random-weight classifiers of each family, and which of them take which path."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    ModernBertConfig,
    MPNetConfig,
    NystromformerConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from bertray.model.heads import Head
from bertray.model.manifest import Manifest

WORDS = "good bad film plot the a is was very not great awful story actor".split()
COMMON = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 72,
    "initializer_range": 0.2,
    "num_labels": 3,
}
PACKED = {
    "bert": BertConfig(**COMMON),
    "bert-relu": BertConfig(**COMMON, hidden_act="relu"),
    "bert-tanh-gelu": BertConfig(**COMMON, hidden_act="gelu_new"),
    "bert-python-gelu": BertConfig(**COMMON, hidden_act="gelu_python"),
    "distilbert": DistilBertConfig(
        **{**COMMON, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    ),
    "roberta": RobertaConfig(**COMMON),
    "xlm-roberta": XLMRobertaConfig(**COMMON, type_vocab_size=1),
    "camembert": CamembertConfig(**COMMON),
    "electra": ElectraConfig(**COMMON, embedding_size=32),
    "electra-projected": ElectraConfig(**COMMON, embedding_size=16),
    "mpnet": MPNetConfig(**COMMON),
    "albert": AlbertConfig(**COMMON, embedding_size=16),
    "albert-grouped": AlbertConfig(
        **{**COMMON, "num_hidden_layers": 4},
        embedding_size=16,
        num_hidden_groups=2,
        inner_group_num=2,
    ),
}
# In float32 as in the families above; the windows of 4 tokens to a side hide most of a long row.
MODERN = {
    **COMMON,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
    "initializer_cutoff_factor": 3.0,
    "local_attention": 8,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
}
SLIDING_LAST = ["full_attention", "sliding_attention", "sliding_attention"]
TORCH_ONLY = {
    "modernbert": ModernBertConfig(**MODERN),
    "modernbert-mean": ModernBertConfig(**MODERN, classifier_pooling="mean"),
    "modernbert-sliding-last": ModernBertConfig(
        **{**MODERN, "num_hidden_layers": 3}, layer_types=SLIDING_LAST
    ),
    "modernbert-sliding-last-mean": ModernBertConfig(
        **{**MODERN, "num_hidden_layers": 3}, layer_types=SLIDING_LAST, classifier_pooling="mean"
    ),
    "modernbert-biased": ModernBertConfig(
        **MODERN, attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True
    ),
}
WITH_LINEAR_HEADS = ("bert", "distilbert", "roberta", "electra-projected", "mpnet", "albert")
LINEAR = "-linear"
PACKED |= {f"{family}{LINEAR}": PACKED[family] for family in WITH_LINEAR_HEADS}
PACKED |= TORCH_ONLY
MANIFEST = Manifest(
    labels=["a", "b", "c"],
    task="single_label",
    max_length=64,
    base="",
    metrics={},
    lineage={},
    versions={},
    created="",
)
MODELS: dict[Head, Any] = {
    "family": AutoModelForSequenceClassification,
    "linear": AutoModelForTokenClassification,
}
DEBERTA = DebertaV2Config(  # as those of version 3 are
    **COMMON,
    type_vocab_size=0,
    position_biased_input=False,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
    share_att_key=True,
    position_buckets=8,
    norm_rel_ebd="layer_norm",
)
# Padding changes their numbers.
EVEN = {
    "convbert": ConvBertConfig(**COMMON, embedding_size=32),
    "fnet": FNetConfig(**COMMON),
    "nystromformer": NystromformerConfig(**COMMON),
    "xlnet": XLNetConfig(
        vocab_size=120,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
        num_labels=3,
        pad_token_id=0,
        initializer_range=COMMON["initializer_range"],
    ),
}
PLAIN = {
    "deberta-v2": DEBERTA,
    f"deberta-v2{LINEAR}": DEBERTA,
    "bert-silu": BertConfig(**COMMON, hidden_act="silu"),
    "bert-decoder": BertConfig(**COMMON, is_decoder=True),
    "distilbert-silu": DistilBertConfig(
        **{**COMMON, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}, activation="silu"
    ),
    **EVEN,
}


def save_classifier(folder: Path, family: str, *, tokenizer: Path) -> None:
    """A model of a family in an existing folder, and a tokenizer of its kind of inputs."""
    torch.manual_seed(0)
    config = (PACKED | PLAIN)[family]
    head: Head = "linear" if family.endswith(LINEAR) else "family"
    MODELS[head].from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    if getattr(config, "type_vocab_size", 0) < 2:
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    if head == "linear":
        manifest = replace(MANIFEST, head=head)
        (folder / "bertray.json").write_text(json.dumps(asdict(manifest)))


def add_relative_positions(folder: Path) -> None:
    """What transformers 4 had for position_embedding_type=relative_key in a BERT's weights."""
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.attention.self.distance_embedding.weight"] = torch.ones(127, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def random_texts(count: int, *, seed: int = 0, longest: int = 40) -> list[str]:
    """Words in no order, all of them in the vocabulary of the tests."""
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, chance.integers(1, longest))) for _ in range(count)]
