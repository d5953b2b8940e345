"""Workers that die, disks that fill: the output is right, or a rerun makes it so."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from scoring import command, contents, texts

from bertray import cli
from bertray.score.classifier import Classifier
from bertray.score.commits import Receipt
from bertray.score.plan import Split
from bertray.score.sink import ShardSink

Write = Callable[..., Path]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("ray_cluster"),
]

# The workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def die_once(text: str) -> None:
    """Be killed if the text names a file that is not there yet."""
    path = Path(text.partition(":")[2])
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Classifier):
    """A real classifier that some texts kill, as a crash in a library would."""

    def _classify(self, block: pa.Table, split: Split) -> pa.Table:
        for text in block["text"].to_pylist():
            if text.startswith("classify once:"):
                die_once(text)
            if text == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._classify(block, split)


class MortalSink(ShardSink):
    """A real sink whose process dies before it puts some file for the first time."""

    def write(self, block: pa.Table, split: Split) -> Receipt:
        for text in block["text"].to_pylist():
            if text.startswith("write once:"):
                die_once(text)
        return ShardSink.write(self, block, split)


def manifest(out: Path) -> dict[str, list[dict[str, str]]]:
    return dict(json.loads((out / "_manifest.json").read_text()))


def test_workers_killed_once_change_nothing_and_a_row_that_always_kills_ends_quarantined(
    tmp_path: Path, classifier_folder: Path, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_shards(
        {
            "a": texts("a"),
            "b-classify": texts("b", f"classify once:{tmp_path}/1"),
            "c-deadly": texts("c", "deadly"),
            "d-write": texts("d", f"write once:{tmp_path}/2"),
            "e": texts("e"),
        }
    )
    clean, out = tmp_path / "clean", tmp_path / "out"
    assert cli.main(command(classifier_folder, source, clean)) == 0
    assert not (tmp_path / "1").exists()
    monkeypatch.setattr("bertray.score.pipeline.Classifier", Mortal)
    monkeypatch.setattr("bertray.score.run.ShardSink", MortalSink)
    assert cli.main(command(classifier_folder, source, out)) == cli.QUARANTINED
    assert (tmp_path / "1").exists()
    assert (tmp_path / "2").exists()
    (bad,) = manifest(out)["quarantined"]
    assert bad["shard"] == "c-deadly.parquet"
    assert "died more than 3 times while classifying" in bad["reason"]
    expected = contents(clean)
    del expected["c-deadly.parquet"]
    assert contents(out) == expected
    monkeypatch.undo()
    assert cli.main(command(classifier_folder, source, out)) == 0
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a disk that is small enough to fill")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_a_rerun_with_room_finishes(
    small_disk: Path,
    tmp_path: Path,
    classifier_folder: Path,
    write_shards: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_shards({f"part-{n}": texts(str(n)) for n in range(20)})
    out = small_disk / "out"
    words = command(classifier_folder, source, out)
    assert cli.main(words) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in message
    assert "what is done is safe" in message
    remount = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(remount, check=True)
    done = len(list(out.rglob("*.parquet")))
    assert done < 20
    assert cli.main(words) == 0
    clean = tmp_path / "clean"
    assert cli.main(command(classifier_folder, source, clean)) == 0
    assert contents(out) == contents(clean)
    assert not list(out.rglob(".*"))
