"""What `bertray status` and `--dry-run` say, and that the run then does it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray import cli

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def texts(count: int) -> pa.Table:
    return pa.table({"text": [f"good film {number}" for number in range(count)]})


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_status_and_dry_run_say_what_a_run_then_does(
    tmp_path: Path,
    classifier_folder: Path,
    write_shards: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def said() -> str:
        return " ".join(capsys.readouterr().out.split())

    shards = {"changes": texts(3), "goes": texts(4), "stays": texts(5)}
    source, out = write_shards(shards), tmp_path / "out"
    words = [f"model.path={classifier_folder}", f"input.path={source}", f"output.path={out}"]
    words.append("pool.max_actors=1")
    assert cli.main(["score", *words, "--dry-run"]) == 0
    assert "score 12 rows in 3 splits, about" in said()
    assert not out.exists()

    assert cli.main(["score", *words]) == 0
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == 0
    assert "a run would do nothing: all is done" in said()

    write_shards({"changes": texts(7), "comes": texts(2)})
    (source / "goes.parquet").unlink()
    (source / "broken.parquet").write_bytes(b"PAR1 is no shard")
    before = stamps(tmp_path)
    for command in (["status", str(out)], ["score", *words, "--dry-run"]):
        assert cli.main(command) == 0
        text = said()
        assert "done 5 of 14 rows" in text
        assert "1 of 3 splits" in text
        assert "a run would score 9 rows in 2 splits" in text
        assert "quarantined: broken.parquet: " in text
        assert "changes.parquet: its shard has changed" in text
        assert "goes.parquet: its shard is gone; output.prune=true removes it" in text
    assert stamps(tmp_path) == before

    kept = (out / "stays.parquet").stat().st_mtime_ns
    assert cli.main(["score", *words]) == cli.QUARANTINED
    assert pq.read_metadata(out / "changes.parquet").num_rows == 7
    assert pq.read_metadata(out / "goes.parquet").num_rows == 4
    assert (out / "stays.parquet").stat().st_mtime_ns == kept
    assert json.loads((out / "_manifest.json").read_text())["vanished"] == ["goes.parquet"]

    (source / "broken.parquet").unlink()
    capsys.readouterr()
    assert cli.main(["score", *words, "output.prune=true"]) == 0
    assert not (out / "goes.parquet").exists()
    assert cli.main(["status", str(out)]) == 0
    assert "a run would do nothing: all is done" in said()


def test_another_models_output_is_kept_until_it_is_to_be_replaced(
    tmp_path: Path,
    classifier_folder: Path,
    write_shards: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = write_shards({"a": texts(3)}), tmp_path / "out"
    words = [f"model.path={classifier_folder}", f"input.path={source}", f"output.path={out}"]
    words.append("pool.max_actors=1")
    assert cli.main(["score", *words]) == 0
    before = (out / "a.parquet").read_bytes()
    other = [*words, "model.max_length=4"]
    assert cli.main(["score", *other]) == 2
    assert "model.max_length: None there, 4 here" in " ".join(capsys.readouterr().err.split())
    assert (out / "a.parquet").read_bytes() == before
    assert cli.main(["score", *other, "output.replace=true"]) == 0
    after = (out / "a.parquet").read_bytes()
    assert after != before
    assert cli.main(["score", *other, "output.replace=true"]) == 0  # it is ours: nothing to do
    assert (out / "a.parquet").read_bytes() == after
    assert (out / "_SUCCESS").exists()


def test_status_of_a_folder_without_a_run_is_a_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "not an output folder of bertray score" in capsys.readouterr().err
