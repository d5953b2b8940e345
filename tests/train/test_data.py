"""Texts become token ids, each row's own, whoever tokenized it and in whatever order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertray import storage
from bertray.config import Augmentation, TrainData
from bertray.errors import StorageError
from bertray.storage.outage import UnreachableError
from bertray.text.long import LongText
from bertray.train.augment import count_by_method, open_augmenter
from bertray.train.base import Base
from bertray.train.data import in_row_order, labels_without_rows, pieces_to_read, tokenize
from bertray.train.examples import Examples, select
from bertray.train.labels import Labelled, list_shards, read_labels

Write = Callable[..., Path]
WORDS = "good bad film plot the a is was very not great awful story actor".split()


def labelled_texts(folder: Path, **columns: str) -> Labelled:
    data = TrainData(train=str(folder), **columns)
    return read_labels(list_shards(data), data, seed=0)


def tokenized(labelled: Labelled, base: Base, columns: list[str]) -> list[pa.Table]:
    return [
        tokenize(pa.Table.from_pylist([item]), base=base, columns=columns)
        for item in pieces_to_read(labelled)
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


def test_rows_in_windows_keep_all_of_their_windows_whatever_the_order_of_blocks(
    write_shards: Write, base: Base, classifier_folder: Path
) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 120))) for _ in range(20)]
    texts[3] = " "
    shards = {
        f"p{first:02d}": pa.table({"text": texts[first : first + 5], "label": list("xyxyx")})
        for first in range(0, 20, 5)
    }
    labelled = labelled_texts(write_shards(shards))
    windowed = replace(base, long_text=LongText("window", 7))
    blocks = [
        block.slice(*cut)
        for cut in ((4, 99), (0, 4))
        for block in tokenized(labelled, windowed, ["text"])
    ]
    examples = in_row_order(pa.concat_tables(blocks), labelled.targets)
    assert examples.row_ids.tolist() == [0, 1, 2, *range(4, 20)]
    assert examples.windows is not None
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    for place, row_id in enumerate(examples.row_ids):
        wanted = tokenizer(
            texts[row_id],
            truncation=True,
            max_length=base.max_length,
            stride=7,
            return_overflowing_tokens=True,
        )["input_ids"]
        found = range(examples.windows[place], examples.windows[place + 1])
        assert [row(examples, sequence) for sequence in found] == wanted
        assert examples.lengths[place] == sum(map(len, wanted))
    assert examples.num_windows.max() > 3


@given(picked=st.lists(st.integers(0, 29), max_size=40), seed=st.integers(0, 9))
def test_select_takes_rows_with_their_windows(
    make_examples: Callable[..., Examples], picked: list[int], seed: int
) -> None:
    counts = np.random.default_rng(seed).integers(1, 4, 30)
    sequences = make_examples(int(counts.sum()))
    labels, ids = np.arange(30), np.arange(30)
    examples = Examples(sequences.encoded, labels, ids, np.append(0, np.cumsum(counts)))
    some = select(examples, np.array(picked, int))
    assert some.num_windows.tolist() == counts[picked].tolist()
    assert some.lengths.tolist() == examples.lengths[picked].tolist()
    wanted = [row(examples, place) for place in examples.sequences_of(np.array(picked, int))]
    assert [row(some, place) for place in range(len(some.encoded))] == wanted


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


@pytest.mark.parametrize(
    "labels", [["x", "y", "z", "y", "z"], [["x"], ["y"], ["x", "z"], [], ["z"]]]
)
def test_labels_all_of_whose_rows_are_left_out_are_named(
    labels: list[Any], write_shards: Write, base: Base
) -> None:
    texts = ["good film", "bad plot", None, "awful", " "]
    labelled = labelled_texts(write_shards({"a": pa.table({"text": texts, "label": labels})}))
    (block,) = tokenized(labelled, base, ["text"])
    targets = in_row_order(block, labelled.targets).targets
    assert len(targets) == 3
    assert labels_without_rows(labelled, targets, np.ones(3, bool)) == "'z'"
    assert labels_without_rows(labelled, targets, np.zeros(3, bool)) == "'x', 'y', 'z'"
    assert labels_without_rows(labelled, labelled.targets, np.ones(5, bool)) == ""


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_that_are_not_utf8_are_left_out_too(
    kind: pa.DataType, write_shards: Write, base: Base
) -> None:
    texts = pa.array([b"good film", b"caf\xe9", b" ", b"bad plot", None, b"awful"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers()).cast(kind)
    table = pa.table({"text": broken, "label": ["x", "y"] * 3})
    labelled = labelled_texts(write_shards({"a": table}))
    (block,) = tokenized(labelled, base, ["text"])
    assert in_row_order(block, labelled.targets).row_ids.tolist() == [0, 3, 5]


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


@pytest.mark.parametrize("error", [UnreachableError("no answer"), PermissionError("not yours")])
def test_a_place_that_cannot_be_read_from_is_not_the_shards_fault(
    error: Exception, write_shards: Write, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = labelled_texts(
        write_shards({"a": pa.table({"text": ["t"] * 4, "label": list("xyxy")})})
    )

    def fails(uri: str) -> None:
        raise error

    monkeypatch.setattr(storage, "open_input", fails)
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be reached: .*run again$"):
        tokenized(labelled, base, ["text"])


@pytest.mark.parametrize("most_rows", [None, 3])
def test_copies_stand_behind_their_row_and_have_its_label(
    most_rows: int | None, write_shards: Write, base: Base
) -> None:
    texts = ["good film plot", None, "bad plot a film", "awful", "not very good", "a bad actor"]
    table = pa.table({"text": texts, "label": ["x", "y"] * 3})
    shards = {"a": table.slice(0, 4), "b": table.slice(4)}
    labelled = labelled_texts(write_shards(shards))
    labelled = replace(labelled, is_validation=np.arange(6) == 4)
    augmenter = open_augmenter(Augmentation(methods=("swap", "deletion"), num_copies=2), seed=0)
    assert augmenter is not None
    items = list(pieces_to_read(labelled, augmenter, most_rows=most_rows))
    there = [[0, 1, 2, 3], [5]] if most_rows is None else [[0, 1, 2], [3], [5]]
    assert [item["rows_to_copy"] for item in items] == there
    blocks = [
        tokenize(pa.Table.from_pylist([item]), base=base, columns=["text"], augmenter=augmenter)
        for item in items
    ]
    table = pa.concat_tables(blocks[::-1])
    examples = in_row_order(table, labelled.targets)
    originals, counts = np.unique(examples.row_ids, return_counts=True)
    assert originals.tolist() == [0, 2, 3, 4, 5]
    assert counts[[2, 3]].tolist() == [1, 1]  # one word alone, and a row to validate on
    assert (counts[[0, 1, 4]] > 2).all()
    assert (examples.targets == examples.row_ids % 2).all()
    assert (np.diff(examples.row_ids) >= 0).all()
    (plain,) = tokenized(replace(labelled, pieces=labelled.pieces[:1]), base, ["text"])
    firsts = np.searchsorted(examples.row_ids, [0, 2, 3])
    expected = in_row_order(plain, labelled.targets)
    assert [row(examples, first) for first in firsts] == [row(expected, n) for n in range(3)]
    made = count_by_method(table.column("copy").to_numpy(), augmenter)
    assert sum(made.values()) == len(examples) - 5
