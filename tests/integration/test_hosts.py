"""Two hosts that only the network joins: launched over ssh, cut off, lost."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
CLASSIFIER = "ray::MapWorker(MapBatches(Classifier))"
CUT_S = 60.0
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


@dataclass(frozen=True)
class Pair:
    """A head and a worker of two CPUs each, without a launcher."""

    network: Network
    head: Host
    worker: Host
    environment: dict[str, str]

    def start_head(self) -> None:
        words = ["--head", "--port=6379", "--include-dashboard=false"]
        self._start(self.head, *words)

    def start_worker(self) -> None:
        self._start(self.worker, f"--address={self.head.address}:6379")

    def _start(self, host: Host, *words: str) -> None:
        size = ["--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
        words = ("ray", "start", *words, *size, f"--node-ip-address={host.address}")
        done = host.run(*words, timeout=LAUNCH_S, **self.environment)
        assert done.returncode == 0, done.stdout

    @contextmanager
    def bertray(self, host: Host, *words: str) -> "Iterator[subprocess.Popen[str]]":
        """The command on one of them, ended when this is left."""
        code = "import sys; from bertray.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**self.environment, "RAY_ADDRESS": f"{self.head.address}:6379"}
        python = [sys.executable, "-c", code, *words]
        with host.start(*python, stdout=subprocess.PIPE, **environment) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def wait(self, process: "subprocess.Popen[str]", is_so: Callable[[], object]) -> None:
        """Until something holds, which it is to do before the command ends."""
        deadline = time.monotonic() + JOB_S
        while not is_so():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-these-tests-alone-0123456789",
    }
    with hosts.running(2, folder=tmp_path / "hosts") as network:
        pair = Pair(network, *network.hosts, environment)
        pair.start_head()
        pair.start_worker()
        yield pair


@pytest.fixture
def losing(request: pytest.FixtureRequest) -> None:
    """For tests of minutes, most of which Ray waits for what is gone."""
    if not request.config.getoption("--lose-hosts"):
        pytest.skip("make hosts runs it")


def runs(host: Host, title: str) -> bool:
    """Whether a process of this title lives there; Ray titles its workers by what they do."""
    return host.run("pgrep", "-f", re.escape(title), timeout=20).returncode == 0


def test_a_link_that_is_cut_for_a_minute_costs_no_row(
    pair: Pair, tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({f"part-{n:03d}": texts(str(n)) for n in range(150)})
    clean, out = tmp_path / "clean", tmp_path / "out"
    with pair.bertray(pair.head, "score", *scoring(classifier_folder, source, clean)) as run:
        said, _ = run.communicate(timeout=JOB_S)
    assert run.returncode == 0, said
    with pair.bertray(pair.head, "score", *scoring(classifier_folder, source, out)) as run:
        pair.wait(run, lambda: len(contents(out)) >= 10 and runs(pair.worker, CLASSIFIER))
        pair.network.cut(pair.worker)
        assert len(contents(out)) < 150
        time.sleep(CUT_S)
        pair.network.mend(pair.worker)
        said, _ = run.communicate(timeout=JOB_S)
    assert run.returncode == 0, said
    assert contents(out) == contents(clean)
    assert (out / "_manifest.json").read_bytes() == (clean / "_manifest.json").read_bytes()


@pytest.mark.usefixtures("losing")
def test_a_training_whose_second_host_is_lost_goes_on_with_the_first(
    pair: Pair, tmp_path: Path, base_without_dropout: Path, write_shards: Write
) -> None:
    labels = ["awful", "good"] * 1_000
    rows = [f"film {n} is {label}" for n, label in enumerate(labels)]
    data, out = write_shards({"a": pa.table({"text": rows, "label": labels})}), tmp_path / "bundle"
    words = [f"model.base={base_without_dropout}", f"data.train={data}", f"output.path={out}"]
    words += ["data.validation_fraction=0.1", "scaling.num_workers=[1, 2]", "scaling.num_threads=2"]
    words += ["training.per_device_batch_size=2", "training.num_epochs=3"]

    def checkpoints() -> list[Path]:
        return [path for path in tmp_path.rglob("epoch-*") if path.is_dir()]

    with pair.bertray(pair.head, "train", *words) as run:
        pair.wait(run, lambda: checkpoints() and runs(pair.worker, "ray::RayTrainWorker"))
        pair.network.lose(pair.worker)
        assert not any("epoch-003" in path.name for path in checkpoints())
        said, _ = run.communicate(timeout=JOB_S)
    assert run.returncode == 0, said
    epochs = json.loads((out / "_training.json").read_text())["epochs"]
    assert [epoch["num_rows"] for epoch in epochs] == [1_800] * 3
    assert epochs[-1]["metrics"]["accuracy"] > 0.95


@pytest.mark.usefixtures("losing")
def test_a_lost_head_ends_the_job_with_a_word_and_the_next_one_finishes_it(
    pair: Pair, tmp_path: Path, classifier_folder: Path, write_shards: Write
) -> None:
    source = write_shards({f"part-{n:03d}": texts(str(n)) for n in range(150)})
    out = tmp_path / "out"
    words = ["score", *scoring(classifier_folder, source, out)]
    with pair.bertray(pair.worker, *words) as run:
        pair.wait(run, lambda: len(contents(out)) >= 10)
        pair.head.run("ray", "stop", "--force", timeout=60, **pair.environment)
        said, _ = run.communicate(timeout=JOB_S)
    assert run.returncode == 1, said
    assert "run the same command again" in said, said
    done = len(contents(out))
    assert 10 <= done < 150
    pair.worker.run("ray", "stop", "--force", timeout=60, **pair.environment)
    pair.start_head()
    pair.start_worker()
    with pair.bertray(pair.head, *words) as run:
        said, _ = run.communicate(timeout=JOB_S)
    assert run.returncode == 0, said
    assert len(contents(out)) == 150
    assert re.search(rf"of these scored now +{2 * (150 - done)}\b", said), said


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
