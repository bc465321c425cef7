"""The stack: a template that linters pass, and what moto can make of it, made and removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lifecycle.cloud import stack
from tests.clouds import point_to, refusing
from utils.aws import client
from utils.emf import NAMESPACE, SHOWN
from utils.errors import BadSettings, StackFailed
from utils.exits import Exit
from utils.settings import variables

ROOT = Path(__file__).parents[3]
TEMPLATE = (ROOT / "deploy" / "aws" / "stack.yaml").read_text()


@pytest.fixture
def cloud(aws, tmp_path, monkeypatch):
    """An account, and the template as moto can take it: no public system images, no routes, which it never removes."""
    text = re.sub(r"/aws/service/\S+", "/system/image", TEMPLATE).replace("RetainExceptOnCreate", "Retain")
    for name in ("Routes", "DefaultRoute", "SubnetARoutes", "SubnetBRoutes", "DataEndpoint"):
        text = re.sub(rf"^  {name}:.*?\n(?=(  \S|\n))", "", text, flags=re.DOTALL | re.MULTILINE)
    template = tmp_path / "stack.yaml"
    template.write_text(text)
    client("ssm").put_parameter(Name="/system/image", Value="ami-12c6146b", Type="String")
    monkeypatch.setattr(stack, "TEMPLATE", template)
    monkeypatch.setattr(stack, "_WAIT_SECONDS", 0.1)
    return client("cloudformation")


class Loader(yaml.SafeLoader):
    """Reads a template; what a function of CloudFormation would give is its argument."""


def argument(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return loader.construct_sequence(node, deep=True)


Loader.add_multi_constructor("!", argument)
RESOURCES = yaml.load(TEMPLATE, Loader)["Resources"]


def test_the_bucket_is_closed_encrypted_and_keeps_versions():
    bucket = RESOURCES["Bucket"]["Properties"]
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    (statement,) = RESOURCES["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_nobody_reaches_a_machine_but_through_the_load_balancer():
    ways_in = {
        name: [rule.get("CidrIp") for rule in each["Properties"].get("SecurityGroupIngress", ())]
        for name, each in RESOURCES.items()
        if each["Type"] == "AWS::EC2::SecurityGroup"
    }
    assert ways_in["WorkerGroup"] == ways_in["TrainGroup"] == []
    assert [name for name, sources in ways_in.items() if any(sources)] == ["BalancerGroup"]
    for each in RESOURCES.values():
        if each["Type"] == "AWS::EC2::LaunchTemplate":
            assert each["Properties"]["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"


def test_alarms_scaling_and_dashboard_name_metrics_that_are_printed():
    named = set(re.findall(r"\bimgv_[a-z_.]+", TEMPLATE))
    printed = {*SHOWN, "imgv_jobs.ok", "imgv_jobs.error", "imgv_train_loss", "imgv_train_accuracy"}
    assert named <= printed | {"imgv_train_interrupted"}
    assert f"Namespace: {NAMESPACE}" in TEMPLATE


def test_every_setting_of_a_container_exists():
    assert set(re.findall(r"\bIMGV_[A-Z_]+", TEMPLATE)) <= set(variables())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cfn_lint_finds_nothing_and_no_rule_is_suppressed():
    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.exists():
        pytest.skip("pip install cfn-lint un-skips it")
    template = str(ROOT / "deploy" / "aws" / "stack.yaml")
    found = subprocess.run([str(linter), template], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    assert "cfn-lint:" not in TEMPLATE  # as a rule is suppressed in Metadata


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkov_finds_nothing_and_every_rule_that_is_skipped_has_its_reason():
    checkov = os.environ.get("CHECKOV") or shutil.which("checkov")
    if not checkov:
        pytest.skip("checkov in a virtual environment of its own, its path in CHECKOV, un-skips it")
    command = [checkov, "-f", "deploy/aws/stack.yaml", "--framework", "cloudformation", "--compact", "--quiet"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LOG_LEVEL": "ERROR"})
    assert found.returncode == 0, found.stdout
    skipped = re.findall(r"- \{ id: (CKV\w+), comment: \"(.*)\" \}", TEMPLATE)
    assert len(skipped) == TEMPLATE.count("id: CKV") > 0
    assert all(len(reason) > 20 for _, reason in skipped)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Tried to parse")
def test_what_moto_can_is_made_and_removed_and_the_docs_list_what_it_cannot(cloud, caplog, capsys):
    assert stack.main(["deploy", "--name", "team"]) == Exit.DONE
    assert "Bucket " in capsys.readouterr().out
    made = stack.outputs("team")
    (role,) = (each for each in client("iam").list_roles()["Roles"] if "TrainRole" in each["RoleName"])
    assert made["TrainRoleArn"] == role["Arn"]
    names = {each["repositoryName"] for each in client("ecr").describe_repositories()["repositories"]}
    assert names == {"team/worker", "team/api", "team/train"}
    logs = client("logs").describe_log_groups(logGroupNamePrefix="/team/")["logGroups"]
    assert {each["logGroupName"] for each in logs} == {"/team/worker", "/team/api", "/team/train"}
    (dashboard,) = client("cloudwatch").list_dashboards()["DashboardEntries"]
    assert dashboard["DashboardName"] == "team"
    s3 = client("s3")
    (rule,) = s3.get_bucket_encryption(Bucket=made["Bucket"])["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    versions = client("ec2").describe_launch_template_versions(LaunchTemplateId=made["TrainTemplateId"])
    template = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert template["MetadataOptions"]["HttpTokens"] == "required"
    assert template["InstanceInitiatedShutdownBehavior"] == "terminate"
    (group,) = client("ec2").describe_security_groups(GroupIds=[made["TrainGroup"]])["SecurityGroups"]
    assert group["IpPermissions"] == []  # no way in

    unsupported = set(re.findall(r"No Moto CloudFormation support for (AWS::\S+)", caplog.text))
    listed = set(re.findall(r"^- `(AWS::\w+::\w+)`", (ROOT / "docs" / "aws.md").read_text(), re.MULTILINE))
    assert listed >= unsupported
    assert not {"AWS::S3::Bucket", "AWS::IAM::Role", "AWS::ECR::Repository", "AWS::Logs::LogGroup"} & listed

    s3.put_object(Bucket=made["Bucket"], Key="data/a", Body=b"1")
    assert stack.main(["delete", "--name", "team", "--data"]) == Exit.DONE
    assert client("ec2").describe_launch_templates()["LaunchTemplates"] == []
    assert not any("team" in each["RoleName"] for each in client("iam").list_roles()["Roles"])
    assert client("ecr").describe_repositories()["repositories"] == []
    assert client("logs").describe_log_groups(logGroupNamePrefix="/team/")["logGroups"] == []
    assert s3.list_buckets()["Buckets"] == []
    with pytest.raises(BadSettings, match="no stack team"):
        stack.outputs("team")


def test_every_deploy_has_a_token_of_its_own_so_that_a_request_may_be_sent_twice(cloud, monkeypatch):
    sent: list[dict[str, object]] = []

    def losing(service: str):
        made = client(service)
        made.create_stack = lambda **asked: sent.append(asked) or {"StackId": "none"}
        return made

    monkeypatch.setattr(stack, "client", losing)
    monkeypatch.setattr(stack, "_follow", lambda *_: "CREATE_COMPLETE")
    monkeypatch.setattr(stack, "outputs", lambda _: {})
    for _ in range(2):
        stack.deploy("team", {})
    tokens = [str(each["ClientRequestToken"]) for each in sent]
    assert len(set(tokens)) == 2 and all(len(each) >= 32 for each in tokens)  # one for each command, not for each try


@pytest.mark.filterwarnings("ignore:Tried to parse")
def test_a_plan_changes_nothing(cloud):
    lines = stack.plan("team", {})
    assert any(line.startswith("Add") and "Bucket (AWS::S3::Bucket)" in line for line in lines)
    assert client("s3").list_buckets()["Buckets"] == []


def test_a_parameter_that_is_none_is_refused_before_anything_is_made(cloud, capsys):
    assert stack.main(["deploy", "--set", "Workers=3"]) == Exit.SETUP
    assert "no parameter Workers" in capsys.readouterr().err
    assert cloud.list_stacks()["StackSummaries"] == []


def test_a_template_that_is_refused_is_told(monkeypatch):
    error = "<Error><Code>ValidationError</Code><Message>Unresolved resource</Message></Error>"
    said = f"<ErrorResponse>{error}</ErrorResponse>"
    with refusing(400, said) as url:
        point_to(monkeypatch, url)
        with pytest.raises(StackFailed, match="Unresolved resource"):
            stack.validate()


def test_the_reason_of_a_failure_is_the_first_one():
    class Cloud:
        def describe_stack_events(self, **_: str) -> dict[str, list[dict[str, str]]]:
            events = [
                ("Api", "CREATE_FAILED", "cancelled"),
                ("Queue", "CREATE_FAILED", "no capacity"),
                ("Key", "CREATE_COMPLETE", ""),
            ]
            names = ("LogicalResourceId", "ResourceStatus", "ResourceStatusReason")
            return {
                "StackEvents": [{**dict(zip(names, each, strict=True)), "ResourceType": "AWS::X"} for each in events]
            }

    assert stack._first_failure(Cloud(), "team") == "Queue (AWS::X): no capacity"


def test_every_role_names_its_actions_and_the_docs_say_why():
    table = (ROOT / "docs" / "aws.md").read_text()
    actions = set(re.findall(r"\b(?:s3|kms|ecr|logs|secretsmanager|cloudwatch|sns):[A-Z][A-Za-z]+", TEMPLATE))
    roles = TEMPLATE[TEMPLATE.index("  StartRole:") : TEMPLATE.index("  TrainProfile:")]
    assert '*"' not in re.sub(r'Resource: "\*"', "", re.sub(r'/\*"', '"', re.sub(r":\*\"", '"', roles)))
    for action in sorted(set(re.findall(r"\b\w+:[A-Z][A-Za-z]+\b", roles)) & actions):
        assert f"`{action}`" in table, action
