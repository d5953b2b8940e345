import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

HARNESS = Path(__file__).with_name("crash_steps.py")


def test_a_kill_at_any_step_of_a_run_costs_no_row_and_a_rerun_ends_like_a_clean_run(
    tmp_path: Path, classifier_folder: Path, write_shards: Callable[..., Path]
) -> None:
    table = pa.table({"text": ["good", "a bad film", "so so", "x", "yy", "zzz"], "id": range(6)})
    shards = {"a": table.slice(0, 3), "day=1/b": table, "none": table.slice(0, 0)}
    source = write_shards(shards, row_group_size=3)
    done = subprocess.run(
        [sys.executable, HARNESS, classifier_folder, source, tmp_path / "runs"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # Four scored files, contract, manifest, word of success: each has more than one step to die at.
    assert told["files"] == 7
    assert told["deaths"] > 4 * told["files"]
    assert told["files_kept"] > 0
