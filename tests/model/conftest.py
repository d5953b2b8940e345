"""Small random-weight classifiers of each family, saved as bundles."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from bertray.model.bundle import Bundle, Manifest, open_bundle
from bertray.model.heads import Head

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
PLAIN = dict.fromkeys(("deberta-v2", f"deberta-v2{LINEAR}"), DebertaV2Config(**COMMON))


@pytest.fixture(params=PACKED)
def packed_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PLAIN)
def plain_family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PACKED | PLAIN)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def takes_onnx(family: str) -> bool:
    return family in PACKED and family not in TORCH_ONLY


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, classifier_folder: Path
) -> Callable[[str], Bundle]:
    """A bundle of a family with the tests' small tokenizer; each is made once."""
    made: dict[str, Bundle] = {}

    def make(family: str) -> Bundle:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            config = (PACKED | PLAIN)[family]
            head: Head = "linear" if family.endswith(LINEAR) else "family"
            MODELS[head].from_config(config).save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
            tokenizer.save_pretrained(folder)
            if getattr(config, "type_vocab_size", 0) < 2:
                path = folder / "tokenizer_config.json"
                names = {"model_input_names": ["input_ids", "attention_mask"]}
                path.write_text(json.dumps(json.loads(path.read_text()) | names))
            if head == "linear":
                manifest = replace(MANIFEST, head=head)
                (folder / "bertray.json").write_text(json.dumps(asdict(manifest)))
            made[family] = replace(open_bundle(str(folder)), max_length=64)
        return made[family]

    return make
