"""The jobs as they are really run: `ray start`, deploy/schedule/submit.sh, read the output."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import own_cluster
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_cluster import RAY, ROOT, OwnCluster

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

START_TIMEOUT_S = 60
# `bertray score`, as submit.sh has it run, where only the shard that comes first is ever done.
NEVER_DONE = """
import os
import time
from pathlib import Path

from bertray import cli
from bertray.score import pipeline

FIRST = Path(__file__).with_name("first")

class NeverDone(pipeline.Classifier):
    def _classify(self, block, split):
        try:
            os.symlink(split.shard, FIRST)
        except FileExistsError:
            while os.readlink(FIRST) != split.shard:
                time.sleep(0.1)
        return super()._classify(block, split)

pipeline.Classifier = NeverDone
cli.main()
"""


def submit(cluster: OwnCluster, job: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """As every scheduler does, carrying this checkout to the cluster."""
    environment = {
        **cluster.environment,
        "JOB": f"jobs/{job}.py",
        "RAY_API_SERVER_ADDRESS": cluster.dashboard,
    }
    return subprocess.run(
        [ROOT / "deploy" / "schedule" / "submit.sh", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    """Reached through its dashboard with a token."""
    with own_cluster.running() as cluster:
        wait_until_it_takes_jobs(cluster)
        yield cluster


def wait_until_it_takes_jobs(cluster: OwnCluster) -> None:
    """The dashboard answers some seconds before the agent that starts jobs is there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    command = [RAY, "job", "submit", "--address", cluster.dashboard, "--no-wait", "--", "true"]
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=cluster.environment, capture_output=True, timeout=60)
        if done.returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"no Ray head takes jobs at {cluster.dashboard} after {START_TIMEOUT_S} s")


def plain(output: str) -> str:
    """Job output without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", output)


def test_a_submitted_scoring_job_succeeds_and_its_output_is_there(
    cluster: OwnCluster, classifier_folder: Path, write_shards: Write, tmp_path: Path
) -> None:
    texts = ["good film", "awful plot", "not great", "very bad actor"]
    source = write_shards({"a": pa.table({"text": texts}), "b": pa.table({"text": texts[:2]})})
    out = tmp_path / "out"
    done = submit(
        cluster,
        "score",
        f"model.path={classifier_folder}",
        f"input.path={source}",
        f"output.path={out}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in plain(done.stdout + done.stderr)
    scored = pq.ParquetFile(out / "a.parquet").read()
    assert scored["text"].to_pylist() == texts
    assert set(scored["prediction_status"].to_pylist()) == {"ok"}
    assert (out / "_SUCCESS").exists()
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/")
    request.add_header("Authorization", f"Bearer {own_cluster.TOKEN}")
    with urllib.request.urlopen(request) as answer:
        jobs = [job for job in json.load(answer) if str(job["submission_id"])[:8] == "bertray-"]
    assert jobs[0]["metadata"]["config"].startswith(f"model.path={classifier_folder} input.path=")


def test_a_job_that_was_stopped_is_gone_on_with_by_the_next_submission(
    cluster: OwnCluster, classifier_folder: Path, write_shards: Write, tmp_path: Path
) -> None:
    source = write_shards({name: pa.table({"text": ["good film"] * 3}) for name in "ab"})
    out, script = tmp_path / "out", tmp_path / "never_done.py"
    script.write_text(NEVER_DONE)
    words = [f"model.path={classifier_folder}", f"input.path={source}", f"output.path={out}"]

    def job(*command: str) -> str:
        full = [RAY, "job", command[0], "--address", cluster.dashboard, *command[1:]]
        done = subprocess.run(full, env=cluster.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return plain(done.stdout + done.stderr)

    start = ["python", str(script), "score", *words]
    job("submit", "--no-wait", "--submission-id", "stopped", "--", *start)
    deadline = time.monotonic() + 2 * START_TIMEOUT_S  # the job's, and its actors'
    while not (done_shards := list(out.glob("*.parquet"))):
        assert time.monotonic() < deadline, job("logs", "stopped")
        time.sleep(0.1)
    [first] = done_shards
    assert "was stopped" in job("stop", "stopped")
    assert not (out / "_SUCCESS").exists()
    before = first.stat().st_mtime_ns
    done = submit(cluster, "score", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.stat().st_mtime_ns == before  # it was not scored again
    assert [pq.ParquetFile(out / f"{name}.parquet").metadata.num_rows for name in "ab"] == [3, 3]
    assert (out / "_SUCCESS").exists()


def test_a_bad_config_fails_the_job_with_one_readable_message(
    cluster: OwnCluster, tmp_path: Path
) -> None:
    done = submit(cluster, "score", "model.path=m", "input.pth=i", f"output.path={tmp_path}/out")
    log = plain(done.stdout + done.stderr)
    assert done.returncode != 0
    assert "failed" in log
    assert "unknown key 'input.pth'; did you mean 'input.path'?" in log
    assert "Traceback" not in log
    assert "exit code 2" in log


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer not-the-token-of-these-tests"}])
def test_nobody_without_the_token_sees_or_submits_a_job(
    cluster: OwnCluster, headers: dict[str, str]
) -> None:
    for data in (None, b'{"entrypoint": "true"}'):
        request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", data, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code in (401, 403)
