"""What a folder of Hugging Face says: its config, its tokenizer, the longest input."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from bertray.errors import ModelError

WORD_PIECES = "vocab.txt"
LONGEST = 512  # for models that name no limit of their own


def read_config(folder: Path, *, source: str, key: str) -> PretrainedConfig:
    """The Hugging Face config of a model folder.

    Raises:
        ModelError: it is broken, or of a family that transformers does not know.
    """
    with quiet():
        try:
            return cast(PretrainedConfig, AutoConfig.from_pretrained(folder))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{key}={source}: config.json cannot be used: {error}") from error


def load_tokenizer(folder: Path, *, key: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    That of a family that has another kind finds nothing in a ``vocab.txt``, and would not know a
    single word. There it is read as what it is, BERT's word pieces.

    Raises:
        ModelError: its files are missing or broken.
    """
    words = folder / WORD_PIECES
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not _knows_words(tokenizer) and words.exists():
            pieces = [piece for piece in words.read_text("utf-8").split() if piece[0] != "["]
            is_cased = any(piece != piece.lower() for piece in pieces)
            options: dict[str, Any] = {"do_lower_case": False} if is_cased else {}
            tokenizer = BertTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{key}={folder}: no tokenizer can be loaded: {error}") from error
    if not _knows_words(tokenizer):
        raise ModelError(
            f"{key}={folder}: a {type(tokenizer).__name__} finds no vocabulary in there; "
            "put the tokenizer's files beside the weights, such as tokenizer.json"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def _knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) > len(tokenizer.all_special_tokens)


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model takes at most; 512 where neither config nor tokenizer says.

    RoBERTa-like models count positions from ``padding_idx + 1``, so that many are never used.
    """
    limits = [longest] if (longest := num_positions(config)) else []
    if tokenizer.model_max_length < 1_000_000:  # an unset limit is 1e30
        limits.append(int(tokenizer.model_max_length))
    return min(limits) if limits else LONGEST


def num_positions(config: PretrainedConfig) -> int | None:
    """Tokens beyond which the model has no position embedding; None if it needs none."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions <= 0 or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None  # XLNet, which knows distances alone, has -1
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(positions) - offset


def num_token_ids(config: PretrainedConfig) -> int | None:
    """Token ids that the model has, from 0; None if it takes any (CANINE), or does not say."""
    return getattr(config, "vocab_size", None)


_OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ernie_m",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


@contextmanager
def quiet() -> Any:
    """Hold back transformers' load reports and progress bars: our errors say what matters."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
