"""deploy/schedule/: every scheduler submits the same night, one at a time."""

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kuberay_schema import KUBERNETES
from ray.dashboard.modules.job.cli import submit as job_submit
from ray.scripts.scripts import dashboard

ROOT = Path(__file__).parents[2]
SCHEDULE = ROOT / "deploy" / "schedule"
SUBMIT = "deploy/schedule/submit.sh"
FAKE_RAY = """#!/bin/bash
printf '%s\\n' "$@" >> {log}
[ "$2" = submit ] && exit {submitted}
echo "Job '$5' {status}"
seq 100000  # whoever stops to read after the first line breaks the pipe
"""


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bertray.cron", "night.yaml"),
        ("bertray.service", "night.yaml"),
        ("airflow_dag.py", "night.yaml"),
        ("cronjob.yaml", "/etc/bertray/score.yaml"),
    ],
)
def test_each_scheduler_runs_the_same_script_on_a_config_that_the_head_has(
    name: str, config: str
) -> None:
    """One in the checkout, which each submission carries, or one that the head's pod mounts."""
    assert re.search(rf"/{SUBMIT},? {re.escape(config)}", (SCHEDULE / name).read_text())
    assert os.access(ROOT / SUBMIT, os.X_OK)
    (head,) = yaml.safe_load((ROOT / "deploy/kuberay/base/raycluster.yaml").read_text())["spec"][
        "headGroupSpec"
    ]["template"]["spec"]["containers"]
    assert "/etc/bertray" in [mount["mountPath"] for mount in head["volumeMounts"]]


Submit = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Run submit.sh with a `ray` that answers as told: its code, and the words that ray got."""

    def run(
        *words: str, submitted: int = 0, status: str = "succeeded", **variables: str
    ) -> tuple[int, list[str]]:
        log, ray = tmp_path / "log", tmp_path / "ray"
        ray.write_text(FAKE_RAY.format(log=log, submitted=submitted, status=status))
        ray.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run([ROOT / SUBMIT, *words], env=environment | variables)
        return done.returncode, log.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("submitted", "status", "expected"),
    [(0, "succeeded", 0), (1, "failed", 1), (0, "was stopped", 1)],
)
def test_a_night_counts_as_done_only_if_its_job_succeeded(
    submit: Submit, submitted: int, status: str, expected: int
) -> None:
    code, asked = submit("score.yaml", "pool.num_gpus=1", submitted=submitted, status=status)
    assert code == expected
    assert asked[:3] == ["job", "submit", "--submission-id"]
    assert re.fullmatch(r"bertray-\d{8}-\d{6}", asked[3])
    assert asked[4:6] == ["--working-dir", "."]
    entrypoint = asked[asked.index("--") + 1 :][:4]
    assert entrypoint == ["python", "jobs/nightly.py", "score.yaml", "pool.num_gpus=1"]


def test_a_job_says_what_it_was_given_and_who_submitted_which_commit(submit: Submit) -> None:
    _, asked = submit("night.yaml", 'input.text=a "quoted" \\ column')
    about = json.loads(asked[asked.index("--metadata-json") + 1])
    assert about["config"] == 'night.yaml input.text=a "quoted" \\ column'
    assert re.fullmatch(r"[^@]+@[^@]+", about["submitted_by"])
    assert about.keys() - {"commit"} == {"config", "submitted_by"}  # a copy has no commit
    assert all(isinstance(value, str) for value in about.values())


def test_more_options_go_to_ray_and_not_to_the_job(submit: Submit) -> None:
    more = ["--entrypoint-num-cpus", "2", "--runtime-env", "deploy/runtime-env.yaml"]
    known = {option for parameter in job_submit.params for option in parameter.opts}
    assert {more[0], more[2]} <= known
    _, asked = submit("night.yaml", SUBMIT_OPTIONS=" ".join(more))
    end = asked.index("--")
    assert asked[end - len(more) : end] == more


def test_schedulers_ask_where_the_tunnel_ends() -> None:
    tunnel = (SCHEDULE / "bertray-tunnel.service").read_text()
    (command,) = re.findall(r"^ExecStart=/opt/bertray/venv/bin/ray (.*)$", tunnel, re.MULTILINE)
    assert (ROOT / command.removeprefix("dashboard ")).is_file()
    (port,) = (option.default for option in dashboard.params if option.name == "port")
    for name in ("bertray.cron", "bertray.service", "airflow_dag.py"):
        assert f"http://127.0.0.1:{port}" in (SCHEDULE / name).read_text()


def test_cron_starts_no_second_submission_beside_one_that_runs(tmp_path: Path) -> None:
    (line,) = [
        line for line in (SCHEDULE / "bertray.cron").read_text().splitlines() if " flock " in line
    ]
    when, command = line.split(" bertray ", 1)
    assert len(when.split()) == 5
    lock, ran = tmp_path / "lock", tmp_path / "ran"
    command = command.replace("/run/lock/bertray.lock", str(lock))
    command = re.sub(r"/opt/bertray/\S+ \S+$", f"touch {ran}", command)
    with subprocess.Popen(["flock", lock, "cat"], stdin=subprocess.PIPE) as other:
        while subprocess.run(["flock", "--nonblock", lock, "true"]).returncode == 0:
            assert other.poll() is None
        assert subprocess.run(command, shell=True).returncode == 0
        assert not ran.exists()
        other.communicate()
    assert subprocess.run(command, shell=True).returncode == 0
    assert ran.exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_each_unit(tmp_path: Path) -> None:
    for name in ("bertray.service", "bertray.timer", "bertray-tunnel.service"):
        text = (SCHEDULE / name).read_text()
        there = text.replace("/opt/bertray/venv/bin/ray", "/bin/true")
        (tmp_path / name).write_text(there.replace("/opt/bertray", str(ROOT)))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_kubernetes_starts_one_night_at_a_time_with_a_secret_by_reference() -> None:
    cron = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())
    kubernetes_validate.validate(cron, KUBERNETES, strict=True)
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (token,) = [one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    cluster = yaml.safe_load((ROOT / "deploy/kuberay/base/raycluster.yaml").read_text())
    reference = token["valueFrom"]["secretKeyRef"]
    assert "value" not in token
    assert reference["name"] == cluster["spec"]["authOptions"]["secretName"]
    assert pod["metadata"]["labels"] == {"bertray/part": "submitter"}


def test_airflow_makes_up_for_no_night_twice() -> None:
    tree = ast.parse((SCHEDULE / "airflow_dag.py").read_text())
    calls = {
        node.func.id: {word.arg: word.value for word in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert {"DAG", "BashOperator"} <= calls.keys()
    assert ast.literal_eval(calls["DAG"]["catchup"]) is False
    assert ast.literal_eval(calls["DAG"]["max_active_runs"]) == 1
