import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.errors import SchemaError
from bertray.schema import (
    ABSTAINED,
    OK,
    Predictions,
    append_predictions,
    check_label_column,
    check_no_clash,
    check_text_column,
    scored_column_names,
    to_matrix,
)

LABELS = ("no", "maybe", "yes")


def predictions(rows: list[list[float] | None]) -> Predictions:
    values = [[float("nan")] * 3 if row is None else row for row in rows]
    status = tuple("null text" if row is None else OK for row in rows)
    return Predictions(np.array(values, np.float32).reshape(len(rows), 3), status)


def test_the_scored_columns_have_the_promised_names_types_and_values() -> None:
    table = pa.table({"id": [1, 2, 3]})
    scored = append_predictions(
        table, predictions([[0.2, 0.7, 0.1], None, [0.1, 0.2, 0.7]]), labels=LABELS
    )
    assert scored.schema.names == ["id", *scored_column_names("")]
    assert scored.schema.field("predicted_label").type == pa.string()
    assert scored.schema.field("predicted_probability").type == pa.float32()
    assert scored.schema.field("probabilities").type == pa.list_(pa.float32())
    assert scored.schema.field("prediction_status").type == pa.string()
    assert scored["predicted_label"].to_pylist() == ["maybe", None, "yes"]
    near = pytest.approx(0.7)
    assert scored["predicted_probability"].to_pylist() == [near, None, near]
    assert scored["probabilities"].to_pylist()[1] is None
    assert scored["probabilities"].to_pylist()[2] == pytest.approx([0.1, 0.2, 0.7])
    assert scored["prediction_status"].to_pylist() == [OK, "null text", OK]


def test_a_row_that_is_not_sure_enough_keeps_its_probabilities_and_has_no_label() -> None:
    rows = [[0.2, 0.7, 0.1], None, [0.2, 0.2, 0.6], [0.1, 0.2, 0.7]]
    scored = append_predictions(
        pa.table({"id": range(4)}), predictions(rows), labels=LABELS, abstain_below=0.65
    )
    assert scored["predicted_label"].to_pylist() == ["maybe", None, None, "yes"]
    assert scored["prediction_status"].to_pylist() == [OK, "null text", ABSTAINED, OK]
    assert scored["predicted_probability"].to_pylist()[2] == pytest.approx(0.6)
    assert scored["probabilities"].to_pylist()[2] == pytest.approx([0.2, 0.2, 0.6])
    assert (
        scored.schema
        == append_predictions(pa.table({"id": range(4)}), predictions(rows), labels=LABELS).schema
    )


def test_a_probability_of_just_the_threshold_is_enough() -> None:
    row = predictions([[0.7, 0.2, 0.1]])
    threshold = float(row.probabilities[0, 0])
    for below, expected in ((threshold, OK), (np.nextafter(threshold, 1), ABSTAINED), (0.0, OK)):
        scored = append_predictions(
            pa.table({"id": [1]}), row, labels=LABELS, abstain_below=float(below)
        )
        assert scored["prediction_status"].to_pylist() == [expected]


def test_no_rows_give_no_rows_with_all_columns() -> None:
    scored = append_predictions(
        pa.table({"id": pa.array([], pa.int8())}), predictions([]), labels=LABELS, prefix="p_"
    )
    assert scored.num_rows == 0
    assert scored.schema.names == ["id", *scored_column_names("p_")]


@given(st.lists(st.none() | st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)))
def test_every_row_in_is_a_row_out_and_the_label_is_the_most_probable(
    rows: list[list[float] | None],
) -> None:
    scored = append_predictions(
        pa.table({"id": range(len(rows))}), predictions(rows), labels=LABELS
    ).to_pylist()
    assert [row["id"] for row in scored] == list(range(len(rows)))
    for row, given_row in zip(scored, rows, strict=True):
        if given_row is None:
            assert row["predicted_label"] is None
        else:
            assert row["predicted_probability"] == max(row["probabilities"])
            best = row["probabilities"].index(row["predicted_probability"])
            assert row["predicted_label"] == LABELS[best]


def test_independent_labels_are_listed_where_they_reach_their_thresholds() -> None:
    rows = [[0.2, 0.7, 0.9], None, [0.1, 0.3, 0.6], [0.5, 0.5, 0.5]]
    scored = append_predictions(
        pa.table({"id": range(4)}),
        predictions(rows),
        labels=LABELS,
        task="multi_label",
        thresholds=[0.2, 0.4, 0.6000001],
    )
    assert scored.schema.names == ["id", *scored_column_names("", "multi_label")]
    assert scored.schema.field("predicted_labels").type == pa.list_(pa.string())
    assert scored["predicted_labels"].to_pylist() == [
        ["no", "maybe", "yes"],
        None,
        [],
        ["no", "maybe"],
    ]
    assert scored["probabilities"].to_pylist()[1] is None
    assert scored["probabilities"].to_pylist()[3] == [0.5, 0.5, 0.5]
    assert scored["prediction_status"].to_pylist() == [OK, "null text", OK, OK]


@pytest.mark.parametrize("num_rows", [0, 2])
def test_without_thresholds_one_half_decides_and_no_rows_have_all_columns(num_rows: int) -> None:
    scored = append_predictions(
        pa.table({"id": range(num_rows)}),
        predictions([[0.49, 0.5, 1.0]] * num_rows),
        labels=LABELS,
        task="multi_label",
    )
    assert scored["predicted_labels"].to_pylist() == [["maybe", "yes"]] * num_rows
    assert scored.schema.field("predicted_labels").type == pa.list_(pa.string())
    assert scored.schema.field("probabilities").type == pa.list_(pa.float32())


def test_lists_of_ids_become_a_matrix_and_repeats_count_once() -> None:
    matrix = to_matrix(np.array([2, 0, 0, 1]), np.array([1, 0, 3]), num_labels=3)
    assert matrix.tolist() == [[False, False, True], [False] * 3, [True, True, False]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.null(),
    ],
)
def test_every_arrow_string_type_is_text_and_so_are_nulls_alone(kind: pa.DataType) -> None:
    check_text_column(pa.schema([("t", kind)]), "t", where="s", key="input.text")


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.list_(pa.string())])
def test_what_is_not_text_is_refused_with_its_type_and_the_key(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match=r"part\.parquet: column 't' is .* set input\.text"):
        check_text_column(pa.schema([("t", kind)]), "t", where="part.parquet", key="input.text")


def test_a_missing_column_is_refused_with_those_that_are_there() -> None:
    schema = pa.schema([("id", pa.int8()), ("body", pa.string())])
    with pytest.raises(SchemaError, match=r"no column 'text' \(columns: id, body\)"):
        check_text_column(schema, "text", where="part.parquet", key="input.text")


def test_doubled_and_clashing_columns_are_refused() -> None:
    doubled = pa.schema([("t", pa.string()), ("t", pa.string())])
    with pytest.raises(SchemaError, match="2 times"):
        check_text_column(doubled, "t", where="s", key="input.text")
    with pytest.raises(SchemaError, match="twice: t"):
        check_no_clash(doubled, ["t"], where="s", prefix="")
    taken = pa.schema([("t", pa.string()), ("predicted_label", pa.string())])
    with pytest.raises(SchemaError, match=r"overwrite predicted_label; set output\.prefix"):
        check_no_clash(taken, taken.names, where="s", prefix="")
    check_no_clash(taken, taken.names, where="s", prefix="new_")
    check_no_clash(taken, ["t"], where="s", prefix="")


def test_a_label_column_of_fractions_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"column 'y' is double.*set data\.label"):
        check_label_column(pa.schema([("y", pa.float64())]), "y", where="s", key="data.label")


STRINGS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.int32()]
LISTS = [pa.list_, pa.large_list, pa.list_view, lambda items: pa.list_(items, 2)]


@pytest.mark.parametrize("kind", [of(items) for items in STRINGS for of in LISTS])
def test_lists_of_any_kind_are_labels_where_rows_have_several(kind: pa.DataType) -> None:
    schema = pa.schema([("y", kind)])
    check_label_column(schema, "y", where="s", key="data.label", task="multi_label")
    with pytest.raises(SchemaError, match=r"expected string, integer or boolean"):
        check_label_column(schema, "y", where="s", key="data.label")


def test_label_ids_that_gaps_have_made_floats_are_told_how_to_become_labels() -> None:
    schema = pa.schema([("y", pa.float64())])
    with pytest.raises(SchemaError, match=r"'y' is double, .*, or cast it to int64"):
        check_label_column(schema, "y", where="s", key="data.label")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.float32()), pa.list_(pa.list_(pa.string()))]
)
def test_what_is_no_list_of_labels_is_refused_where_rows_have_several(kind: pa.DataType) -> None:
    schema = pa.schema([("y", kind)])
    with pytest.raises(
        SchemaError, match=r"expected lists of strings or integers; set data\.label"
    ):
        check_label_column(schema, "y", where="s", key="data.label", task="multi_label")


def test_only_the_names_of_the_tasks_own_columns_are_taken() -> None:
    schema = pa.schema([("predicted_label", pa.string()), ("predicted_labels", pa.string())])
    with pytest.raises(SchemaError, match=r"overwrite predicted_labels; set output\.prefix"):
        check_no_clash(schema, schema.names, where="s", prefix="", task="multi_label")
    with pytest.raises(SchemaError, match=r"overwrite predicted_label; set output\.prefix"):
        check_no_clash(schema, schema.names, where="s", prefix="")


def test_scores_are_one_column_and_what_is_missing_is_null() -> None:
    scores = Predictions(np.array([[3.5], [np.nan]], np.float32), (OK, "null text"))
    scored = append_predictions(
        pa.table({"id": [1, 2]}), scores, labels=("stars",), task="regression", prefix="p_"
    )
    assert scored.schema.names == ["id", "p_predicted_score", "p_prediction_status"]
    assert scored.schema.field("p_predicted_score").type == pa.float32()
    assert scored["p_predicted_score"].to_pylist() == [3.5, None]


@pytest.mark.parametrize("kind", [pa.int8(), pa.float16(), pa.float64(), pa.decimal128(5, 2)])
def test_every_arrow_number_can_be_learnt_and_nothing_else(kind: pa.DataType) -> None:
    numbers = pa.schema([("y", kind)])
    check_label_column(numbers, "y", where="s", key="data.label", task="regression")
    for other in (pa.string(), pa.bool_(), pa.list_(kind)):
        with pytest.raises(SchemaError, match=r"expected a number; set data\.label"):
            check_label_column(
                pa.schema([("y", other)]), "y", where="s", key="data.label", task="regression"
            )
