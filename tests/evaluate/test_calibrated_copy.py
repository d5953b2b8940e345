"""A copy of a model that is the same but for its probabilities."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from bertray import storage
from bertray.errors import ConfigError, OutputError
from bertray.evaluate.calibrated_copy import check_copy, with_calibration, write_copy
from bertray.model.bundle import Bundle, open_bundle
from bertray.model.engine import Engine
from bertray.model.manifest import read_manifest
from bertray.model.settings import resolve_settings
from bertray.schema import Calibration, Cutoff

TEMPERATURE = Calibration("temperature", (0.5,), (0.0,), 0.2, 0.1)
VECTOR = Calibration("vector", (0.5, 0.8, 1.1), (0.3, -0.3, 0.0), 0.2, 0.1)
CUTOFFS = (Cutoff(0.9, 0.75, 0.8, 0.93),)
TEXTS = ["good film", "awful plot", "not great", "very bad actor", "a story"]


@pytest.fixture(scope="module")
def bundle(classifier_folder: Path) -> Bundle:
    return open_bundle(str(classifier_folder))


def copied(bundle: Bundle, output: Path | str, calibration: Calibration = TEMPERATURE) -> Bundle:
    check_copy(bundle, str(output))
    digest = write_copy(with_calibration(bundle, calibration, CUTOFFS), str(output))
    found = open_bundle(str(output))
    assert found.digest == digest
    return found


def test_a_copy_is_the_same_model_with_a_calibration_and_has_a_digest_of_its_own(
    bundle: Bundle, tmp_path: Path
) -> None:
    copy = copied(bundle, tmp_path / "copy")
    assert copy.digest != bundle.digest
    same = {"labels", "task", "max_length", "thresholds", "head", "takes_pairs", "long_text"}
    for name in same:
        assert getattr(copy, name) == getattr(bundle, name)
    assert (copy.calibration, copy.cutoffs) == (TEMPERATURE, CUTOFFS)
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (bundle.folder, copy.folder)
    )
    assert all((one[name] == two[name]).all() for name in one)
    assert not list((tmp_path / "copy").glob("_*"))


def test_equal_calibrations_make_equal_copies_and_a_later_one_replaces_the_first(
    bundle: Bundle, tmp_path: Path
) -> None:
    first = copied(bundle, tmp_path / "copy")
    assert copied(bundle, tmp_path / "other").digest == first.digest
    assert copied(bundle, tmp_path / "copy", VECTOR).digest != first.digest
    manifest = read_manifest(str(tmp_path / "copy"))
    assert manifest is not None
    assert manifest.lineage["calibration.of"] == bundle.digest


def test_on_s3_a_copy_is_written_replaced_and_told_from_what_is_none(
    bundle: Bundle, s3: str
) -> None:
    first = copied(bundle, f"{s3}/copy")
    assert first.calibration == TEMPERATURE
    second = copied(bundle, f"{s3}/copy", VECTOR)
    assert second.calibration == VECTOR
    assert second.digest != first.digest
    assert not storage.exists(f"{s3}/copy/_copy.json")
    storage.put_bytes(f"{s3}/thesis/thesis.txt", b"mine")
    with pytest.raises(OutputError, match=r"calibration\.bundle=.*no bundle"):
        check_copy(bundle, f"{s3}/thesis")
    with pytest.raises(OutputError, match="holds another bundle"):
        check_copy(second, f"{s3}/copy")


def test_what_is_no_copy_of_the_model_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"calibration\.bundle=.*no bundle"):
        check_copy(bundle, str(tmp_path / "thesis"))
    copy = copied(bundle, tmp_path / "copy")
    with pytest.raises(OutputError, match="holds another bundle"):
        check_copy(copy, str(tmp_path / "copy"))
    with pytest.raises(ConfigError, match="gives numbers"):
        check_copy(replace(bundle, task="regression"), str(tmp_path / "new"))


def test_a_copy_that_was_cut_short_is_no_model_and_the_next_one_takes_its_place(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertray import storage

    def dies_at_the_weights(staged: Path, uri: str, **options: bool) -> bool:
        if uri.endswith(".safetensors"):
            raise KeyboardInterrupt
        return publish(staged, uri, **options)

    publish = storage.publish
    with monkeypatch.context() as patch:
        patch.setattr("bertray.model.publish.storage.publish", dies_at_the_weights)
        with pytest.raises(KeyboardInterrupt):
            copied(bundle, tmp_path / "copy")
    assert not (tmp_path / "copy/config.json").exists()
    assert copied(bundle, tmp_path / "copy").calibration == TEMPERATURE


@pytest.mark.parametrize("calibration", [TEMPERATURE, VECTOR])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_scoring_says_what_was_fitted(
    bundle: Bundle, tmp_path: Path, calibration: Calibration, backend: str
) -> None:
    copy = copied(bundle, tmp_path / "copy", calibration)
    settings = resolve_settings(bundle, device="cpu", backend=backend)
    plain = Engine(bundle, settings, num_threads=1).predict(TEXTS).probabilities.astype(float)
    odds = plain ** np.array(calibration.factors) * np.exp(calibration.offsets)
    expected = odds / odds.sum(axis=1, keepdims=True)
    engine = Engine(copy, settings, num_threads=1)
    np.testing.assert_allclose(engine.predict(TEXTS).probabilities, expected, atol=1e-6)
    raw = Engine(copy, replace(settings, calibrated=False), num_threads=1)
    np.testing.assert_allclose(raw.predict(TEXTS).probabilities, plain, atol=0)


def test_thresholds_of_independent_labels_go_with_the_probabilities(
    bundle: Bundle, tmp_path: Path
) -> None:
    several = replace(bundle, task="multi_label", thresholds=None)
    first = with_calibration(several, VECTOR, ())
    assert first.thresholds == pytest.approx(1 / (1 + np.exp([-0.3, 0.3, 0.0])))
    second = with_calibration(first, TEMPERATURE, ())
    assert second.thresholds == pytest.approx([0.5] * 3)
    write_copy(first, str(tmp_path / "copy"))
    stored = json.loads((tmp_path / "copy/bertray.json").read_text())
    assert stored["thresholds"] == list(first.thresholds or ())
