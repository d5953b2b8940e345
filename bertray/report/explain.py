"""Which words made a model say what it says: layer integrated gradients on the embeddings.

From a text of masks to the text in small steps, the gradient of the prediction is added up for each
token's embedding (Sundararajan et al. 2017; captum computes it). What is explained is the log-odds
of one label, log(p / (1 - p)): zero for an even chance, and the same whatever constant the logits
share; of a regression model the score. Attributions of all words add up to the change of it from
the masks to the text. That is checked, and steps are doubled until it holds.

bertray explain MODEL "text"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from bertray.errors import ConfigError, DataError, ModelError
from bertray.model.bundle import Bundle, load_model
from bertray.model.calibration import calibrate
from bertray.model.pretrained import load_tokenizer

FEWEST_STEPS, MOST_STEPS = 32, 1024
TOLERANCE = 0.02  # of the change, or absolute where the change is below 1
PASSES_AT_ONCE = 16  # steps that are computed together
MOST_CHARACTERS = 100_000  # that are tokenized: no model reads as far


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: it.
        start: its first character in the text.
        end: behind its last one.
        of_pair: whether it is one of the second text.
        attribution: what it adds to the log-odds, or to the score.
    """

    text: str
    start: int
    end: int
    of_pair: bool
    attribution: float


@dataclass(frozen=True)
class Explanation:
    """Why a text got its prediction.

    Attributes:
        label: that is explained; of a regression model its only one.
        probability: of it; of a regression model the score.
        value: the log-odds of the label, or the score.
        baseline: the same of the text with all words masked.
        words: in the order of the text, those that the model read.
        num_steps: that completeness took.
        gap: how far the attributions are from adding up to ``value - baseline``.
        whole: whether the model read all of the text.
    """

    label: str
    probability: float
    value: float
    baseline: float
    words: tuple[Word, ...]
    num_steps: int
    gap: float
    whole: bool

    @property
    def complete(self) -> bool:
        """Whether the attributions add up, within `TOLERANCE`."""
        return abs(self.gap) <= TOLERANCE * max(1.0, abs(self.value - self.baseline))


class Explainer:
    """A model loaded to be asked why.

    Args:
        bundle: the model.

    Raises:
        ConfigError: captum is not installed.
        ModelError: the tokenizer does not tell where in a text its tokens stand.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            from captum.attr import LayerIntegratedGradients
        except ImportError as error:
            raise ConfigError(
                f"explanations need captum: {error}; pip install 'bertray[explain]'"
            ) from error
        self._bundle = bundle
        self._tokenizer = load_tokenizer(bundle.folder)
        if not self._tokenizer.is_fast:
            raise ModelError(
                f"{bundle.source}: its tokenizer does not tell which characters a token is made "
                "of; one with a fast tokenizer of Hugging Face (tokenizer.json) is needed"
            )
        self._model = load_model(bundle)
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        self._blank = _blank_token(self._tokenizer)
        self._attribute = LayerIntegratedGradients(
            self._values, cast(Any, self._model).get_input_embeddings()
        ).attribute

    @property
    def labels(self) -> tuple[str, ...]:
        """What can be asked for, in label-id order."""
        return self._bundle.labels

    def __call__(
        self, text: str, pair: str | None = None, *, label: str | None = None
    ) -> Explanation:
        """Explain one prediction.

        Args:
            text: to be classified; what is behind the model's longest input is not read.
            pair: its second text.
            label: to explain; the most probable one by default.

        Raises:
            DataError: nothing to classify is in there, or the model does not know the label, or
                was trained on pairs where this is none, or the other way round.
        """
        if self._bundle.takes_pairs not in (None, pair is not None):
            kind = "pairs: give a second text" if pair is None else "single texts: leave out one"
            raise DataError(f"{self._bundle.source} was trained on {kind} (--pair)")
        if not text.strip() or (pair is not None and not pair.strip()):
            raise DataError("the text is empty; there is nothing to explain")
        texts = [one for one in (text, pair) if one is not None]
        from_the_end = self._tokenizer.truncation_side == "left"
        cuts = [max(len(one) - MOST_CHARACTERS, 0) if from_the_end else 0 for one in texts]
        encoding = self._tokenizer(
            *(one[cut : cut + MOST_CHARACTERS] for one, cut in zip(texts, cuts, strict=True)),
            truncation=True,
            max_length=self._bundle.max_length,
            return_tensors="pt",
        )
        inputs = {name: encoding[name] for name in self._inputs(encoding)}
        target = self._target(inputs, label)
        words_of = _word_of_each_token(encoding)
        blank = inputs["input_ids"].clone()
        blank[0, [index for index, word in enumerate(words_of) if word is not None]] = self._blank
        value = self._value(inputs, target)
        baseline = self._value({**inputs, "input_ids": blank}, target)
        num_steps = FEWEST_STEPS
        while True:
            by_token = self._by_token(inputs, blank, target, num_steps)
            gap = float(by_token.sum()) - (value - baseline)
            found = Explanation(
                label=self._bundle.labels[target],
                probability=self._probability(value),
                value=value,
                baseline=baseline,
                words=_words(by_token.tolist(), words_of, encoding, texts, cuts),
                num_steps=num_steps,
                gap=gap,
                whole=not encoding[0].overflowing and max(map(len, texts)) <= MOST_CHARACTERS,
            )
            if found.complete or num_steps >= MOST_STEPS:
                return found
            num_steps *= 2

    def _inputs(self, encoding: BatchEncoding) -> list[str]:
        return [name for name in self._tokenizer.model_input_names if name in encoding]

    def _target(self, inputs: dict[str, Tensor], label: str | None) -> int:
        labels = self._bundle.labels
        if label is not None and label not in labels:
            raise DataError(
                f"{self._bundle.source} does not know the label {label!r}; "
                f"it knows {', '.join(labels[:12])}{' ...' if len(labels) > 12 else ''}"
            )
        if label is not None:
            return labels.index(label)
        with torch.inference_mode():
            return int(self._logits(**inputs)[0].argmax())

    def _logits(self, **inputs: Tensor) -> Tensor:
        """Of shape (rows, labels), as scoring reads them."""
        logits: Tensor = self._model(**inputs).logits.double()
        calibration = self._bundle.calibration
        if calibration is None:
            return logits
        return calibrate(logits, calibration, task=self._bundle.task)

    def _by_token(
        self, inputs: dict[str, Tensor], blank: Tensor, target: int, num_steps: int
    ) -> Tensor:
        """Attributions of shape (tokens,)."""
        names = [name for name in inputs if name != "input_ids"]
        by_dimension = self._attribute(
            inputs["input_ids"],
            baselines=blank,
            additional_forward_args=(target, names, *(inputs[name] for name in names)),
            n_steps=num_steps,
            internal_batch_size=PASSES_AT_ONCE,
        )
        return cast(Tensor, by_dimension.sum(dim=-1)[0].detach().double())

    def _values(
        self, input_ids: Tensor, target: int, names: Sequence[str], *others: Tensor
    ) -> Tensor:
        """What is explained, of shape (rows,)."""
        others_by_name = dict(zip(names, others, strict=True))
        logits = self._logits(input_ids=input_ids, **others_by_name)
        ours = logits[:, target]
        if self._bundle.task == "regression":
            scale = self._bundle.scale
            return ours if scale is None else scale.mean + scale.std * ours
        if self._bundle.task == "multi_label":
            return ours
        rest = [index for index in range(logits.shape[1]) if index != target]
        return ours - logits[:, rest].logsumexp(dim=1)

    def _value(self, inputs: dict[str, Tensor], target: int) -> float:
        names = [name for name in inputs if name != "input_ids"]
        with torch.inference_mode():
            others = (inputs[name] for name in names)
            return float(self._values(inputs["input_ids"], target, names, *others))

    def _probability(self, value: float) -> float:
        if self._bundle.task == "regression":
            return value
        return float(torch.tensor(value, dtype=torch.float64).sigmoid())


def _blank_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands for a word that says nothing.

    The mask first: models met it in pretraining, and unlike padding it has a position.
    """
    for token in (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0


def _word_of_each_token(encoding: BatchEncoding) -> list[tuple[int, int] | None]:
    """Text and number of the word that each token belongs to; None for special tokens."""
    return [
        None if side is None or word is None else (side, word)
        for side, word in zip(encoding.sequence_ids(), encoding.word_ids(), strict=True)
    ]


def _words(
    attributions: list[float],
    words_of: list[tuple[int, int] | None],
    encoding: BatchEncoding,
    texts: Sequence[str],
    cuts: Sequence[int],
) -> tuple[Word, ...]:
    """Tokens put together to words, without the spaces around them.

    Args:
        attributions: of each token.
        words_of: as `_word_of_each_token` has them.
        encoding: of the texts.
        texts: whole.
        cuts: characters of each that were left out before it was encoded.
    """
    spans: dict[tuple[int, int], tuple[int, int, float]] = {}
    for index, (word, attribution) in enumerate(zip(words_of, attributions, strict=True)):
        if word is None:
            continue
        start, end = (place + cuts[word[0]] for place in encoding[0].offsets[index])
        first, last, total = spans.get(word, (start, end, 0.0))
        spans[word] = min(first, start), max(last, end), total + attribution
    words = []
    for (side, _), (start, end, attribution) in spans.items():
        piece = texts[side][start:end]
        first, bare = start + len(piece) - len(piece.lstrip()), piece.strip()
        words.append(Word(bare, first, first + len(bare), bool(side), attribution))
    return tuple(words)
