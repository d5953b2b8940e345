"""A Ray cluster of its own processes for tests that submit to it, starve it or kill it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 60.0
TOKEN = "a-token-of-these-tests-alone-0123456789"
HOST = "127.0.0.2"  # loopback too; of 127.0.0.1 Ray makes the address of a network card


@dataclass(frozen=True)
class OwnCluster:
    """A head node, and maybe more nodes, on this machine.

    Attributes:
        address: of its GCS, for ``RAY_ADDRESS``.
        dashboard: URL of its jobs API.
        metrics: URL of what the head's agent exports to Prometheus.
        scratch: the head's folder, in place of /tmp/ray.
        environment: of commands that are to reach it.
        nodes: `ray start --block` of each, whose children are all that the node runs; head first.
    """

    address: str
    dashboard: str
    metrics: str
    scratch: Path
    environment: dict[str, str]
    nodes: "list[subprocess.Popen[bytes]]"

    def workers(self, title: str, *, node: int = 0) -> list[psutil.Process]:
        """Those of a node whose title begins so; Ray titles each worker by what it does."""
        return [process for process in self._all(node) if _title(process).startswith(title)]

    def raylets(self) -> list[psutil.Process]:
        """What manages the head's workers and its object store; none once it has died."""
        return [process for process in self._all(0) if _title(process).endswith("/raylet")]

    def kill(self, node: int) -> None:
        """Let a node vanish at once, with all that runs on it."""
        for process in [*self._all(node), self.nodes[node]]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _all(self, node: int) -> list[psutil.Process]:
        try:
            return psutil.Process(self.nodes[node].pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


@contextmanager
def running(
    *,
    num_nodes: int = 1,
    cpus_each: int = 2,
    object_store_bytes: int = 200_000_000,
    **variables: str,
) -> Iterator[OwnCluster]:
    """Start a cluster that asks for a token, and end all of its processes.

    Args:
        num_nodes: head included.
        cpus_each: that a node says it has.
        object_store_bytes: size of a node's object store.
        variables: of the environment, for Ray's own settings.
    """
    scratch = Path(tempfile.mkdtemp(prefix="bt", dir="/tmp"))  # socket paths must be short
    port, dashboard, metrics = free_port(), free_port(), free_port()
    address = f"{HOST}:{port}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **variables}
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # jobs are run by `python`
    nodes: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        nodes.append(
            subprocess.Popen(
                [
                    *(RAY, "start", "--block", *words, f"--num-cpus={cpus_each}"),
                    *(f"--node-ip-address={HOST}", f"--object-store-memory={object_store_bytes}"),
                    # Not the default port: another node on this machine may have taken it.
                    f"--dashboard-agent-listen-port={free_port()}",
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    try:
        start(
            *("--head", f"--port={port}", f"--ray-client-server-port={free_port()}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--metrics-export-port={metrics}", f"--temp-dir={scratch}"),
        )
        wait_until_it_answers(port)
        for _ in range(num_nodes - 1):
            start(f"--address={address}")
        reached = {**environment, "RAY_ADDRESS": address}
        yield OwnCluster(
            address=address,
            dashboard=f"http://127.0.0.1:{dashboard}",
            metrics=f"http://{HOST}:{metrics}/metrics",
            scratch=scratch,
            environment=reached,
            nodes=nodes,
        )
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=5)
        subprocess.run(["pkill", "-KILL", "-f", str(scratch)], check=False)
        for node in nodes:
            node.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):  # it has ended
        return ""


def wait_until_it_answers(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
            return
        time.sleep(0.1)
    raise RuntimeError(f"no Ray head answers on port {port} after {START_S:g} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
