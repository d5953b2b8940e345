"""Texts on which tokenizers have been known to differ."""

import random

from transformers import PreTrainedTokenizerBase

NUM_RANDOM = 32
_ALPHABETS = ((0x20, 0x7F), (0x20, 0x250), (0x300, 0x700), (0x900, 0x3100), (0x3100, 0x1FAFF))


def probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Adversarial texts, the tokenizer's added tokens among words, and noise; always the same."""
    added = [
        f"x{token}y {token} {token.upper()}{token.lower()},{token}  {token}"
        for token in list(tokenizer.get_added_vocab())[:32]
    ]
    chance = random.Random(0)
    return [*_PROBES, *added, *(_noise(chance) for _ in range(NUM_RANDOM))]


def _noise(chance: random.Random) -> str:
    codes = (chance.randrange(*chance.choice(_ALPHABETS)) for _ in range(60))
    return "".join(" " if 0xD800 <= code < 0xE000 else chr(code) for code in codes)


_PROBES = (
    "",
    " \t\n ",
    "Hello, world! It's 3.14 o'clock, isn't it? e-mail: a_b@c.de",
    "word " * 600,
    "longer" * 30 + " " + "x" * 101 + " " + "y" * 100,
    # accents, composed and not; letters whose case is not simple
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u1e9b\u0323 \u0130stanbul \u0131 \u00df \u1e9e",
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03c3\u03c2",
    # ligatures, circled, fractions, Roman numerals, full width
    "\ufb01nal \ufb03 \u2460 \u00bd \u2167 \uff21\uff42\uff43",
    # Chinese, Japanese, Korean (also as single letters), Thai, Hindi, Arabic, Hebrew
    "\u4e2d\u6587\u5b57\u7b26 \u6df7\u5408English\u6587\u672c \u65e5\u672c\u8a9e\u306e\u30c6\u30b9",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0651\u0629 \u05e2\u05b4\u05d1\u05b0",
    # emoji of several code points
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea \u2764\ufe0f",
    # white space, control and format characters, private use, the replacement character
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u2029h\u0085i\u180ej",
    "a\x00b\x01c\x0bd\x0ce\x1ff\x7fg\u00adh\ufffdi\U000e0001j\ue000k\U0010ffffl",
    "\r\nline one\r\n\r\nline two\n\n\n\ttabbed\t\ttwice",
    # punctuation and symbols
    "$100 \u20ac50 1,000,000 50% #tag @you ... \u2026 \u201cquoted\u201d \u2018it\u2019s\u2019",
    "\u2013 \u2014 \u00ab\u00bb \u00bf\u00a1 \u00a9\u00ae\u2122 +-*/=<>~`^|",
    'https://example.org/a?b=c&d=%20e#f C:\\path\\to <b>bold</b> {"k": [1, 2]}',
    # special tokens written out, and pieces of WordPiece's own notation
    "[CLS] [SEP] [PAD] [MASK] [UNK] <s> </s> <pad> <mask> [cls]x[SEP]y [ MASK ] [MASK",
    "##ing un##able ## # ### \u0301\u0302 e\u0301\u0302\u0303 \u0345",
)
