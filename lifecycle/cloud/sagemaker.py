"""Train on SageMaker: python -m lifecycle.cloud.sagemaker train|status|stop|fetch

train starts a managed spot job with the stack's role, bucket, key and network, and follows its log and progress;
checkpoints go to S3, so an interrupted job goes on by itself. The container has no network of its own. fetch brings the
artifact back, checks every hash and registers a release that it holds. --on-demand trains without spot machines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.cloud.artifact import fetch
from lifecycle.cloud.jobs import MEASURED, Job, add_later_commands, add_options, job_of
from lifecycle.cloud.stack import PROJECT
from utils.aws import client, coded
from utils.errors import JobFailed, NoCapacity
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings

LOGS = "/aws/sagemaker/TrainingJobs"
DEFAULT_TYPE = "ml.g4dn.xlarge"
_WAIT_SECONDS = 15.0
_ENDED = ("Completed", "Failed", "Stopped")


def request_of(job: Job, kind: str, *, spot: bool, network: bool) -> dict[str, Any]:
    """What CreateTrainingJob is asked for.

    Args:
        kind: of the machine.
        network: whether it runs in the stack's network.
    """
    stopping = {"MaxRuntimeInSeconds": int(job.run_hours * 3600)}
    if spot:
        stopping["MaxWaitTimeInSeconds"] = int(job.wait_hours * 3600)
    key = job.made["KeyArn"]
    asked: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": job.made["TrainRoleArn"],
        "HyperParameters": dict(job.hyperparameters),
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "FastFile",  # read from S3 as a stream, not copied first
            "MetricDefinitions": [{"Name": name, "Regex": f'"{name}": ([0-9.eE+-]+)'} for name in MEASURED],
        },
        "InputDataConfig": [
            {
                "ChannelName": "training",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": job.data.rstrip("/") + "/",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{job.made['Bucket']}/models", "KmsKeyId": key},
        "CheckpointConfig": {"S3Uri": job.checkpoints},
        "ResourceConfig": {"InstanceType": kind, "InstanceCount": 1, "VolumeSizeInGB": 100, "VolumeKmsKeyId": key},
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": spot,
        "EnableNetworkIsolation": True,
        "Environment": {"IMGV_METRICS_SECONDS": "60"},
        "Tags": [{"Key": PROJECT, "Value": job.stack}],
    }
    if network:
        subnets = job.made["Subnets"].split(",")
        asked["VpcConfig"] = {"SecurityGroupIds": [job.made["TrainGroup"]], "Subnets": subnets}
    return asked


def start(job: Job, kind: str, *, spot: bool = True, network: bool = True) -> None:
    asked = request_of(job, kind, spot=spot, network=network)
    if kind.split(".")[1].startswith(("g", "p")) and "d" in kind.split(".")[1]:
        del asked["ResourceConfig"]["VolumeKmsKeyId"]  # types with disks of their own encrypt those, and take no key
    with coded(f"training job {job.name}"):
        client("sagemaker").create_training_job(**asked)


def describe(name: str) -> Mapping[str, Any]:
    with coded(f"training job {name}"):
        found: Mapping[str, Any] = client("sagemaker").describe_training_job(TrainingJobName=name)
    return found


def follow(name: str) -> Mapping[str, Any]:
    """Print the log and each new state until the job ends.

    Raises:
        NoCapacity: no machine was found within the wait.
        JobFailed: it failed, or was stopped; the message has its own reason.
    """
    shown, state = 0, ""
    while True:
        job = describe(name)
        shown += _show_log(name, shown)
        if job["SecondaryStatus"] != state:
            state = job["SecondaryStatus"]
            print(f"{name}: {state}", file=sys.stderr)
        if job["TrainingJobStatus"] in _ENDED:
            _check(name, job)
            return job
        time.sleep(_WAIT_SECONDS)


def _check(name: str, job: Mapping[str, Any]) -> None:
    if job["TrainingJobStatus"] == "Completed":
        return
    reason = job.get("FailureReason") or job["SecondaryStatus"]
    if "CapacityError" in reason or job["SecondaryStatus"] == "MaxWaitTimeExceeded":
        raise NoCapacity(f"{name}: {reason}; try another --type, or --on-demand")
    raise JobFailed(f"{name} {job['TrainingJobStatus'].lower()}: {reason}")


def _show_log(name: str, shown: int) -> int:
    """How many lines were new."""
    logs = client("logs")
    try:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=LOGS, logStreamNamePrefix=f"{name}/")
        events = [each for page in pages for each in page["events"]]
    except logs.exceptions.ResourceNotFoundException:  # nothing was printed yet
        return 0
    for each in events[shown:]:
        print(each["message"].rstrip("\n"))
    return max(0, len(events) - shown)


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    name = arguments.job
    match arguments.command:
        case "train":
            job = job_of(arguments)
            start(job, arguments.type, spot=not arguments.on_demand, network=not arguments.no_network)
            print(f"started {job.name}")
            if not arguments.detach:
                follow(job.name)
                print(f"{job.name} is trained; next: python -m lifecycle.cloud.sagemaker fetch {job.name}")
        case "status":
            found = describe(name)
            seconds = found.get("BillableTimeInSeconds", 0)
            print(f"{name}: {found['TrainingJobStatus']}, {found['SecondaryStatus']}, {seconds} s are billed")
            if found["TrainingJobStatus"] in _ENDED:
                _check(name, found)
        case "stop":
            with coded(f"training job {name}"):
                client("sagemaker").stop_training_job(TrainingJobName=name)
            print(f"{name} stops within two minutes; its checkpoints stay")
        case "fetch":
            found = describe(name)
            _check(name, found)
            print(fetch(name, found["ModelArtifacts"]["S3ModelArtifacts"], load_settings()))
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.sagemaker", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="start a job and follow it")
    add_options(train)
    train.add_argument("--type", default=DEFAULT_TYPE, help="of the machine (default: %(default)s)")
    train.add_argument("--on-demand", action="store_true", help="no spot machine: dearer, and never interrupted")
    train.add_argument("--no-network", action="store_true", help="outside of the stack's network")
    train.add_argument("--detach", action="store_true", help="do not follow it")
    add_later_commands(commands)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
