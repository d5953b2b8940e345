"""Two hosts that only the network joins: launched over ssh, cut off, lost."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import pyarrow as pa
import pytest
import yaml
from hosts import Host, Network
from scoring import command, contents, texts

Write = Callable[..., Path]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SITE = Path(pa.__file__).parents[1]
SUBMIT = str(ROOT / "deploy/schedule/submit.sh")
LAUNCH_S, JOB_S = 120.0, 180.0


def test_a_cluster_of_ones_own_machines_goes_up_does_a_job_and_goes_down(
    tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    """deploy/local/cluster.yaml as it is, but for addresses, user and key."""
    source = write_shards({f"part-{n:03d}": texts(str(n)) for n in range(40)})
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    build_wheel(checkout / "dist")
    (checkout / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    with hosts.running(3, folder=tmp_path / "hosts") as network:
        yours, *others = network.hosts
        for host in others:
            prepare(host)
        cluster = checkout / "cluster.yaml"
        cluster.write_text(yaml.safe_dump(cluster_file(network)))
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

        def ray(*words: str, timeout: float) -> str:
            there = f"cd {checkout} && exec ray {' '.join(words)}"
            done = yours.run("bash", "-c", there, timeout=timeout, **environment)
            assert done.returncode == 0, done.stdout
            return done.stdout

        token = yours.run("ray", "get-auth-token", "--generate", timeout=60, **environment)
        assert token.returncode == 0, token.stdout
        ray("up", "--yes", str(cluster), timeout=LAUNCH_S)
        wait_for_raylets(others)
        tunnel = yours.start("ray", "dashboard", str(cluster), **environment)
        try:
            words = scoring(classifier_folder, source, out)
            where = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "JOB": "jobs/score.py"}
            wait_for_port(yours, 8265)
            done = yours.run(SUBMIT, *words, timeout=JOB_S, **environment, **where)
            assert done.returncode == 0, done.stdout
        finally:
            tunnel.kill()
        assert (out / "_SUCCESS").exists()
        assert len(contents(out)) == 40
        ray("down", "--yes", str(cluster), timeout=LAUNCH_S)
        wait_for_raylets(others, gone=True)


def cluster_file(network: Network) -> dict[str, Any]:
    """The one that is shipped, with these hosts in it."""
    yours, head, *workers = network.hosts
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/local/cluster.yaml").read_text())
    config["provider"] |= {
        "head_ip": head.address,
        "worker_ips": [worker.address for worker in workers],
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{yours.home}/.ssh/id_ed25519"}
    return config


def build_wheel(folder: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def prepare(host: Host) -> None:
    """An environment in which pip finds all that the wheel needs, as an earlier `ray up` left it.

    No index can be reached from there. What is installed here is linked, but not bertray itself.
    """
    venv = host.home / "bertray/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    linked = host.home / "site"
    linked.mkdir()
    for entry in SITE.iterdir():
        if "bertray" not in entry.name and not entry.name.endswith(".pth"):
            (linked / entry.name).symlink_to(entry)
    (next(venv.glob("lib/*/site-packages")) / "linked.pth").write_text(f"{linked}\n")
    for name, module in (("pip", "pip"), ("ray", "ray.scripts.scripts")):
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m {module} "$@"\n')
        script.chmod(0o755)


def scoring(model: Path, source: Path, out: Path) -> list[str]:
    """Words of a job whose two actors need a host each."""
    words = command(model, source, out, "pool.max_actors=2", "pool.min_actors=2")
    return [word for word in words[1:] if word != "pool.max_actors=1"] + ["pool.num_threads=2"]


def wait_for_raylets(where: list[Host], *, gone: bool = False) -> None:
    deadline = time.monotonic() + LAUNCH_S
    for host in where:
        while (host.run("pgrep", "-f", "/raylet ", timeout=20).returncode == 0) == gone:
            if time.monotonic() > deadline:
                logs = "tail -n 40 /tmp/ray/session_latest/logs/monitor.*"
                said = where[0].run("bash", "-c", logs, timeout=20).stdout
                pytest.fail(f"{host.name}: the raylet {'lives' if gone else 'is missing'}\n{said}")
            time.sleep(1)


def wait_for_port(host: Host, port: int) -> None:
    deadline = time.monotonic() + 60
    probe = f"exec 3<>/dev/tcp/127.0.0.1/{port}"
    while host.run("bash", "-c", probe, timeout=20).returncode:
        assert time.monotonic() < deadline, f"{host.name}: nothing listens on {port}"
        time.sleep(0.5)
