"""The encoder that training starts from, with a fresh classification head."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from bertray import storage
from bertray.config import TrainModel
from bertray.errors import ConfigError, ModelError
from bertray.model.bundle import PROBLEM_TYPES, check_positions
from bertray.model.cache import digest_of, fetch, fetch_same
from bertray.model.heads import Head, head_modules, load_classifier, set_dropout
from bertray.model.pretrained import (
    LONGEST,
    load_tokenizer,
    longest_input,
    num_positions,
    quiet,
    read_config,
)
from bertray.model.steady import choose_attention_by_batch
from bertray.schema import Task
from bertray.text.long import TRUNCATE, LongText, check_long_text

KEY = "model.base"


@dataclass(frozen=True)
class Base:
    """A model folder to start from. Small and plain, so that it crosses to workers.

    Attributes:
        source: what any node can find it by: an absolute path, a URI or a hub id.
        digest: sha256 over the names and contents of its files.
        max_length: tokens a row is cut to.
        pad_token_id: fills shorter rows; masked, so its value changes nothing.
        long_text: what becomes of longer texts.
        head: what comes on top of the encoder.
        classifier_dropout: share of its inputs that dropout zeroes; None as the model has it.
    """

    source: str
    digest: str
    max_length: int
    pad_token_id: int
    long_text: LongText = TRUNCATE
    head: Head = "family"
    classifier_dropout: float | None = None


def open_base(model: TrainModel, long_text: LongText = TRUNCATE) -> Base:
    """Find the base model and look into it.

    Raises:
        ModelError: there is no such model, or its tokenizer does not fit.
        ConfigError: ``model.max_length`` is more than the model can take, or the model cannot be
            given long texts so.
    """
    folder = fetch(model.base, key=KEY)
    config = read_config(folder, source=model.base, key=KEY)
    tokenizer = load_tokenizer(folder, key=KEY)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{KEY}={model.base}: the tokenizer knows {len(tokenizer)} tokens, the model "
            f"{config.vocab_size}; they do not belong together"
        )
    most = num_positions(config)
    if model.max_length is not None and most is not None and model.max_length > most:
        raise ConfigError(
            f"model.max_length={model.max_length}: {model.base} takes {most} tokens at most"
        )
    max_length = model.max_length or min(longest_input(config, tokenizer), LONGEST)
    check_long_text(long_text, tokenizer, max_length=max_length, has_pairs=False)
    is_folder = Path(model.base).expanduser().is_dir()
    return Base(
        source=storage.absolute(model.base) if is_folder else model.base,
        digest=digest_of(folder),
        max_length=max_length,
        pad_token_id=tokenizer.pad_token_id or 0,
        long_text=long_text,
        head=model.head,
        classifier_dropout=model.classifier_dropout,
    )


def folder_of(base: Base) -> Path:
    """Where the base model lies on this node.

    Raises:
        ModelError: this node finds another model than the driver did.
    """
    return fetch_same(base.source, base.digest, key=KEY)


def load_base(
    base: Base, *, labels: Sequence[str], seed: int, task: Task = "single_label"
) -> PreTrainedModel:
    """The encoder with a head for ``labels``, on the CPU in float32; ``seed`` fills the head.

    A head that the base brings along is kept if it has as many labels, else replaced. Of the same
    labels in another order it is brought into this one.

    Raises:
        ModelError: the family has no classifier, or encoder weights are missing, of other shapes
            than the config says, or positions that transformers leaves out.
        ConfigError: it has no linear head.
    """
    folder = folder_of(base)
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    with quiet():
        try:
            model, report = load_classifier(
                folder,
                head=base.head,
                id2label=names,
                label2id={label: index for index, label in names.items()},
                problem_type=PROBLEM_TYPES[task],
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{KEY}={base.source}: cannot be loaded as a classifier: "
                f"{str(error).splitlines()[0]}"
            ) from error
    # A base saved without its head's parts, the pooler among them, is what one expects; an encoder
    # with random layers would train to a poor model without a word.
    encoder, pooler = f"{model.base_model_prefix}.", f"{model.base_model_prefix}.pooler."
    unread = {name: name for name in report["missing_keys"]}
    unread |= {
        name: f"{name} of shape {tuple(wanted)}, there it is {tuple(found)}"
        for name, found, wanted in report["mismatched_keys"]
    }
    lacking = [
        unread[name]
        for name in sorted(unread)
        if name.startswith(encoder) and not name.startswith(pooler)
    ]
    if lacking:
        raise ModelError(
            f"{KEY}={base.source}: the weights lack {', '.join(lacking[:4])}"
            f"{' and more' if len(lacking) > 4 else ''}; take a folder that holds the whole encoder"
        )
    check_positions(report, source=f"{KEY}={base.source}")
    brought = read_config(folder, source=base.source, key=KEY).id2label or {}
    _order_head(model, [str(name) for _, name in sorted(brought.items())], labels)
    return _as_wanted(model, base)


def _order_head(model: PreTrainedModel, brought: Sequence[str], labels: Sequence[str]) -> None:
    """Of a head that the base brought along let each label keep what was learnt of it."""
    if brought == list(labels) or sorted(brought) != sorted(labels):
        return
    order = [brought.index(label) for label in labels]
    layers = [one for one in head_modules(model) if isinstance(one, nn.Linear)]
    last = [one for one in layers if one.out_features == len(labels)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(parameter[order].clone())


def load_checkpoint(folder: Path, base: Base) -> PreTrainedModel:
    """A model that training itself saved of ``base``, on the CPU in float32."""
    with quiet():
        model, _ = load_classifier(folder, head=base.head, dtype=torch.float32)
    return _as_wanted(model, base)


def _as_wanted(model: PreTrainedModel, base: Base) -> PreTrainedModel:
    """With the dropout that is wanted, and an attention that no batch changes for later ones."""
    choose_attention_by_batch(model)
    if base.classifier_dropout is not None:
        set_dropout(model, base.classifier_dropout)
    return model
