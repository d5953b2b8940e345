from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from bertray.config import ScoreConfig, load_config
from bertray.console.doctor import show_findings
from bertray.doctor import PACKAGES, Finding, examine

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def findings(model: object, source: object) -> dict[str, Finding]:
    words = [f"model.path={model}", f"input.path={source}", "output.path=unused"]
    found = examine(load_config(ScoreConfig, None, words))
    return {finding.what: finding for finding in found}


def test_versions_devices_and_cluster_are_looked_at() -> None:
    found = {finding.what: finding for finding in examine(None)}
    assert set(PACKAGES) <= set(found)
    assert "1 nodes, 2 CPUs, 0 GPUs" in found["Ray cluster"].found
    assert "CPU cores" in found["GPUs on this machine"].found
    assert all(finding.ok for finding in found.values())


def test_a_model_and_an_input_that_are_fit_are_described(
    classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({"a": pa.table({"text": ["x", "y"]}), "b": pa.table({"body": ["z"]})})
    found = findings(classifier_folder, source)
    assert "single_label, 3 labels, max_length 64" in found["model"].found
    assert "2 rows in 1 splits" in found["input"].found
    assert "1 shards will be quarantined; b.parquet: " in found["input"].advice


def test_each_thing_that_is_unfit_is_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(tmp_path / "no-model", tmp_path / "no-input")
    assert not found["model"].ok
    assert not found["input"].ok
    assert not show_findings(found.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert "!! model: cannot be used" in printed
    assert "no such file or folder" in printed
