"""cluster.yaml on deploy/aws/stack.yaml against an imitation of AWS, as far as machines that start.

Ray's own launcher asks; what it would then do over ssh is tests/integration's.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
import yaml
from cfnlint.api import lint
from moto import mock_aws
from ray.autoscaler._private.aws import utils as ray_aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

from bertray.score.pool import CPU_PER_THREAD

ROOT = Path(__file__).parents[2]
STACK = (ROOT / "deploy" / "aws" / "stack.yaml").read_text()
OFFICE = "203.0.113.7/32"
# The imitation knows Amazon's own images alone.
KNOWN_IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
Config = dict[str, Any]


CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """An account of one's own; what is asked of it, as a policy writes it, in order."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts its key there
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        _forget_clients()
        boto3.setup_default_session()
        boto3.DEFAULT_SESSION.events.register("before-call.*.*", _note_in(asked))
        yield asked
        boto3.DEFAULT_SESSION = None
        _forget_clients()


@pytest.fixture(scope="module")
def config(calls: list[str]) -> Config:
    """cluster.yaml as `ray up` makes it ready, where the stack has been deployed."""
    deploy_stack()
    ready: Config = _bootstrap_config(CLUSTER, no_config_cache=True)
    return ready


def _forget_clients() -> None:
    """Those that Ray keeps: they would go on asking the account that made them."""
    ray_aws.resource_cache.cache_clear()
    ray_aws.client_cache.cache_clear()


def _note_in(calls: list[str]) -> Any:
    def note(model: Any, **_: object) -> None:
        calls.append(f"{model.service_model.endpoint_prefix}:{model.name}")

    return note


def deploy_stack() -> None:
    vpc = boto3.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {
        "VpcId": vpc,
        "SshCidr": OFFICE,
        "InputBucket": "lake",
        "ModelBucket": "models",
        "OutputBucket": "scored",
    }
    boto3.client("cloudformation").create_stack(
        StackName="bertray",
        TemplateBody=re.sub("/aws/service/deeplearning/.*", KNOWN_IMAGE, STACK),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": given[key]} for key in given],
    )


def start(config: Config, node_type: str, *, kind: str = "worker") -> tuple[Any, Config]:
    """A machine of a type, as AWS describes it, and the provider that it was asked of."""
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    made = provider.create_node_with_resources_and_labels(
        config["available_node_types"][node_type]["node_config"],
        {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type},
        1,
        {},
        {},
    )
    found = boto3.client("ec2").describe_instances(InstanceIds=list(made))
    return provider, found["Reservations"][0]["Instances"][0]


def test_without_the_stack_nothing_is_started_nor_made(calls: list[str]) -> None:
    elsewhere = {**CLUSTER, "provider": {**CLUSTER["provider"], "region": "us-east-1"}}
    before = len(calls)
    with pytest.raises(botocore.exceptions.ClientError, match="LaunchTemplateName"):
        _bootstrap_config(elsewhere, no_config_cache=True)
    assert all(call.startswith("ec2:Describe") for call in calls[before:])


def test_cfn_lint_takes_the_stack() -> None:
    assert lint(STACK, regions=["us-west-2"]) == []


def test_only_ones_own_network_reaches_a_machine_and_only_by_ssh(config: Config) -> None:
    _, head = start(config, "head", kind="head")
    groups = [group["GroupId"] for group in head["SecurityGroups"]]
    found = boto3.client("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"]
    assert len(found) == 1
    for rule in found[0]["IpPermissions"]:
        among_themselves = [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == groups
        by_ssh = (rule.get("FromPort"), rule.get("ToPort")) == (22, 22)
        addresses = [place["CidrIp"] for place in rule["IpRanges"]]
        assert not rule["Ipv6Ranges"]
        assert (among_themselves and not addresses) or (by_ssh and addresses == [OFFICE])


def test_the_whole_internet_is_refused_as_a_network_for_ssh() -> None:
    pattern = re.search(r"AllowedPattern: (.*)", STACK)
    assert pattern is not None
    assert re.search(pattern[1], OFFICE)
    assert not re.search(pattern[1], "0.0.0.0/0")


def test_head_and_workers_have_roles_of_their_own_and_locked_metadata(config: Config) -> None:
    for node_type, role in (("head", "head"), ("gpu-spot", "worker"), ("cpu", "worker")):
        _, machine = start(config, node_type)
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/bertray-{role}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["ray-cluster-name"] == "bertray"
        assert tags[TAG_RAY_USER_NODE_TYPE] == node_type
        disks = [disk["Ebs"]["VolumeId"] for disk in machine["BlockDeviceMappings"]]
        for volume in boto3.client("ec2").describe_volumes(VolumeIds=disks)["Volumes"]:
            assert (volume["Encrypted"], volume["VolumeType"], volume["Size"]) == (True, "gp3", 150)


def test_gpu_workers_are_spot_with_the_same_machine_on_demand_behind_it(config: Config) -> None:
    _, spot = start(config, "gpu-spot")
    _, on_demand = start(config, "gpu-on-demand")
    assert spot["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in on_demand
    assert spot["InstanceType"] == on_demand["InstanceType"]
    kinds = config["available_node_types"]
    assert kinds["gpu-spot"]["resources"] == kinds["gpu-on-demand"]["resources"]
    assert kinds["gpu-spot"]["resources"]["GPU"] == 1
    assert kinds["gpu-spot"]["priority"] > kinds["gpu-on-demand"]["priority"]
    assert kinds["head"]["resources"]["CPU"] == kinds["head"]["resources"]["GPU"] == 0
    assert {name for name, kind in kinds.items() if kind["min_workers"]} == set()


@pytest.mark.parametrize("failed", [(), ("gpu-spot",)])
def test_actors_get_spot_machines_and_others_where_aws_has_no_spot_left(
    config: Config, failed: tuple[str, ...]
) -> None:
    actors = ResourceRequestByCount(
        request=ResourceRequestUtil.make({"GPU": 1, "CPU": CPU_PER_THREAD}), count=3
    )
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=AutoscalingConfig(
                config, skip_content_hash=True
            ).get_node_type_configs(),
            max_num_nodes=1 + config["max_workers"],
            resource_requests=[actors],
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    launched = {launch.instance_type: launch.count for launch in reply.to_launch}
    launched.pop("head", None)  # here there is none yet
    assert launched == {"gpu-on-demand" if failed else "gpu-spot": 3}


def test_a_head_may_do_what_its_autoscaler_asks_for_and_nothing_else(
    config: Config, calls: list[str]
) -> None:
    before = len(calls)
    provider, machine = start(config, "gpu-spot")
    assert machine["InstanceId"] in provider.non_terminated_nodes({})
    provider.set_node_tags(machine["InstanceId"], {"ray-node-status": "up-to-date"})
    provider.terminate_nodes([machine["InstanceId"]])
    asked_for = set(calls[before:])
    ended = boto3.client("ec2").describe_instances(InstanceIds=[machine["InstanceId"]])
    assert ended["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated"

    policy = boto3.client("iam").get_role_policy(RoleName="bertray-head", PolicyName="autoscaler")
    # The imitation gives it as Python writes it.
    statements = ast.literal_eval(policy["PolicyDocument"])["Statement"]
    allowed = {action for statement in statements for action in actions_of(statement)}
    assert allowed == asked_for | {"iam:PassRole"}
    for statement in statements:
        if statement["Sid"] != "Look":
            assert "*" not in resources_of(statement)


def test_storage_may_be_read_where_it_is_input_and_written_where_it_is_output(
    config: Config,
) -> None:
    for role in ("bertray-head", "bertray-worker"):
        attached = boto3.client("iam").list_attached_role_policies(RoleName=role)
        assert len(attached["AttachedPolicies"]) == 1  # none of Amazon's own
        arn = attached["AttachedPolicies"][0]["PolicyArn"]
        version = boto3.client("iam").get_policy_version(PolicyArn=arn, VersionId="v1")
        may: dict[str, set[str]] = {}
        for statement in version["PolicyVersion"]["Document"]["Statement"]:
            for place in resources_of(statement):
                may.setdefault(place.split(":::")[1], set()).update(actions_of(statement))
        assert may["lake"] | may["lake/*"] == {"s3:ListBucket", "s3:GetObject"}
        assert may["scored/*"] >= {"s3:PutObject", "s3:AbortMultipartUpload"}
        assert set(may) == {b + end for b in ("lake", "models", "scored") for end in ("", "/*")}


def test_the_security_page_lists_every_permission_there_is() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`((?:ec2|s3|iam):\w+)`", page))
    actions = [line for line in STACK.splitlines() if line.lstrip().startswith("Action:")]
    assert named == set(re.findall(r"(?:ec2|s3|iam):\w+", "\n".join(actions)))


def actions_of(statement: dict[str, Any]) -> list[str]:
    action = statement["Action"]
    return [action] if isinstance(action, str) else action


def resources_of(statement: dict[str, Any]) -> list[str]:
    resource = statement["Resource"]
    return [resource] if isinstance(resource, str) else resource
