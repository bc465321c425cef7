"""Train on a spot machine: python -m lifecycle.cloud.ec2 train --image-tag TAG [--types g4dn.xlarge,g5.xlarge]

One machine of the stack's launch template (no way in, IMDSv2 only, least rights), of the type and zone among those
named that has the most free capacity. It runs the training container on data in S3 (a packed data set is
streamed to a detector's trainer, files are copied first), keeps checkpoints there, stops with one when AWS wants it
back, and terminates itself when it is done, idle, or at its last hour. The same --job again goes on. status tells what
became of it, stop terminates it, fetch brings the artifact back.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifecycle.cloud.artifact import fetch
from lifecycle.cloud.container import DETECTORS, TABLE
from lifecycle.cloud.jobs import Job, add_later_commands, add_options, job_of, model_of
from lifecycle.cloud.stack import NAME, PROJECT, outputs
from utils.aws import client, coded, error_of
from utils.errors import JobFailed, NoCapacity
from utils.exits import Exit, command, command_parser
from utils.places import place
from utils.settings import load_settings

SCRIPT = Path(__file__).parents[2] / "deploy" / "aws" / "train.sh"
TYPES = ("g4dn.xlarge", "g5.xlarge", "g4dn.2xlarge", "g5.2xlarge")
TAG = "job"
IDLE_MINUTES = 60
_POLL_SECONDS = 5  # AWS asks for that; the notice comes two minutes before the end


def user_data(job: Job, region: str, table: str = "") -> str:
    """The script of deploy/aws/train.sh, with what it must know above it.

    Args:
        table: of a packed data set that is read from S3; empty: the machine copies the data set.
    """
    known = {
        "JOB": job.name,
        "DATA": job.data,
        "TABLE": table,
        "CHECKPOINTS": job.checkpoints,
        "MODEL": job.model,
        "IMAGE": job.image,
        "REGION": region,
        "LOGS": job.made["TrainLogs"],
        "HYPERPARAMETERS": json.dumps(dict(job.hyperparameters)),
        "MAX_MINUTES": str(int(job.run_hours * 60)),
        "IDLE_MINUTES": str(IDLE_MINUTES),
        "ROOT": "/opt/ml",
        "POLL_SECONDS": str(_POLL_SECONDS),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in known.items()]
    return "\n".join(["#!/bin/bash", *lines, SCRIPT.read_text(encoding="utf-8")])


def streamed(job: Job) -> str:
    """The table that the trainer reads from S3 as it is; empty: the data set, or the training, needs files.

    Raises:
        FileMissing: there is no data set; better told now than by a machine that is paid.
    """
    with place(job.data).open(TABLE) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        first = next(csv.DictReader(text), {})
    is_packed = bool(first.get("shard"))
    return f"{job.data.rstrip('/')}/{TABLE}" if is_packed and job.hyperparameters.get("train") in DETECTORS else ""


def fleet_of(job: Job, template: str, types: Sequence[str], *, spot: bool) -> dict[str, Any]:
    """What CreateFleet is asked for: one machine, at once, of any of these types in any of the stack's zones."""
    subnets = job.made["Subnets"].split(",")
    overrides = [{"InstanceType": kind, "SubnetId": subnet} for kind in types for subnet in subnets]
    asked: dict[str, Any] = {
        "Type": "instant",
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": 1,
            "DefaultTargetCapacityType": "spot" if spot else "on-demand",
        },
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"},
                "Overrides": overrides,
            }
        ],
        "TagSpecifications": [
            {
                "ResourceType": "instance",
                "Tags": [{"Key": PROJECT, "Value": job.stack}, {"Key": TAG, "Value": job.name}],
            }
        ],
    }
    if spot:
        asked["SpotOptions"] = {
            "AllocationStrategy": "capacity-optimized",
            "InstanceInterruptionBehavior": "terminate",
            "MinTargetCapacity": 1,
        }
    return asked


def start(job: Job, types: Sequence[str], *, spot: bool = True) -> str:
    """Ask for the machine. Its id.

    Raises:
        NoCapacity: none of the types is there in any zone; nothing was started, and nothing stays.
    """
    ec2 = client("ec2")
    template = job.made["TrainTemplateId"]
    script = base64.b64encode(user_data(job, ec2.meta.region_name, streamed(job)).encode()).decode()
    with coded(f"training job {job.name}"):
        versions = ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=["$Latest"])
        data = {**versions["LaunchTemplateVersions"][0]["LaunchTemplateData"], "UserData": script}
        made = ec2.create_launch_template(LaunchTemplateName=job.name, LaunchTemplateData=data)["LaunchTemplate"]
        try:
            answer = ec2.create_fleet(**fleet_of(job, made["LaunchTemplateId"], types, spot=spot))
        finally:  # the machine has its copy
            ec2.delete_launch_template(LaunchTemplateId=made["LaunchTemplateId"])
    started = [each for group in answer.get("Instances", ()) for each in group["InstanceIds"]]
    if started:
        return str(started[0])
    errors = answer.get("Errors", ())
    if not errors:
        raise NoCapacity(f"{job.name}: AWS started no machine and gives no reason; try again")
    first = errors[0]
    raise error_of({"Code": first["ErrorCode"], "Message": first["ErrorMessage"]}, f"training job {job.name}")


def machines(job: str) -> list[dict[str, Any]]:
    """Those of a job that AWS still knows, the newest first."""
    with coded(f"training job {job}"):
        pages = (
            client("ec2")
            .get_paginator("describe_instances")
            .paginate(Filters=[{"Name": f"tag:{TAG}", "Values": [job]}])
        )
        found = [each for page in pages for group in page["Reservations"] for each in group["Instances"]]
    return sorted(found, key=lambda each: each["LaunchTime"], reverse=True)


def status(job: str, model: str) -> str:
    """
    Args:
        model: where its artifact goes.

    Raises:
        JobFailed: it left a reason instead of a model.
    """
    left = {name for name, _ in place(model).names()}
    if "output/model.tar.gz" in left:
        return "trained"
    running = [each for each in machines(job) if each["State"]["Name"] in ("pending", "running")]
    if running:
        return f"{running[0]['InstanceId']} ({running[0]['InstanceType']}) is {running[0]['State']['Name']}"
    if "failure" in left:
        raise JobFailed(f"{job}: {place(model).read('failure').decode(errors='replace')}")
    return "interrupted or not started; the same command with the same --job goes on from its checkpoints"


def stop(job: str) -> int:
    """Terminate its machines. How many there were."""
    running = [each["InstanceId"] for each in machines(job) if each["State"]["Name"] in ("pending", "running")]
    if running:
        with coded(f"training job {job}"):
            client("ec2").terminate_instances(InstanceIds=running)
    return len(running)


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.command == "train":
        job = job_of(arguments)
        machine = start(job, arguments.types, spot=not arguments.on_demand)
        print(f"{machine} trains {job.name}; its log is {job.made['TrainLogs']}, stream {job.name}")
        return Exit.DONE
    model = model_of(outputs(arguments.stack), arguments.job)
    match arguments.command:
        case "status":
            print(f"{arguments.job}: {status(arguments.job, model)}")
        case "stop":
            print(f"{arguments.job}: {stop(arguments.job)} machines end; its last checkpoint in S3 stays")
        case "fetch":
            print(fetch(arguments.job, f"{model}/output/model.tar.gz", load_settings()))
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.ec2", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="start a machine that trains and ends")
    add_options(train)
    train.add_argument(
        "--types", type=lambda text: text.split(","), default=TYPES, help=f"that will do (default: {','.join(TYPES)})"
    )
    train.add_argument("--on-demand", action="store_true", help="no spot machine: dearer, and never interrupted")
    for each in add_later_commands(commands):
        each.add_argument("--stack", default=NAME, help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
