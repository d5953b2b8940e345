"""Tokenizers of four kinds, small and without a network."""

from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LICENSE = Path(__file__).parents[2] / "LICENSE"  # English enough to learn merges from
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


@pytest.fixture(scope="session")
def wordpiece(classifier_folder):
    return AutoTokenizer.from_pretrained(classifier_folder)


@pytest.fixture(scope="session")
def roberta():
    """A byte-level BPE tokenizer, laid out as RoBERTa's."""
    backend = _byte_level_bpe(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return _fast(backend, pad="<pad>", unk="<unk>", names=["input_ids", "attention_mask"])


@pytest.fixture(scope="session")
def modernbert():
    """Another, laid out as ModernBERT's, with its tokens for runs of spaces; it has segments."""
    backend = _byte_level_bpe(["[CLS]", "[SEP]", "[UNK]", "[PAD]", "|||IP_ADDRESS|||"])
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(" " * count, normalized=True) for count in range(8, 1, -1)])
    backend.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return _fast(backend, pad="[PAD]", unk="[UNK]", names=names)


def _byte_level_bpe(special, *, add_prefix_space=False):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([LICENSE.read_text()], trainer)
    return backend


@pytest.fixture(scope="session")
def unigram():
    """A SentencePiece-like tokenizer, laid out as XLM-RoBERTa's."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("\u2581the", -1.0), ("ing", -1.5)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return _fast(backend, pad="<pad>", unk="<unk>", names=["input_ids", "attention_mask"])


def _fast(backend, *, pad, unk, names):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, unk_token=unk)
    tokenizer.model_input_names = names
    return tokenizer


@pytest.fixture(scope="session", params=["wordpiece", "roberta", "modernbert", "unigram"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=["wordpiece", "roberta", "modernbert"])
def faster(request):
    """A tokenizer for which there is a faster one."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def byte_level_bpe():
    """Makes a backend that has learned its merges."""
    return _byte_level_bpe


@pytest.fixture(scope="session")
def fast_tokenizer():
    """Makes a Hugging Face tokenizer of a backend."""
    return _fast
