"""What Ray's own launcher makes of each cluster.yaml; all of deploy/ runs the same versions."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.command_runner import SSHOptions
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).parents[2]
CLUSTERS = [
    "cluster.yaml",
    "deploy/azure/cluster.yaml",
    "deploy/gcp/cluster.yaml",
    "deploy/local/cluster.yaml",
]
# The Python of the images, and of the machine that constraints.txt was made on.
PYTHON = "3.11"
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


@pytest.fixture(params=CLUSTERS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A file with Ray's defaults filled in, as `ray up` reads it."""
    return prepare_config(yaml.safe_load((ROOT / request.param).read_text()))


def test_rays_launcher_takes_every_cluster_file(config: dict[str, Any]) -> None:
    validate_config(config)


def test_no_command_of_rays_defaults_is_left(config: dict[str, Any]) -> None:
    commands = [command for key in config if key.endswith("commands") for command in config[key]]
    assert not [command for command in commands if "ray-wheels" in command or "anaconda" in command]
    assert not [
        command
        for command in commands
        if re.search(r"pip install (?!.*(==|--constraint))", command)
    ]


@pytest.mark.parametrize(
    "name", [*CLUSTERS[:3], "deploy/kuberay/Dockerfile"], ids=lambda name: name.replace("/", "-")
)
def test_pytorchs_index_is_asked_for_torch_alone(name: str) -> None:
    """It need not have what else constraints.txt pins; that comes with bertray, from PyPI."""
    lines = (ROOT / name).read_text().replace("\\\n", " ").replace("\n    ", " ").splitlines()
    torch, *others = [line for line in lines if "download.pytorch.org" in line]
    assert not others
    assert "--no-deps" in torch
    assert re.search(r" torch(;|$)", torch)


def test_a_model_that_cannot_be_fetched_ahead_is_told_of_and_stops_no_node(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (fetches,) = [line for line in config["worker_setup_commands"] if "fetch(" in line]
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(fetches, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the model was not fetched ahead")


def test_every_node_asks_for_the_token_and_has_it(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    in_container = "--env RAY_AUTH_MODE=token" in config["docker"].get("run_options", ())
    assert in_container or all("export RAY_AUTH_MODE=token;" in start for start in starts)


def test_no_dashboard_can_be_reached_from_another_machine(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_heads_of_clouds_take_no_work_and_gpus_come_when_asked_for(config: dict[str, Any]) -> None:
    kinds = config["available_node_types"]
    if config["provider"]["type"] == "local":
        assert config["max_workers"] == len(config["provider"]["worker_ips"])
        return
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    assert {name: kind["min_workers"] for name, kind in kinds.items() if kind["min_workers"]} == {}
    assert kinds["gpu-spot"]["priority"] > kinds["gpu-on-demand"]["priority"]


def test_azures_nodes_say_what_rays_template_asks_for_in_its_types() -> None:
    config = yaml.safe_load((ROOT / "deploy/azure/cluster.yaml").read_text())
    template = Path(ray.__path__[0], "autoscaler/_private/_azure/azure-vm-template.json")
    asked = json.loads(template.read_text())["parameters"]
    types = {"string": str, "securestring": str, "int": int, "bool": bool, "object": dict}
    by_ray = set("vmName adminUsername publicKey vmTags vmCount msi nsg subnet".split())
    for kind in config["available_node_types"].values():
        said = kind["node_config"]["azure_arm_parameters"]
        assert {name: types[asked[name]["type"]] for name in said} == {
            name: type(value) for name, value in said.items()
        }
        needed = {name for name, parameter in asked.items() if "defaultValue" not in parameter}
        assert needed <= by_ray | said.keys()
        assert not by_ray & said.keys()


def test_azures_user_may_use_docker_once_ray_has_logged_in_anew() -> None:
    config = yaml.safe_load((ROOT / "deploy/azure/cluster.yaml").read_text())
    joins, waits = config["initialization_commands"]
    assert joins == "sudo usermod -aG docker $USER"
    kept = SSHOptions("key", control_path="socket").arg_dict["ControlPersist"]
    assert int(waits.removeprefix("sleep ")) > int(kept.removesuffix("s"))
    # With a key named, Ray gives these commands a connection of their own, and its own one rests.
    assert config["auth"]["ssh_private_key"]


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_who_starts_a_cluster_is_told_of_the_packages_that_its_head_gets(cloud: str) -> None:
    config = yaml.safe_load((ROOT / f"deploy/{cloud}/cluster.yaml").read_text())
    by_launcher = config["head_setup_commands"][-1]
    pins = re.findall(r"\S+==\S+", by_launcher)
    docs = (ROOT / "docs" / "operations.md").read_text()
    told = [re.findall(r"\S+==\S+", block) for block in re.split(r"\n\n", docs)]
    assert pins in told
    # Ray asks packages that are not there for it.
    assert cloud != "azure" or config["provider"]["subscription_id"]


def test_every_file_names_the_ray_and_the_python_that_are_tested() -> None:
    files = [ROOT / name for name in CLUSTERS] + [
        path for path in (ROOT / "deploy").rglob("*") if path.is_file()
    ]
    images, pythons, rays = set(), set(), set()
    for path in files:
        text = path.read_text()
        images |= set(re.findall(r"rayproject/ray:([\d.]+-py\d+)", text))
        pythons |= set(re.findall(r"python(3\.\d+)", text))
        rays |= set(re.findall(r"rayVersion: (\S+)", text))
    assert images == {f"{PINS['ray']}-py{PYTHON.replace('.', '')}"}
    assert pythons == {PYTHON}
    assert rays == {PINS["ray"]}


def test_the_runtime_env_has_what_bertray_needs_as_it_is_tested() -> None:
    file = yaml.safe_load((ROOT / "deploy" / "runtime-env.yaml").read_text())
    RuntimeEnv(**file)  # Ray's own check
    assert "env_vars" not in file
    listed = dict(package.split("==") for package in file["pip"]["packages"])
    assert listed == {name: PINS[name] for name in listed}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(each).name.lower() for each in project["dependencies"]} - {"ray"}
    assert needed <= {name.lower() for name in listed}
