import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

HARNESS = Path(__file__).with_name("crash_steps.py")
Write = Callable[..., Path]
TABLE = pa.table({"text": ["good", "a bad film", "so so", "x", "yy", "zzz"], "id": range(6)})


def die_everywhere(source: Path, model: Path, folder: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, HARNESS, model, source, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert told["files_kept"] > 0
    return told


def test_a_kill_at_any_step_of_a_run_costs_no_row_and_a_rerun_ends_like_a_clean_run(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    shards = {"a": TABLE.slice(0, 3), "day=1/b": TABLE, "none": TABLE.slice(0, 0)}
    source = write_shards(shards, row_group_size=3)
    told = die_everywhere(source, classifier_folder, str(tmp_path / "runs"))
    # Four scored files, contract, manifest, word of success: each has more than one step to die at.
    assert told["files"] == 7
    assert told["deaths"] > 4 * told["files"]


@pytest.mark.timeout(900)  # each death is a process of its own, and a rerun, through a server
def test_a_kill_before_or_after_any_request_that_changes_s3_costs_no_row_either(
    s3: str, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({"day=1/b": TABLE}, row_group_size=3)  # as little as has two splits
    told = die_everywhere(source, classifier_folder, s3)
    assert told["files"] == 5
    assert told["deaths"] >= 2 * told["files"]
