"""The jobs as they are really run: `ray start`, `ray job submit`, read the output."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 60


@dataclass(frozen=True)
class Cluster:
    """A head node of its own processes, reached through its dashboard with a token."""

    address: str
    environment: dict[str, str]

    def submit(self, job: str, *words: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "jobs" / f"{job}.py")
        command = [RAY, "job", "submit", "--address", self.address, "--"]
        return subprocess.run(
            [*command, sys.executable, script, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import shutil
    import tempfile

    scratch = Path(tempfile.mkdtemp(prefix="bt", dir="/tmp"))  # socket paths must be short
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-these-tests-alone-0123456789",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={dashboard}", "--object-store-memory=200000000"),
            # Not the default ports: another cluster on this machine may have taken them.
            *(f"--dashboard-agent-listen-port={free_port()}",),
            *(f"--ray-client-server-port={free_port()}",),
            f"--temp-dir={scratch}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        cluster = Cluster(address, environment)
        wait_until_it_takes_jobs(cluster)
        yield cluster
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=5)
        subprocess.run(["pkill", "-KILL", "-f", str(scratch)], check=False)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_until_it_takes_jobs(cluster: Cluster) -> None:
    """The dashboard answers some seconds before the agent that starts jobs is there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    command = [RAY, "job", "submit", "--address", cluster.address, "--no-wait", "--", "true"]
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=cluster.environment, capture_output=True, timeout=60)
        if done.returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"no Ray head takes jobs at {cluster.address} after {START_TIMEOUT_S} s")


def plain(output: str) -> str:
    """Job output without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", output)


def test_a_submitted_scoring_job_succeeds_and_its_output_is_there(
    cluster: Cluster, classifier_folder: Path, write_shards: Write, tmp_path: Path
) -> None:
    texts = ["good film", "awful plot", "not great", "very bad actor"]
    source = write_shards({"a": pa.table({"text": texts}), "b": pa.table({"text": texts[:2]})})
    out = tmp_path / "out"
    done = cluster.submit(
        "score", f"model.path={classifier_folder}", f"input.path={source}", f"output.path={out}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in plain(done.stdout + done.stderr)
    scored = pq.ParquetFile(out / "a.parquet").read()
    assert scored["text"].to_pylist() == texts
    assert set(scored["prediction_status"].to_pylist()) == {"ok"}
    assert (out / "_SUCCESS").exists()


def test_a_bad_config_fails_the_job_with_one_readable_message(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = cluster.submit("score", "model.path=m", "input.pth=i", f"output.path={tmp_path}/out")
    log = plain(done.stdout + done.stderr)
    assert done.returncode != 0
    assert "failed" in log
    assert "unknown key 'input.pth'; did you mean 'input.path'?" in log
    assert "Traceback" not in log
    assert "exit code 2" in log
