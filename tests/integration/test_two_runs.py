"""Two runs that meet on one output."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from scoring import command, contents, driver, texts

from bertray import cli

Write = Callable[..., Path]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("ray_cluster"),
]

ROOT = Path(__file__).parents[2]
WITHOUT_LEASE = """
import bertray.score.run as run; from contextlib import nullcontext
run.hold = lambda output, on_wait: nullcontext(False)
"""


def start(words: list[str], *, lease: bool = True) -> subprocess.Popen[str]:
    """A driver process of its own on the tests' cluster."""
    before = "" if lease else WITHOUT_LEASE
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    return driver(words, environment, before=before)


def test_two_equal_runs_at_once_both_succeed_even_without_the_lease(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({f"part-{n}": texts(str(n)) for n in range(12)})
    out = tmp_path / "out"
    words = command(classifier_folder, source, out)
    runs = [start(words, lease=False) for _ in range(2)]
    said = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    clean = tmp_path / "clean"
    assert cli.main(command(classifier_folder, source, clean)) == 0
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()
    assert (out / "_SUCCESS").exists()
    assert not list(out.rglob(".*"))


def test_of_two_runs_at_once_with_other_settings_one_is_refused_with_both_named(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({"a": texts("a")})
    out = tmp_path / "out"
    lengths = ("16", "32")
    runs = [
        start(command(classifier_folder, source, out, f"model.max_length={length}"))
        for length in lengths
    ]
    said = [run.communicate(timeout=240)[0] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 2], said
    loser = codes.index(2)
    wanted = f"model.max_length: {lengths[1 - loser]} there, {lengths[loser]} here"
    assert wanted in " ".join(said[loser].split())
    assert (out / "_SUCCESS").exists()
