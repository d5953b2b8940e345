"""A Ray cluster of its own processes for tests that submit to it, starve it or kill it."""

import contextlib
import json
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
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 120.0
TOKEN = "a-token-of-these-tests-alone-0123456789"
DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
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
        """What manages the head's workers and its object store; none once it has died.

        And those of nodes that the head's autoscaler started.
        """
        return [process for process in self._all(0) if _is_raylet(process)]

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
    autoscaled_cpus: int = 0,
    **variables: str,
) -> Iterator[OwnCluster]:
    """Start a cluster that asks for a token, and end all of its processes.

    Args:
        num_nodes: head included.
        cpus_each: that a node says it has.
        object_store_bytes: size of a node's object store.
        autoscaled_cpus: of one more node, which Ray's autoscaler starts when somebody wants it, and
            ends once it is idle; 0 for no autoscaler.
        variables: of the environment, for Ray's own settings.
    """
    scratch = Path(tempfile.mkdtemp(prefix="bt", dir="/tmp"))  # socket paths must be short
    port, dashboard, metrics = free_port(), free_port(), free_port()
    address = f"{HOST}:{port}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environment |= {DRAIN_TIMEOUT: "0", **variables}  # a node that is to end does so at once
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # jobs are run by `python`
    nodes: list[subprocess.Popen[bytes]] = []
    autoscaling = []
    if autoscaled_cpus:
        file = scratch / "autoscaling.json"
        file.write_text(json.dumps(_autoscaling(address, cpus=autoscaled_cpus)))
        autoscaling = [f"--autoscaling-config={file}"]
        # Its second autoscaler wants other things of a provider than the one for tests has.
        environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
        environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}

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
            *autoscaling,
        )
        wait_until_it_answers(port)
        if num_nodes > 1:
            _joins(nodes[0], scratch, num_agents=1)
        while len(nodes) < num_nodes:
            # One after the other: a node gives up whose agent takes more than 15 s to start.
            num_agents = _num_agents(scratch)
            start(f"--address={address}")
            if not _joins(nodes[-1], scratch, num_agents=num_agents + 1):
                nodes.pop().kill()
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
            try:
                node.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        subprocess.run(["pkill", "-KILL", "-f", str(scratch)], check=False)
        for node in nodes:
            node.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _autoscaling(address: str, *, cpus: int) -> dict[str, Any]:
    """What tells Ray's autoscaler to start nodes on this machine, as Ray's own tests do.

    Its `AutoscalingCluster` would stop all other clusters of this machine first.
    """
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": cpus, "object_store_memory": 100_000_000},
            "node_config": {},
            "max_workers": 1,
        },
    }
    return {
        "cluster_name": "autoscaled",
        "max_workers": 1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.25,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def _is_raylet(process: psutil.Process) -> bool:
    return _title(process).endswith("/raylet")


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):  # it has ended
        return ""


def _num_agents(scratch: Path) -> int:
    """How many nodes have had one that told its port."""
    return len(list(scratch.glob("session_latest/metrics_agent_port_*")))


def _joins(node: "subprocess.Popen[bytes]", scratch: Path, *, num_agents: int) -> bool:
    """Whether a node comes up, and with it so many agents; if not, it is ending."""
    deadline = time.monotonic() + START_S
    while node.poll() is None:
        if _num_agents(scratch) >= num_agents:
            return any(map(_is_raylet, psutil.Process(node.pid).children(recursive=True)))
        if time.monotonic() > deadline:
            raise RuntimeError(f"a node neither comes up nor ends within {START_S:g} s")
        time.sleep(0.1)
    return False


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
