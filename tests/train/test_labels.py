"""What is wrong with labelled data is found before a cluster starts, and said in one message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.config import TrainData
from bertray.errors import BertrayError, DataError, SchemaError, StorageError
from bertray.schema import Scale, Task
from bertray.train.labels import PIECE_ROWS, Labelled, list_shards, locate, read_labels
from bertray.train.targets import hold_out

Write = Callable[..., Path]


def rows(labels: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    texts = [f"text {index}" for index in range(len(labels))]
    return pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(labels, kind)})


def read(
    train: Path, *, seed: int = 0, task: Task | Literal["auto"] = "auto", **settings: Any
) -> Labelled:
    data = TrainData(train=str(train), **settings)
    return read_labels(list_shards(data), data, seed=seed, task=task)


def test_string_labels_are_numbered_in_order(write_shards: Write) -> None:
    labelled = read(write_shards({"a": rows(["no", "yes"] * 4), "b": rows(["maybe"] * 4)}))
    assert labelled.labels == ("maybe", "no", "yes")
    assert labelled.targets.tolist() == [1, 2] * 4 + [0] * 4


def test_integer_labels_are_numbered_by_value(write_shards: Write) -> None:
    folder = write_shards({"a": rows([10, 9, 10, 9], pa.int32()), "b": rows([-1, -1], pa.int64())})
    labelled = read(folder)
    assert labelled.labels == ("-1", "9", "10")
    assert labelled.targets.tolist() == [2, 1, 2, 1, 0, 0]


def test_dictionary_and_boolean_labels_are_read(write_shards: Write) -> None:
    table = rows(["x", "y"] * 4)
    encoded = table.set_column(1, "label", table.column("label").dictionary_encode())
    assert read(write_shards({"a": encoded})).labels == ("x", "y")
    assert read(write_shards({"a": rows([True, False] * 4)})).labels == ("false", "true")


def test_the_split_is_stratified_seeded_and_takes_no_row_twice(write_shards: Write) -> None:
    folder = write_shards({"a": rows(["x"] * 150 + ["y"] * 50)})
    held = [read(folder, seed=seed, validation_fraction=0.2).is_validation for seed in (0, 0, 1)]
    assert held[0][:150].sum() == 30
    assert held[0][150:].sum() == 10
    assert (held[0] == held[1]).all()
    assert (held[0] != held[2]).any()


def test_the_only_row_of_a_label_stays_in_training(write_shards: Write) -> None:
    labelled = read(write_shards({"a": rows(["x"] * 10 + ["rare"] + ["y"] * 10)}))
    assert not labelled.is_validation[10]
    assert labelled.is_validation.sum() == 2


def test_validation_rows_follow_the_training_rows(write_shards: Write) -> None:
    train = write_shards({"a": rows(["x", "y"])})
    validation = write_shards({"v": rows(["y", "x", "x"])}, folder="val")
    labelled = read(train, validation=str(validation))
    assert labelled.targets.tolist() == [0, 1, 1, 0, 0]
    assert labelled.is_validation.tolist() == [False, False, True, True, True]


def test_pieces_hold_each_row_once_and_rows_can_be_found(write_shards: Write) -> None:
    shards = {"a": rows(["x", "y"] * 8), "b": rows([], pa.string())}
    shards["c"] = rows(["y"] * PIECE_ROWS * 2)
    folder = write_shards(shards, row_group_size=10_000)
    labelled = read(folder)
    assert [piece.first_row for piece in labelled.pieces] == [0, 16, 10_016, 20_016]
    assert locate(3, labelled.pieces) == f"{folder}/a.parquet row 3"
    assert locate(16, labelled.pieces) == f"{folder}/c.parquet row 0"
    assert locate(25_016, labelled.pieces) == f"{folder}/c.parquet row 25000"


def test_the_digest_follows_the_content_not_the_place(write_shards: Write) -> None:
    folder = write_shards({"a": rows(["x", "y"])})
    before = list_shards(TrainData(train=str(folder))).digest
    moved = folder.rename(folder.with_name("moved"))
    assert list_shards(TrainData(train=str(moved))).digest == before
    write_shards({"a": rows(["x", "y", "y"])}, folder="moved")
    assert list_shards(TrainData(train=str(moved))).digest != before


LATIN_1 = pa.array([b"x", b"caf\xe9", b"y"])
BROKEN = pa.Array.from_buffers(pa.string(), 3, LATIN_1.buffers())


def column(kind: pa.DataType, values: list[Any]) -> pa.Table:
    return pa.table({"text": ["t"] * len(values), "label": pa.array(values, kind)})


def broken(kind: pa.DataType) -> pa.Table:
    return pa.table({"text": ["t"] * 3, "label": BROKEN.cast(kind)})


NUMBERS = pa.table({"text": [1, 2], "label": ["x", "y"]})
BAD = {
    "no such column": (rows(["x", "y"]).rename_columns(["text", "y"]), SchemaError, "data.label"),
    "no text column": (rows(["x", "y"]).rename_columns(["t", "label"]), SchemaError, "data.text"),
    "text not string": (NUMBERS, SchemaError, "data.text"),
    "float labels": (column(pa.float64(), [0.0, 1.0]), SchemaError, "data.label"),
    "null labels": (rows(["x", None, "y", None]), DataError, "in 2 of 4 rows.*data.label"),
    "blank labels": (rows(["x", " ", "y"]), DataError, "in 1 of 3 rows.*data.label"),
    "broken labels": (broken(pa.string()), DataError, "not valid UTF-8 in 1 of 3 rows"),
    "broken in large": (broken(pa.large_string()), DataError, "UTF-8 in 1 of 3 rows"),
    "one label": (rows(["x"] * 9), DataError, "only the label 'x'.*data.label"),
    "no rows": (rows([], pa.string()), DataError, "no rows"),
    "too few rows": (rows(["x", "y"]), DataError, "data.validation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_columns_are_named_with_the_key_to_change(write_shards: Write, case: str) -> None:
    table, kind, message = BAD[case]
    with pytest.raises(kind, match=f"(?s){message}") as caught:
        read(write_shards({"a": table}))
    assert caught.value.exit_code == 2


def test_the_shard_with_null_labels_is_named(write_shards: Write) -> None:
    folder = write_shards({"a": rows(["x", "y"]), "b": rows(["x", None])})
    with pytest.raises(
        DataError, match=r"b\.parquet: column 'label' is null, blank or not valid UTF-8 in 1 of 2"
    ):
        read(folder)


def test_labels_of_two_kinds_are_refused_naming_both_shards(write_shards: Write) -> None:
    folder = write_shards({"a": rows(["x", "y"]), "b": rows([1, 2])})
    with pytest.raises(SchemaError, match=r"string in .*a\.parquet, int64 in .*b\.parquet"):
        read(folder)


def test_validation_labels_that_training_lacks_are_named(write_shards: Write) -> None:
    train = write_shards({"a": rows(["x", "y"])})
    validation = write_shards({"v": rows(["x", "z"])}, folder="val")
    with pytest.raises(DataError, match=r"data\.validation=.*'z'"):
        read(train, validation=str(validation))


def test_a_shard_to_train_and_to_validate_on_is_refused(write_shards: Write) -> None:
    train = write_shards({"a": rows(["x", "y"]), "b": rows(["x", "y"])})
    for validation in (train, train / "[b-z]*.parquet"):
        with pytest.raises(DataError, match=r"data\.validation=.*\.parquet is in data\.train="):
            read(train, validation=str(validation))


def test_an_empty_validation_set_is_refused(write_shards: Write) -> None:
    train = write_shards({"a": rows(["x", "y"])})
    validation = write_shards({"v": rows([], pa.string())}, folder="val")
    with pytest.raises(DataError, match=r"data\.validation=.*no rows"):
        read(train, validation=str(validation))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_place_without_shards_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((StorageError, DataError), match=name) as caught:
        read(tmp_path / name)
    assert isinstance(caught.value, BertrayError)


@pytest.mark.parametrize("content", [b"", b"PAR1 cut short"])
def test_a_broken_shard_stops_training_and_is_named(write_shards: Write, content: bytes) -> None:
    folder = write_shards({"a": rows(["x", "y"] * 5)})
    (folder / "broken.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read"):
        read(folder)


def test_the_order_of_rows_does_not_depend_on_threads(write_shards: Write) -> None:
    folder = write_shards({f"p{index:02d}": rows([index, -index] * 3) for index in range(1, 30)})
    first, second = (read(folder).targets for _ in range(2))
    np.testing.assert_array_equal(first, second)


@given(
    counts=st.lists(st.integers(0, 12), min_size=2, max_size=8),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_a_label_of_two_rows_is_trained_and_validated_on(
    counts: list[int], share: float, seed: int
) -> None:
    label_ids = np.repeat(np.arange(len(counts)), counts)
    data = TrainData(train="t", validation_fraction=share)
    try:
        held = hold_out(label_ids, data, task="single_label", seed=seed)
    except DataError:
        return
    assert (held == hold_out(label_ids, data, task="single_label", seed=seed)).all()
    several = [label for label, count in enumerate(counts) if count > 1]
    rows = [held[label_ids == label] for label in several]
    assert all(0 < one.sum() < len(one) for one in rows)
    assert held.sum() == max(round(share * sum(map(len, rows))), len(several))


def test_rare_labels_are_held_out_at_the_cost_of_common_ones(write_shards: Write) -> None:
    labels = ["x"] * 500 + ["y"] * 500 + [f"rare {number}" for number in range(50)] * 2
    held = read(write_shards({"a": rows(labels)})).is_validation
    assert held[1000:1050].sum() + held[1050:].sum() == 50
    assert (held[1000:1050] != held[1050:]).all()
    assert held.sum() == 110
    assert abs(int(held[:500].sum()) - 30) <= 8


TAGS = [["b", "a"], [], ["a"], ["a", "a"]] * 5


def test_lists_of_labels_become_a_matrix_and_an_empty_list_is_a_row(write_shards: Write) -> None:
    labelled = read(write_shards({"a": rows(TAGS), "b": rows([[], []])}))
    assert (labelled.task, labelled.labels) == ("multi_label", ("a", "b"))
    assert labelled.targets.dtype == bool
    expected = [[True, True], [False, False], [True, False], [True, False]] * 5
    assert labelled.targets.tolist() == expected + [[False, False]] * 2


def test_a_shard_whose_lists_are_all_empty_stands_beside_any(write_shards: Write) -> None:
    empty = rows([[], []], pa.list_(pa.null()))
    labelled = read(write_shards({"a": empty, "b": rows([[7], [7, 9], [9], []] * 4)}))
    assert labelled.labels == ("7", "9")
    assert labelled.targets[:3].tolist() == [[False, False], [False, False], [True, False]]


@pytest.mark.parametrize("of", [pa.list_, pa.large_list, pa.list_view])
def test_integers_and_dictionaries_in_lists_are_read(write_shards: Write, of: Any) -> None:
    numbers = read(write_shards({"a": rows([[10, 9], [9], [-1], []] * 4, of(pa.int16()))}))
    assert numbers.labels == ("-1", "9", "10")
    items = pa.array(["y", "x", "y", "x"]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 4, 4]), items)
    table = pa.table({"text": list("abcd"), "label": lists})
    assert read(write_shards({"a": table})).labels == ("x", "y")


def test_a_share_of_each_label_and_of_the_rows_without_any_is_held_out(write_shards: Write) -> None:
    lists = [["x"]] * 100 + [["x", "y"]] * 50 + [["y", "rare"]] * 10 + [["one"]] + [[]] * 50
    folder = write_shards({"a": rows(lists)})
    held, again, other = (
        read(folder, seed=seed, validation_fraction=0.2).is_validation for seed in (0, 0, 1)
    )
    assert (held == again).all()
    assert (held != other).any()
    kinds = [slice(0, 150), slice(100, 160), slice(150, 160), slice(160, 161), slice(161, 211)]
    assert [int(held[kind].sum()) for kind in kinds] == [30, 12, 2, 0, 10]


@given(
    lists=st.lists(st.sets(st.sampled_from("abcde")), min_size=2, max_size=12),
    share=st.floats(0.05, 0.95),
)
def test_every_label_keeps_a_row_in_training(lists: list[set[str]], share: float) -> None:
    has_label = np.array([[letter in labels for letter in "abcde"] for labels in lists])
    data = TrainData(train="t", validation_fraction=share)
    try:
        held = hold_out(has_label, data, task="multi_label", seed=0)
    except DataError:
        return
    assert held.any()
    assert (has_label[~held].any(axis=0) == has_label.any(axis=0)).all()


BAD_LISTS = {
    "null lists": (rows([["x"], None]), DataError, "null, blank or .* in 1 of 2"),
    "null and blank items": (rows([["x", None, None], [" "], ["x"]]), DataError, "in 2 of 3 rows"),
    "broken items": (
        pa.table({"text": ["a", "b"], "label": pa.ListArray.from_arrays([0, 1, 3], BROKEN)}),
        DataError,
        "not valid UTF-8 in 1 of 2 rows",
    ),
    "no label": (
        rows([[], []], pa.list_(pa.string())),
        DataError,
        "no label in any row.*one label",
    ),
    "no rows": (rows([], pa.list_(pa.string())), DataError, "no rows"),
    "fractions": (rows([[0.5]]), SchemaError, "expected lists of strings or integers"),
    "too few rows": (rows([["x"], ["y"]]), DataError, "data.validation"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists_are_named_with_the_key_to_change(write_shards: Write, case: str) -> None:
    table, kind, message = BAD_LISTS[case]
    with pytest.raises(kind, match=f"(?s){message}"):
        read(write_shards({"a": table}))


def test_a_task_that_the_column_is_not_for_is_refused(write_shards: Write) -> None:
    folder = write_shards({"a": rows(["x", "y"])})
    with pytest.raises(SchemaError, match="expected lists of strings"):
        read(folder, task="multi_label")
    with pytest.raises(SchemaError, match="expected a number"):
        read(folder, task="regression")


@pytest.mark.parametrize("kind", [pa.float32(), pa.int16(), pa.decimal128(9, 2)])
def test_numbers_are_learnt_as_such_when_asked_for(write_shards: Write, kind: pa.DataType) -> None:
    folder = write_shards({"a": rows([1, 2, 3, 6] * 5, kind), "b": rows([9], kind)})
    labelled = read(folder, task="regression", validation_fraction=0.2)
    assert (labelled.task, labelled.labels) == ("regression", ("label",))
    assert labelled.targets.dtype == np.float64
    assert labelled.targets.tolist() == [1, 2, 3, 6] * 5 + [9]
    assert labelled.is_validation.sum() == 4
    trained = labelled.targets[~labelled.is_validation]
    assert labelled.scale == Scale(trained.mean(), trained.std())
    again, other = (read(folder, task="regression", seed=seed) for seed in (0, 1))
    assert (again.is_validation == read(folder, task="regression").is_validation).all()
    assert (again.is_validation != other.is_validation).any()


BAD_NUMBERS = {
    "missing numbers": (rows([1.0, None, float("nan"), float("inf")]), "not finite in 3 of 4"),
    "equal numbers": (rows([0.1] * 9), "from 0.1 to 0.1 .* expected numbers that differ"),
    "huge numbers": (rows([1e308, -1e308] * 9), "from -1e.308 to 1e.308 .* squares are finite"),
    "too few numbers": (rows([2.0]), "too few to hold out"),
    "no numbers": (rows([], pa.float64()), "data.train=.*no rows"),
}


@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_numbers_that_cannot_be_learnt_are_named(write_shards: Write, case: str) -> None:
    table, message = BAD_NUMBERS[case]
    with pytest.raises(DataError, match=message):
        read(write_shards({"a": table}), task="regression")
