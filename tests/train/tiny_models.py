"""What augmentation reads, as small as it can be: a WordNet of six senses, random models."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from transformers import BertConfig, BertForMaskedLM, MarianConfig, MarianMTModel, MarianTokenizer

# Part of speech, words, and how often the first of them was met in this sense.
SENSES = [
    ("n", ["film", "celluloid"], 2),
    ("n", ["film", "movie", "motion_picture"], 38),
    ("n", ["plot", "secret_plan", "game"], 5),
    ("a", ["good"], 190),
    ("a", ["awful", "terrible", "dire"], 3),
    ("r", ["very", "really"], 9),
]
SUFFIX = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
NUMBER = {"n": 1, "v": 2, "a": 3, "r": 4}
HEAD = "  1 WordNet 3.0 Copyright: made for tests, in the format of wndb(5WN)\n"
SENTENCES = [
    "the film was good and the plot was bad",
    "a great story , not an awful actor",
    "very good film .",
]


def write_wordnet(folder: Path) -> Path:
    """An NLTK data folder with nothing but ``corpora/wordnet``."""
    root = folder / "corpora/wordnet"
    root.mkdir(parents=True)
    counts = []
    for kind, suffix in SUFFIX.items():
        data, offsets = HEAD, {}
        for number, (pos, words, count) in enumerate(SENSES):
            if pos != kind:
                continue
            for word in words:
                offsets.setdefault(word, []).append(len(data))
            listed = " ".join(f"{word} {number}" for word in words)
            data += f"{len(data):08d} 03 {pos} {len(words):02x} {listed} 000 | a sense  \n"
            counts.append(f"{words[0]}%{NUMBER[pos]}:03:{number:02d}:: 1 {count}\n")
        index = "".join(
            f"{word} {kind} {len(places)} 0 {len(places)} 0 "
            + " ".join(f"{place:08d}" for place in places)
            + "  \n"
            for word, places in sorted(offsets.items())
        )
        (root / f"data.{suffix}").write_text(data)
        (root / f"index.{suffix}").write_text(HEAD + index)
        (root / f"{suffix}.exc").write_text("")
    (root / "cntlist.rev").write_text("".join(sorted(counts)))
    (root / "lexnames").write_text("".join(f"{place:02d}\tname\t1\n" for place in range(45)))
    (root / "index.sense").write_text("")
    return folder


def save_masked_model(folder: Path, *, like: Path) -> Path:
    """A random BERT with a language model's head, and the tokenizer of another model."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((like / name).read_bytes())
    config = BertConfig(
        vocab_size=json.loads((like / "config.json").read_text())["vocab_size"],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def save_translation_model(folder: Path, *, seed: int) -> Path:
    """A random Marian model in the layout that the OPUS models have."""
    folder.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    names = {name: str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")}
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    words = [pieces.id_to_piece(place) for place in range(pieces.get_piece_size())]
    words = list(dict.fromkeys(["</s>", "<unk>", *words, "<pad>"]))
    vocabulary = {word: place for place, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    MarianTokenizer(*names.values(), model_max_length=64).save_pretrained(folder)
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=vocabulary["</s>"],
        decoder_start_token_id=vocabulary["<pad>"],
        forced_eos_token_id=vocabulary["</s>"],
        init_std=0.5,
    )
    torch.manual_seed(seed)
    MarianMTModel(config).save_pretrained(folder)
    return folder
