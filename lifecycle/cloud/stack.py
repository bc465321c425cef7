"""The stack of deploy/aws/stack.yaml: python -m lifecycle.cloud.stack validate|plan|deploy|delete

plan shows what a deploy would change, and changes nothing. deploy makes or updates the stack and follows it; a first
deploy that fails leaves nothing. A parameter that is not --set keeps its value. delete removes everything but the
bucket; --data empties and removes that too, with every version of every file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from utils.aws import bucket_client, client, coded
from utils.errors import BadSettings, StackFailed
from utils.exits import Exit, command, command_parser

TEMPLATE = Path(__file__).parents[2] / "deploy" / "aws" / "stack.yaml"
NAME: Final = "img-ml-verify"  # of the stack, unless another is given
PROJECT: Final = "project"  # tag of everything that belongs to the stack, for the bill
_WAIT_SECONDS = 5.0
_GONE = ("", "DELETE_COMPLETE", "REVIEW_IN_PROGRESS")  # states in which a stack is still to be made


def outputs(name: str = NAME) -> dict[str, str]:
    """What the stack made, by the names of its outputs.

    Raises:
        BadSettings: there is no such stack.
    """
    found = _described(client("cloudformation"), name)
    if found is None or found["StackStatus"] in _GONE:
        raise BadSettings(f"there is no stack {name}; make it: python -m lifecycle.cloud.stack deploy --name {name}")
    return {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", ())}


def validate() -> None:
    """Ask cfn-lint, where it is installed, and CloudFormation.

    Raises:
        StackFailed: the template is not valid.
    """
    if linter := shutil.which("cfn-lint", path=str(Path(sys.executable).parent)) or shutil.which("cfn-lint"):
        found = subprocess.run([linter, str(TEMPLATE)], capture_output=True, text=True)  # noqa: S603 - our template
        if found.returncode:
            raise StackFailed(f"cfn-lint: {found.stdout.strip()}")
    _called(client("cloudformation").validate_template, TemplateBody=_template())
    print(f"{TEMPLATE.name} is valid")


def plan(name: str, given: Mapping[str, str]) -> list[str]:
    """A line for each resource that a deploy would add, change or remove."""
    cloud = client("cloudformation")
    is_new = _status(cloud, name) in _GONE
    change_set = _change_set(cloud, name, given, is_new)
    if change_set is None:
        return []
    lines = []
    for each in change_set["Changes"]:
        change = each["ResourceChange"]
        replaced = ", replaced" if change.get("Replacement") == "True" else ""
        lines.append(f"{change['Action']:<7} {change['LogicalResourceId']} ({change['ResourceType']}){replaced}")
    _called(cloud.delete_change_set, ChangeSetName=change_set["ChangeSetId"])
    if is_new and _status(cloud, name) == "REVIEW_IN_PROGRESS":  # what a plan of a new stack leaves
        _called(cloud.delete_stack, StackName=name)
    return lines


def deploy(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """Make or update the stack. Its outputs.

    Raises:
        StackFailed: the message has the first resource that failed, and why; a stack that was new is gone again.
    """
    cloud = client("cloudformation")
    is_new = _status(cloud, name) in _GONE
    wanted = _wanted(cloud, name, given, is_new)
    wanted["ClientRequestToken"] = uuid.uuid4().hex  # a request that is sent again, its answer lost, is still the same
    try:
        made = (
            _called(cloud.create_stack, OnFailure="DELETE", **wanted)
            if is_new
            else _called(cloud.update_stack, **wanted)
        )
    except StackFailed as error:
        if "No updates are to be performed" not in str(error):
            raise
        print(f"{name} is as the template says; nothing to change")
        return outputs(name)
    status = _follow(cloud, made["StackId"])
    if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        after = "nothing of it is left" if is_new else "the stack is as it was before"
        raise StackFailed(f"{name}: {_first_failure(cloud, made['StackId'])}; {after}")
    return outputs(name)


def delete(name: str, *, data: bool = False) -> None:
    """
    Args:
        data: also the bucket and all that is in it.

    Raises:
        StackFailed: a resource could not be removed.
    """
    cloud = client("cloudformation")
    found = outputs(name)
    bucket, stack = found["Bucket"], _described(cloud, name)
    _called(cloud.delete_stack, StackName=name)
    if stack and _follow(cloud, stack["StackId"]) != "DELETE_COMPLETE":
        raise StackFailed(f"{name}: {_first_failure(cloud, stack['StackId'])}; remove that, then delete again")
    if data:
        _empty(bucket)
        print(f"deleted {name} and s3://{bucket} with all versions of all files")
    else:
        print(f"deleted {name}; s3://{bucket} and its data stay: aws s3 rb --force, or delete --data before")


def _empty(bucket: str) -> None:
    s3 = bucket_client(bucket)
    with coded(f"s3://{bucket}"):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            listed = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            keys = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in listed]
            if keys:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        s3.delete_bucket(Bucket=bucket)


# --- CloudFormation


def _template() -> str:
    return TEMPLATE.read_text(encoding="utf-8")


def _called(call: Any, **given: object) -> Any:
    """CloudFormation has one code for everything that is wrong with a template or its parameters."""
    from botocore.exceptions import ClientError

    with coded("cloudformation"):
        try:
            return call(**given)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationError":
                raise StackFailed(f"CloudFormation refused: {error.response['Error']['Message']}") from error
            raise


def _described(cloud: Any, name: str) -> Mapping[str, Any] | None:
    try:
        return dict(_called(cloud.describe_stacks, StackName=name)["Stacks"][0])
    except StackFailed:  # there is none
        return None


def _status(cloud: Any, name: str) -> str:
    found = _described(cloud, name)
    return found["StackStatus"] if found else ""


def _wanted(cloud: Any, name: str, given: Mapping[str, str], is_new: bool) -> dict[str, Any]:
    """What create_stack, update_stack and create_change_set are told alike."""
    body = _template()
    known = [each["ParameterKey"] for each in _called(cloud.get_template_summary, TemplateBody=body)["Parameters"]]
    if wrong := sorted(set(given) - set(known)):
        raise BadSettings(f"the stack has no parameter {', '.join(wrong)}; it has {', '.join(sorted(known))}")
    kept = [] if is_new else [each for each in known if each not in given]
    return {
        "StackName": name,
        "TemplateBody": body,
        "Parameters": [
            *({"ParameterKey": key, "ParameterValue": value} for key, value in given.items()),
            *({"ParameterKey": each, "UsePreviousValue": True} for each in kept),
        ],
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": PROJECT, "Value": name}],
    }


def _change_set(cloud: Any, name: str, given: Mapping[str, str], is_new: bool) -> Mapping[str, Any] | None:
    """What would change; None: nothing."""
    made = _called(
        cloud.create_change_set,
        ChangeSetName=f"at-{int(time.time() * 1000)}",
        ChangeSetType="CREATE" if is_new else "UPDATE",
        **_wanted(cloud, name, given, is_new),
    )
    while True:
        found: Mapping[str, Any] = _called(cloud.describe_change_set, ChangeSetName=made["Id"])
        if found["Status"] == "CREATE_COMPLETE":
            return found
        if found["Status"] == "FAILED":
            _called(cloud.delete_change_set, ChangeSetName=made["Id"])
            reason = found.get("StatusReason", "")
            if "didn't contain changes" in reason or "No updates" in reason:
                return None
            raise StackFailed(f"{name}: {reason}")
        time.sleep(_WAIT_SECONDS)


def _follow(cloud: Any, stack: str) -> str:
    """Tell what happens until nothing does any more. The stack's last status."""
    told: set[str] = set()
    while True:
        status = _status(cloud, stack) or "DELETE_COMPLETE"
        events = _called(cloud.describe_stack_events, StackName=stack)["StackEvents"]
        for each in reversed(events):
            if each["EventId"] not in told:
                told.add(each["EventId"])
                print(f"{each['ResourceStatus']:<20} {each['LogicalResourceId']}", file=sys.stderr)
        if not status.endswith("_IN_PROGRESS"):
            return status
        time.sleep(_WAIT_SECONDS)


def _first_failure(cloud: Any, stack: str) -> str:
    events = _called(cloud.describe_stack_events, StackName=stack)["StackEvents"]
    failed = [each for each in events if each["ResourceStatus"].endswith("_FAILED")]
    if not failed:
        return "it failed, and CloudFormation does not say why"
    first = failed[-1]  # the newest come first
    return f"{first['LogicalResourceId']} ({first['ResourceType']}): {first.get('ResourceStatusReason', 'no reason')}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    match arguments.command:
        case "validate":
            validate()
        case "plan":
            print("\n".join(plan(arguments.name, dict(arguments.set))) or "nothing to change")
        case "deploy":
            for key, value in deploy(arguments.name, dict(arguments.set)).items():
                print(f"{key:<18} {value}")
        case "delete":
            delete(arguments.name, data=arguments.data)
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.stack", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("validate", help="ask cfn-lint and CloudFormation whether the template is valid")
    for name, said in {"plan": "what a deploy would change", "deploy": "make or update", "delete": "remove"}.items():
        each = commands.add_parser(name, help=said)
        each.add_argument("--name", default=NAME, help="of the stack (default: %(default)s)")
        if name == "delete":
            each.add_argument("--data", action="store_true", help="also the bucket, with all that is in it")
        else:
            each.add_argument("--set", action="append", type=_pair, default=[], metavar="PARAMETER=VALUE")
    return parser.parse_args(argv)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: write PARAMETER=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
