"""Texts become token ids, each row's own, whoever tokenized it and in whatever order."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertray.config import TrainData
from bertray.train.base import Base
from bertray.train.data import in_row_order, tokenize
from bertray.train.examples import Examples, select
from bertray.train.labels import Labelled, list_shards, read_labels

Write = Callable[..., Path]
WORDS = "good bad film plot the a is was very not great awful story actor".split()


def labelled_texts(folder: Path, **columns: str) -> Labelled:
    data = TrainData(train=str(folder), **columns)
    return read_labels(list_shards(data), data, seed=0)


def tokenized(labelled: Labelled, base: Base, columns: list[str]) -> list[pa.Table]:
    return [
        tokenize(pa.Table.from_pylist([asdict(piece)]), base=base, columns=columns)
        for piece in labelled.pieces
    ]


def row(examples: Examples, place: int) -> list[int]:
    encoded = examples.encoded
    return encoded.input_ids[encoded.offsets[place] : encoded.offsets[place + 1]].tolist()


def test_rows_are_tokenized_as_transformers_does_and_put_in_row_order(
    write_shards: Write, base: Base, classifier_folder: Path
) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 60))) for _ in range(50)]
    shards = {
        f"p{first:02d}": pa.table({"text": texts[first : first + 10], "label": ["x", "y"] * 5})
        for first in range(0, 50, 10)
    }
    labelled = labelled_texts(write_shards(shards))
    blocks = tokenized(labelled, base, ["text"])
    examples = in_row_order(pa.concat_tables(blocks[::-1]), labelled.targets)
    plain = AutoTokenizer.from_pretrained(classifier_folder)(
        texts, truncation=True, max_length=base.max_length
    )
    assert [row(examples, place) for place in range(50)] == plain["input_ids"]
    assert examples.row_ids.tolist() == list(range(50))
    assert examples.targets.tolist() == [0, 1] * 25


def test_rows_without_text_are_left_out_and_keep_no_others_place(
    write_shards: Write, base: Base
) -> None:
    texts = ["good film", None, "  ", "bad plot", "", "awful"]
    labelled = labelled_texts(
        write_shards({"a": pa.table({"text": texts, "label": ["x", "y"] * 3})})
    )
    (block,) = tokenized(labelled, base, ["text"])
    examples = in_row_order(block, labelled.targets)
    assert examples.row_ids.tolist() == [0, 3, 5]
    assert examples.targets.tolist() == [0, 1, 1]


def test_pairs_are_joined_with_their_segments(write_shards: Write, base: Base) -> None:
    table = pa.table(
        {"text": ["good film"] * 4, "more": ["the plot", None, "actor", "a"], "label": list("xyxy")}
    )
    labelled = labelled_texts(write_shards({"a": table}), text_pair="more")
    (block,) = tokenized(labelled, base, ["text", "more"])
    examples = in_row_order(block, labelled.targets)
    assert examples.row_ids.tolist() == [0, 2, 3]
    assert examples.encoded.token_type_ids is not None
    assert examples.encoded.token_type_ids[:7].tolist() == [0, 0, 0, 0, 1, 1, 1]


@given(picked=st.lists(st.integers(0, 29), max_size=40))
def test_select_gives_the_rows_asked_for(
    make_examples: Callable[..., Examples], picked: list[int]
) -> None:
    examples = make_examples(30)
    some = select(examples, np.array(picked, int))
    assert [row(some, place) for place in range(len(some))] == [
        row(examples, place) for place in picked
    ]
    assert some.row_ids.tolist() == [examples.row_ids[place] for place in picked]


def test_a_text_column_that_goes_away_is_named(write_shards: Write, base: Base) -> None:
    folder = write_shards({"a": pa.table({"text": ["t"] * 4, "label": list("xyxy")})})
    labelled = labelled_texts(folder)
    (folder / "a.parquet").unlink()
    with pytest.raises(Exception, match=r"a\.parquet: cannot be read"):
        tokenized(labelled, base, ["text"])
