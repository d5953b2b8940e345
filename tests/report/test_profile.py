import json

import numpy as np
import pyarrow as pa
import pytest

from bertray.errors import DataError
from bertray.report.profile import EDGES, Profile, profile_of, script_of
from bertray.schema import Predictions, append_predictions


def scored(texts: list[str | None], values: list[list[float]], **options: object) -> pa.Table:
    status = tuple("null text" if text is None else "ok" for text in texts)
    probabilities = np.array(values, np.float32)
    probabilities[[text is None for text in texts]] = np.nan
    return append_predictions(
        pa.table({"text": pa.array(texts, pa.string())}),
        Predictions(probabilities, status),
        labels=["bad", "good"],
        **options,  # type: ignore[arg-type]
    )


def test_rows_are_counted_by_label_confidence_length_script_and_status() -> None:
    rows = scored(["good film", "плохой", None], [[0.1, 0.9], [0.6, 0.4], [0, 0]])
    found = profile_of(rows, task="single_label", text="text")
    assert found.num_rows == 3
    assert found.counts["status"] == {"ok": 2, "null text": 1}
    assert found.counts["label"] == {"good": 1, "bad": 1}
    assert found.counts["confidence"] == {"0.6": 1, "0.9": 1}
    assert found.counts["length"] == {"6": 1, "8": 1}
    assert found.counts["script"] == {"Latin": 1, "Cyrillic": 1}
    assert "unknown" not in found.counts


def test_shares_of_unknown_tokens_have_bins_of_their_own() -> None:
    rows = scored(["a", "b", "c"], [[1, 0]] * 3)
    shares = np.array([0.0, 0.001, 0.3])
    found = profile_of(rows, task="single_label", text="text", unknown_shares=lambda _: shares)
    assert found.counts["unknown"] == {"0": 1, "1e-09": 1, "0.2": 1}


def test_rows_of_several_labels_are_counted_by_the_set_and_the_least_sure_label() -> None:
    rows = scored(["a", "b", "c"], [[0.9, 0.8], [0.9, 0.3], [0.1, 0.0]], task="multi_label")
    found = profile_of(rows, task="multi_label")
    assert found.counts["label"] == {"bad + good": 1, "bad": 1, "(none)": 1}
    assert found.counts["confidence"] == {"0.7": 1, "0.8": 1, "0.9": 1}


def test_a_night_without_a_prediction_has_a_profile() -> None:
    rows = scored(["a", "b"], [[0.9, 0.8], [0.9, 0.3]], task="multi_label")
    none = rows.set_column(
        rows.schema.get_field_index("probabilities"),
        "probabilities",
        pa.nulls(2, pa.list_(pa.float32())),
    )
    found = profile_of(none, task="multi_label")
    assert not found.has_predictions


def test_scores_of_any_unit_and_sign_have_bins() -> None:
    rows = scored(["a"] * 4, [[1_234.0], [-3e9], [0.0], [2.5]], task="regression")
    found = profile_of(rows, task="regression").counts["score"]
    assert sum(found.values()) == 4
    edges = sorted(float(name) for name in found)
    assert edges[0] <= -3e9
    assert edges[1] == 0.0
    assert 2.3 < edges[2] <= 2.5
    assert 1_100 < edges[3] <= 1_234


def test_profiles_of_parts_add_up_to_that_of_the_whole() -> None:
    rows = scored(["one", "two three", None, "four"], [[0.2, 0.8]] * 4)
    whole = profile_of(rows, task="single_label", text="text")
    parts = [profile_of(part, task="single_label", text="text") for part in (rows[:1], rows[1:])]
    assert parts[0] + parts[1] == whole


def test_a_profile_survives_its_file_and_another_file_is_refused() -> None:
    found = Profile(3, {"label": {"a": 3}})
    assert Profile.from_json(json.loads(json.dumps(found.to_json())), where="x") == found
    for other in (None, {}, {**found.to_json(), "format_version": 99}):
        with pytest.raises(DataError, match=r"x: not a profile of this version"):
            Profile.from_json(other, where="x")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, world", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("你好世界", "Cjk"),
        ("مرحبا", "Arabic"),
        ("12:30 ... €", "(no letters)"),
        ("", "(no letters)"),
        ("ok, это по-русски", "Cyrillic"),
    ],
)
def test_a_texts_script_is_that_of_most_of_its_letters(text: str, script: str) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize("signal", EDGES)
def test_bins_are_in_order_and_have_names_of_their_own(signal: str) -> None:
    assert (np.diff(EDGES[signal]) > 0).all()
    names = [f"{edge:.7g}" for edge in EDGES[signal]]
    assert len(set(names)) == len(names)
