"""Blocks become flat numbers, whatever their columns are and in whatever order labels come."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bertray.errors import DataError, SchemaError
from bertray.evaluate.rows import (
    PREFIX,
    LabelledRows,
    check_slices,
    join_rows,
    label_ids,
    take_rows,
)
from bertray.model.bundle import Bundle, open_bundle
from bertray.schema import OK, Predictions, append_predictions


@pytest.fixture
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))  # labels: bad, so-so, good


def joined(
    bundle: Bundle,
    *tables: pa.Table,
    slices: tuple[str, ...] = (),
    takes_unknown: bool = False,
) -> LabelledRows:
    parts = []
    for number, table in enumerate(tables):
        p = np.full((table.num_rows, len(bundle.labels)), 0.1 * (number + 1), np.float32)
        block = append_predictions(
            table,
            Predictions(p, (OK,) * table.num_rows),
            labels=bundle.labels,
            task=bundle.task,
            prefix=PREFIX,
        )
        parts.append(take_rows(block, bundle, label="label", slices=slices))
    return join_rows(parts, bundle, takes_unknown=takes_unknown)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (pa.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b"), [1, 0]),
        (pa.array([7, 3]), ("3", "7"), [1, 0]),
        (pa.array([1, 0]), ("LABEL_0", "LABEL_1"), [1, 0]),
        (pa.array([True, False]), ("false", "true"), [1, 0]),
    ],
)
def test_true_labels_are_found_by_name_and_integers_else_by_id(
    bundle: Bundle, labels: pa.Array, names: tuple[str, ...], expected: list[int]
) -> None:
    assert label_ids(pa.chunked_array([labels]), names).tolist() == expected
    rows = joined(replace(bundle, labels=names), pa.table({"label": labels}))
    assert rows.targets.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["a", "x"], ("a", "b")), ([0, 2], ("LABEL_0", "LABEL_1")), ([3, 9], ("3", "7"))],
)
def test_a_label_that_the_model_does_not_know_is_named(
    labels: list[object], names: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match=rf"does not know, such as '{labels[1]}'; it knows"):
        label_ids(pa.chunked_array([pa.array(labels)]), names)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["z", "b", "x", "z", "a"], ("a", "b"), [2, 1, 3, 2, 0]),
        ([2, 0, 7, 1], ("LABEL_0", "LABEL_1"), [2, 0, 3, 1]),
    ],
)
def test_labels_that_a_champion_does_not_know_are_labels_that_it_never_gives(
    bundle: Bundle, labels: list[object], names: tuple[str, ...], expected: list[int]
) -> None:
    champion = replace(bundle, labels=names)
    rows = joined(champion, pa.table({"label": labels}), takes_unknown=True)
    assert rows.targets.tolist() == expected
    assert rows.predictions.shape == (len(labels), 4)
    assert not rows.predictions[:, 2:].any()
    several = replace(champion, task="multi_label")
    lists = pa.table({"label": [[label] for label in labels]})
    rows = joined(several, lists, takes_unknown=True)
    assert rows.targets.argmax(axis=1).tolist() == expected
    assert rows.targets.shape == rows.predictions.shape


def test_whether_integers_are_names_is_decided_for_all_shards_together(bundle: Bundle) -> None:
    named = replace(bundle, labels=("1", "2"))
    first, second = pa.table({"label": [1, 2]}), pa.table({"label": pa.array([0], pa.int8())})
    assert joined(named, second).targets.tolist() == [0]
    with pytest.raises(DataError, match="does not know, such as '0'"):
        joined(named, first, second)


def test_labels_of_rows_that_have_several_are_put_together_across_shards(bundle: Bundle) -> None:
    several = replace(bundle, task="multi_label")
    rows = joined(
        several,
        pa.table({"label": [["good"], []]}),
        pa.table({"label": pa.array([[], None], pa.list_(pa.null()))}),
        pa.table({"label": [["bad", "good", "bad"]]}),
    )
    assert rows.targets.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert (rows.num_rows, rows.left_out) == (5, {"null label": 1})
    assert rows.predictions[:, 0] == pytest.approx([0.1, 0.1, 0.2, 0.3])
    with pytest.raises(DataError, match="a list holds a null"):
        joined(several, pa.table({"label": [["good", None]]}))


def test_values_of_slices_are_text_whatever_their_type_in_a_shard(bundle: Bundle) -> None:
    one = pa.table({"label": ["bad", "good"], "year": pa.array([2024, None], pa.int16())})
    two = pa.table({"label": ["so-so", None], "year": ["2024", "2025"]})
    rows = joined(bundle, one, two, slices=("year",))
    assert rows.slices["year"].to_pylist() == ["2024", None, "2024"]
    assert rows.targets.tolist() == [0, 2, 1]


def test_a_million_rows_take_what_the_module_says(bundle: Bundle) -> None:
    count = 10_000
    table = pa.table({"label": ["good"] * count, "source": ["web", "app"] * (count // 2)})
    rows = joined(bundle, table, table, slices=("source",))
    codes = rows.slices["source"].indices
    taken = rows.predictions.nbytes + rows.targets.nbytes + codes.nbytes
    assert taken == 2 * count * (4 * len(bundle.labels) + 4 + 4)


def test_columns_that_hold_no_single_values_are_refused() -> None:
    schema = pa.schema([("tags", pa.list_(pa.string())), ("blob", pa.binary()), ("n", pa.int8())])
    check_slices(schema, ["n"], where="s")
    for column in ("tags", "blob"):
        with pytest.raises(SchemaError, match=rf"'{column}' is .* out of data\.slices"):
            check_slices(schema, [column], where="s")
    with pytest.raises(SchemaError, match=r"no column 'lang'.*set data\.slices"):
        check_slices(schema, ["lang"], where="s")


def test_no_row_with_a_text_and_a_label_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no row there has both"):
        joined(bundle, pa.table({"label": pa.array([None], pa.string())}))
