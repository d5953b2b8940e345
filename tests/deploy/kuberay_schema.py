"""What KubeRay's API server takes, as strictly as the server: an unknown field is an error.

`SPECS` holds the fields of KubeRay 1.6 and 1.7 that deploy/kuberay/ may use, written down by hand;
pods are checked against Kubernetes' own schemas (package kubernetes-validate). The CRDs of a whole
release are several megabytes: `pytest tests/deploy --kuberay-crds FOLDER` takes them instead, from
KubeRay's ray-operator/config/crd/bases. Last done with 1.7.0, and with 1.6.2, which refuses
`timeZone` alone.
"""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = "1.33"
DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs"
Schema = dict[str, Any]

TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def _of(*required: str, **properties: Schema) -> Schema:
    """An object of these fields alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _choice(*values: str) -> Schema:
    return {"enum": list(values)}


def _core(kind: str) -> Schema:
    return {"$ref": f"{DEFINITIONS}/io.k8s.api.core.v1.{kind}"}


_GROUP = {"rayStartParams": TEXTS, "labels": TEXTS, "template": _core("PodTemplateSpec")}
CLUSTER = _of(
    "headGroupSpec",
    rayVersion=TEXT,
    suspend=FLAG,
    authOptions=_of(mode=_choice("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_of(
        version=_choice("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=_choice("Default", "Aggressive", "Conservative"),
        resources=_core("ResourceRequirements"),
        securityContext=_core("SecurityContext"),
    ),
    headGroupSpec=_of("template", serviceType=TEXT, **_GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": _of(
            *("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            **_GROUP,
        ),
    },
)
JOB = _of(
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    metadata=TEXTS,
    entrypointNumCpus={"type": "number"},
    submissionMode=_choice("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    submitterPodTemplate=_core("PodTemplateSpec"),
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    suspend=FLAG,
    rayClusterSpec=CLUSTER,
)
CRON = _of("schedule", "jobTemplate", schedule=TEXT, timeZone=TEXT, suspend=FLAG, jobTemplate=JOB)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayCronJob": CRON}
# Of Prometheus' operator: fields of its PodMonitor, from its API's reference.
LABELS = {"$ref": f"{DEFINITIONS}/io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"}
TIME = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
MONITOR = _of(
    *("selector", "podMetricsEndpoints"),
    selector=LABELS,
    jobLabel=TEXT,
    podTargetLabels={"type": "array", "items": TEXT},
    namespaceSelector=_of(any=FLAG, matchNames={"type": "array", "items": TEXT}),
    podMetricsEndpoints={
        "type": "array",
        "items": _of(
            port=TEXT,
            path=TEXT,
            scheme=_choice("http", "https"),
            interval=TIME,
            scrapeTimeout=TIME,
            honorLabels=FLAG,
        ),
    },
)


def faults(thing: dict[str, Any], *, crds: Path | None = None) -> list[str]:
    """What is wrong with one of KubeRay's objects; each with its place.

    Args:
        thing: of kind RayCluster, RayJob, RayCronJob or PodMonitor.
        crds: a folder of KubeRay's own definitions, to be used instead of `SPECS`.
    """
    if thing["kind"] == "PodMonitor":
        version, spec = "monitoring.coreos.com/v1", MONITOR
    else:
        version = "ray.io/v1"
        spec = SPECS[thing["kind"]] if crds is None else _from_crd(crds, thing["kind"])
    whole = _of(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version},
        kind={"const": thing["kind"]},
        metadata={"$ref": f"{DEFINITIONS}/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
        spec=spec,
    )
    checker = Draft202012Validator(whole, registry=_kubernetes())
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(thing)]


@cache
def _kubernetes() -> Registry[Any]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema"
    definitions = folder / f"v{KUBERNETES}.0-local-strict" / "_definitions.json"
    return Resource.from_contents(json.loads(definitions.read_text())) @ Registry()


@cache
def _from_crd(folder: Path, kind: str) -> Schema:
    definition = yaml.safe_load((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    return _strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def _strict(schema: Any) -> Any:
    """Kubernetes' structural schema as JSON Schema that refuses what the server refuses."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items() if key != "description"}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
    if isinstance(strict.get("properties"), dict) and strict.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict
