"""Texts said otherwise by models: words guessed from their context, sentences translated and back.

# B = texts in a batch, L = longest of them, M = masked words in it, V = words of the vocabulary
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from bertray.errors import ModelError
from bertray.model.pretrained import load_tokenizer, longest_input, quiet
from bertray.text.batching import plan_batches
from bertray.text.ragged import offsets_of, pad
from bertray.train.words import WORD, find_words, how_many, in_case_of, replace_words

MASKED_KEY = "augmentation.masked_model"
TRANSLATION_KEY = "augmentation.translation_models"
MASKED_BATCH_TOKENS = 512  # each comes back with a number for every word of the vocabulary
TRANSLATED_BATCH_TOKENS = 2_048
TOP = 10  # guesses to draw from; those after them seldom fit
# A translation is about as long as its source; a model that runs on is stopped.
LONGER, MARGIN = 2, 8
SENTENCE_END = re.compile(r"((?<=[.!?…])\s+|(?<!\s)\s*\n\s*)")


@dataclass(frozen=True)
class _Masked:
    """One text with some words hidden.

    Attributes:
        input_ids: with one mask a hidden word.
        places: where the words stand in the text, in order.
        positions: of their masks in ``input_ids``, likewise.
    """

    input_ids: list[int]
    places: list[tuple[int, int]]
    positions: list[int]


class MaskedModel:
    """Replaces words by what a masked language model expects in their place.

    Args:
        folder: the model.
        source: what the user called it.

    Raises:
        ModelError: it is no such model, or its tokenizer does not say where tokens stand.
    """

    def __init__(self, folder: Path, *, source: str) -> None:
        self._tokenizer = _tokenizer(folder, key=MASKED_KEY)
        if not self._tokenizer.is_fast or self._tokenizer.mask_token_id is None:
            raise ModelError(
                f"{MASKED_KEY}={source}: needs a mask token and a fast tokenizer (tokenizer.json)"
            )
        self._model = _load(AutoModelForMaskedLM, folder, source=source, key=MASKED_KEY)
        self._max_length = longest_input(self._model.config, self._tokenizer)
        self._words = _whole_words(self._tokenizer)
        ids = torch.tensor(sorted(self._words), device=self._model.device)
        if len(ids) < TOP:
            raise ModelError(f"{MASKED_KEY}={source}: knows {len(ids)} whole words, too few")
        self._word_ids_V = ids

    def rewrite(
        self,
        texts: Sequence[str],
        randoms: Sequence[np.random.Generator],
        *,
        alpha: float,
        num_copies: int,
    ) -> list[list[str]]:
        """So many versions of each text, in each a share of alpha of its words guessed anew.

        Words beyond the model's longest input stay as they are.
        """
        encoding = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._max_length,
            return_offsets_mapping=True,
        )
        masked = [
            self._mask(text, ids, spans, random, alpha=alpha)
            for text, ids, spans, random in zip(
                texts, encoding["input_ids"], encoding["offset_mapping"], randoms, strict=True
            )
            for _ in range(num_copies)
        ]
        guesses = self._guess(masked)
        versions = []
        for copy, (one, guessed) in enumerate(zip(masked, guesses, strict=True)):
            text, random = texts[copy // num_copies], randoms[copy // num_copies]
            drawn = {}
            for place, (words, weights) in zip(one.places, guessed, strict=True):
                drawn[place] = _draw(text[slice(*place)], words, weights, random)
            versions.append(replace_words(text, drawn))
        return [versions[start : start + num_copies] for start in range(0, len(masked), num_copies)]

    def _mask(
        self,
        text: str,
        ids: list[int],
        spans: list[tuple[int, int]],
        random: np.random.Generator,
        *,
        alpha: float,
    ) -> _Masked:
        """Hide some words, drawn from those that the model sees whole and apart from others."""
        seen = max((end for _, end in spans), default=0)
        places = _apart([place for place in find_words(text) if place[1] <= seen], spans)
        if not places:
            return _Masked(ids, [], [])
        size = how_many(len(places), alpha=alpha)
        chosen = [places[index] for index in sorted(random.choice(len(places), size, False))]
        kept: list[int] = []
        positions: list[int] = []
        for token, (start, end) in zip(ids, spans, strict=True):
            nth = next((n for n, (a, b) in enumerate(chosen) if start < b and end > a), None)
            if nth is None:
                kept.append(token)
            elif nth == len(positions):  # a word's first token; its others go
                positions.append(len(kept))
                kept.append(int(self._tokenizer.mask_token_id))
        return _Masked(kept, chosen, positions)

    @torch.inference_mode()
    def _guess(self, masked: Sequence[_Masked]) -> list[list[tuple[list[str], np.ndarray]]]:
        """For each hidden word of each text the likeliest words, and how likely they are."""
        guesses: list[list[tuple[list[str], np.ndarray]]] = [[] for _ in masked]
        lengths = np.array([len(one.input_ids) for one in masked])
        for rows in plan_batches(lengths, max_tokens=MASKED_BATCH_TOKENS):
            inputs = _padded([masked[row].input_ids for row in rows], self._tokenizer, self._model)
            logits_BLV = self._model(**inputs).logits
            for place, row in enumerate(rows):
                logits_MV = logits_BLV[place, masked[row].positions][:, self._word_ids_V].float()
                values, indices = logits_MV.topk(TOP, dim=1)
                for weights, ids in zip(
                    values.softmax(dim=1).cpu().numpy(), self._word_ids_V[indices], strict=True
                ):
                    guesses[row].append(([self._words[int(one)] for one in ids], weights))
        return guesses


class BackTranslation:
    """Translates texts sentence by sentence into another language, and back.

    Args:
        folders: of the model that translates there, and of the one that translates back; each
            translates between two languages without being told which, as the Marian models do.
        sources: what the user called them.

    Raises:
        ModelError: one of them cannot be loaded as such a model.
    """

    def __init__(self, folders: tuple[Path, Path], *, sources: tuple[str, str]) -> None:
        self._there, self._back = (
            _Translator(folder, source=source)
            for folder, source in zip(folders, sources, strict=True)
        )

    def rewrite(self, texts: Sequence[str], *, num_copies: int) -> list[list[str]]:
        """So many versions of each text, by the likeliest translations there; nothing is drawn.

        White space between sentences stays, and so does a sentence that is longer than a model can
        take, or comes back empty.
        """
        rows = [SENTENCE_END.split(text) for text in texts]  # every other part is white space
        sentences = sorted({part.strip() for parts in rows for part in parts[::2]} - {""})
        foreign = self._there(sentences, num_versions=num_copies)
        middle = sorted({version for versions in foreign.values() for version in versions} - {""})
        back = self._back(middle, num_versions=1)

        def said_otherwise(part: str, copy: int) -> str:
            sentence = part.strip()
            if sentence not in foreign:
                return part
            [version] = back.get(foreign[sentence][copy], [sentence])
            return part.replace(sentence, version or sentence, 1)

        return [
            ["".join(said_otherwise(part, copy) for part in parts) for copy in range(num_copies)]
            for parts in rows
        ]


class _Translator:
    """One direction."""

    def __init__(self, folder: Path, *, source: str) -> None:
        self._tokenizer = _tokenizer(folder, key=TRANSLATION_KEY)
        targets = getattr(self._tokenizer, "supported_language_codes", None)
        if targets or hasattr(type(self._tokenizer), "src_lang"):
            raise ModelError(
                f"{TRANSLATION_KEY}: {source} must be told the languages, which nothing here does; "
                "name a model of one direction, such as Helsinki-NLP/opus-mt-en-de"
            )
        self._model = _load(AutoModelForSeq2SeqLM, folder, source=source, key=TRANSLATION_KEY)
        tasks = getattr(self._model.config, "task_specific_params", None) or {}
        if any(task.startswith("translation") for task in tasks):
            raise ModelError(
                f"{TRANSLATION_KEY}: {source} is of many tasks and must be told its one, which "
                "nothing here does; name a model of one direction, as Helsinki-NLP/opus-mt-en-de is"
            )
        self._max_length = longest_input(self._model.config, self._tokenizer)

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str], *, num_versions: int) -> dict[str, list[str]]:
        """The likeliest translations of each sentence that the model can take whole."""
        if not sentences:
            return {}
        ids = self._tokenizer(list(sentences))["input_ids"]
        lengths = np.array([len(row) for row in ids])
        found = {}
        for rows in _of_one_length(lengths, max_tokens=TRANSLATED_BATCH_TOKENS):
            length = int(lengths[rows[0]])
            if length > self._max_length:
                continue
            with quiet():
                made = self._model.generate(
                    **_padded([ids[row] for row in rows], self._tokenizer, self._model),
                    num_beams=num_versions,
                    num_return_sequences=num_versions,
                    do_sample=False,
                    max_new_tokens=min(LONGER * length + MARGIN, self._max_length - 1),
                )
            texts = self._tokenizer.batch_decode(made, skip_special_tokens=True)
            for place, row in enumerate(rows):
                versions = texts[place * num_versions : (place + 1) * num_versions]
                found[sentences[row]] = [version.strip() for version in versions]
        return found


def _of_one_length(lengths: np.ndarray, *, max_tokens: int) -> Iterator[np.ndarray]:
    """Batches in which no row is padded, so that a neighbour does not change where one stops."""
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for batch in plan_batches(lengths[rows], max_tokens=max_tokens):
            yield rows[batch]


def _apart(places: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The words that have tokens of their own: of ``u.s.`` as one token there are none."""
    if not places:
        return []
    starts, ends = np.array(places).T
    of_tokens = np.array(spans)
    firsts = np.searchsorted(ends, of_tokens[:, 0], side="right")
    counts = np.searchsorted(starts, of_tokens[:, 1], side="left") - firsts
    own = np.zeros(len(places), bool)
    own[firsts[counts == 1]] = True
    for first, count in zip(firsts[counts > 1], counts[counts > 1], strict=True):
        own[first : first + count] = False
    return [places[index] for index in np.flatnonzero(own)]


def _draw(
    word: str, others: Sequence[str], weights: np.ndarray, random: np.random.Generator
) -> str:
    """One of the other words in the case of this one, but not this one itself."""
    able = [n for n, other in enumerate(others) if other.lower() != word.lower()]
    chances = weights[able].astype(np.float64)
    return in_case_of(word, others[able[random.choice(len(able), p=chances / chances.sum())]])


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that are a word by themselves, with that word."""
    texts = {id_: str(tokenizer.decode([id_])).strip() for id_ in range(len(tokenizer))}
    able = [id_ for id_, text in texts.items() if WORD.fullmatch(text)]
    # A token may be the end of a word as well; it is a word if this one comes back as it.
    again = tokenizer([f" {texts[id_]}" for id_ in able], add_special_tokens=False)["input_ids"]
    return {id_: texts[id_] for id_, ids in zip(able, again, strict=True) if ids == [id_]}


def _padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, model: Any
) -> dict[str, Tensor]:
    """The model's inputs, each of shape (B, L)."""
    offsets = offsets_of(np.array([len(row) for row in rows]))
    flat = np.concatenate([np.array(row) for row in rows])
    value = int(tokenizer.pad_token_id or 0)
    ids_BL, mask_BL = pad(flat, offsets, np.arange(len(rows)), value=value)
    arrays = {"input_ids": ids_BL, "attention_mask": mask_BL.astype(np.int64)}
    return {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}


def _tokenizer(folder: Path, *, key: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer; those of Marian models need a package that is not always there."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sacremoses would make quotation marks plain
        try:
            return load_tokenizer(folder, key=key)
        except ImportError as error:
            raise ModelError(
                f"{key}={folder}: its tokenizer needs SentencePiece; "
                "pip install bertray[augment] on all nodes"
            ) from error


def _load(kind: Any, folder: Path, *, source: str, key: str) -> Any:
    """The model in evaluation mode, on the GPU if this process has one."""
    with quiet():
        try:
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{key}={source}: cannot be loaded as {kind.__name__}: {reason}"
            ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{key}={source}: the weights lack {', '.join(missing[:4])}, so this is none that "
            f"{kind.__name__} of transformers saved; name another model"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
