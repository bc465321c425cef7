"""Training in the cloud: every option of the requests that go out, the artifact back, and nothing left of a failure."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import stat
import subprocess
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lifecycle.cloud import ec2, sagemaker
from lifecycle.cloud.jobs import Job
from lifecycle.registry import Registry
from tests.clouds import point_to, refusing
from utils.aws import client
from utils.errors import CopyDiffers, FileMissing, JobFailed, NoCapacity, VerifyError
from utils.exits import Exit
from utils.persistence import sha256_file
from utils.places import place
from utils.releases import seal
from utils.settings import Settings

MADE = {
    "Bucket": "data",
    "KeyArn": "arn:aws:kms:eu-central-1:123456789012:key/1",
    "TrainRoleArn": "arn:aws:iam::123456789012:role/train",
    "TrainLogs": "/team/train",
    "TrainRepository": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/team/train",
    "TrainGroup": "sg-1",
    "Subnets": "subnet-1,subnet-2",
}


def job(**made: str) -> Job:
    return Job(
        "team-1", "team", {**MADE, **made}, "s3://data/data", "repo/train:1", {"train": "effnet", "steps": "9"}, 2, 8
    )


@pytest.fixture
def bucket(aws):
    client("s3").create_bucket(Bucket="data", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return place("s3://data")


def packed(folder: Path, trained: str = "effnet", **changed: str) -> bytes:
    """What the container leaves in /opt/ml/model, as SageMaker packs it."""
    (folder / "job.json").unlink(missing_ok=True)
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    said = {"trained": trained, "hyperparameters": {"steps": "9"}, "code": "abc", "files": {**files, **changed}}
    (folder / "job.json").write_text(json.dumps(said))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, ".")
    return packed.getvalue()


# --- SageMaker


def test_a_spot_job_is_asked_for_with_every_option(bucket, monkeypatch):
    sent: list[dict[str, object]] = []

    def record(service: str, **options: object):
        made = client(service, **options)
        made.meta.events.register("before-call.sagemaker.CreateTrainingJob", lambda params, **_: sent.append(params))
        return made

    monkeypatch.setattr(sagemaker, "client", record)
    sagemaker.start(job(), "ml.c5.xlarge")
    asked = json.loads(sent[0]["body"])
    assert asked["EnableManagedSpotTraining"] is True
    assert asked["EnableNetworkIsolation"] is True
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 28800}
    assert asked["CheckpointConfig"] == {"S3Uri": "s3://data/checkpoints/team-1"}
    assert asked["OutputDataConfig"] == {"S3OutputPath": "s3://data/models", "KmsKeyId": MADE["KeyArn"]}
    assert asked["ResourceConfig"]["VolumeKmsKeyId"] == MADE["KeyArn"]
    assert asked["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    assert asked["Tags"] == [{"Key": "project", "Value": "team"}]
    assert asked["HyperParameters"] == {"train": "effnet", "steps": "9"}
    row = '{"step": 20, "seconds": 1.5, "rate": 0.001, "loss": 0.693, "accuracy": 0.5}'
    found = {
        each["Name"]: float(re.search(each["Regex"], row)[1])  # type: ignore[index]
        for each in asked["AlgorithmSpecification"]["MetricDefinitions"]
    }
    assert found == {"step": 20, "loss": 0.693, "accuracy": 0.5}
    assert sagemaker.describe("team-1")["RoleArn"] == MADE["TrainRoleArn"]


def test_on_demand_asks_for_no_spot_machine_and_types_with_own_disks_for_no_key():
    asked = sagemaker.request_of(job(), "ml.g5.xlarge", spot=False, network=False)
    assert asked["EnableManagedSpotTraining"] is False
    assert "MaxWaitTimeInSeconds" not in asked["StoppingCondition"]
    assert "VpcConfig" not in asked
    sent: list[dict[str, object]] = []

    class Cloud:
        def create_training_job(self, **asked: object) -> None:
            sent.append(asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sagemaker, "client", lambda _: Cloud())
        sagemaker.start(job(), "ml.g4dn.xlarge")
    assert "VolumeKmsKeyId" not in sent[0]["ResourceConfig"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("status", "secondary", "reason", "error"),
    [
        ("Failed", "Failed", "AlgorithmError: bad_table: no image", JobFailed),
        ("Failed", "Failed", "CapacityError: Unable to provision requested ML compute capacity", NoCapacity),
        ("Stopped", "MaxWaitTimeExceeded", "", NoCapacity),
        ("Stopped", "Stopped", "", JobFailed),
    ],
)
def test_a_job_that_ends_without_a_model_says_why(status, secondary, reason, error):
    with pytest.raises(error, match=reason.partition(":")[0] or secondary):
        sagemaker._check("team-1", {"TrainingJobStatus": status, "SecondaryStatus": secondary, "FailureReason": reason})


def test_an_unknown_job_and_a_lacking_quota_are_told(monkeypatch):
    body = '{"__type": "ResourceLimitExceeded", "message": "ml.p3.2xlarge for spot training job usage is 0"}'
    with refusing(400, body, "application/x-amz-json-1.1") as url:
        point_to(monkeypatch, url)
        with pytest.raises(VerifyError, match="Service Quotas; nothing was started") as caught:
            sagemaker.start(job(), "ml.p3.2xlarge")
    assert caught.value.code == "cloud_quota"


def test_an_artifact_is_fetched_checked_and_a_release_in_it_registered(
    bucket, lifecycle_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("IMGV_LIFECYCLE_DIR", str(lifecycle_dir))
    made = tmp_path / "model" / "2026-12-01-abcdef01"
    (made / "fusion").mkdir(parents=True)
    (made / "fusion" / "model.json").write_text("{}")
    seal(made, made.name, profile="light", code="abc", data="", weights={})
    sagemaker.start(job(), "ml.c5.xlarge")
    address = sagemaker.describe("team-1")["ModelArtifacts"]["S3ModelArtifacts"]
    artifact = packed(tmp_path / "model", "retrain")
    folder, _, name = address.rpartition("/")
    client("s3").put_object(
        Bucket=folder.split("/")[2], Key="/".join(folder.split("/")[3:]) + f"/{name}", Body=artifact
    )
    assert sagemaker.main(["fetch", "team-1"]) == Exit.DONE
    assert f"registered {made.name} as version 1" in capsys.readouterr().out
    known = Registry(Settings.of(lifecycle_dir=lifecycle_dir)).known(made.name)
    assert known["parameters"] == {"steps": "9", "job": "team-1", "code": "abc"}
    assert sagemaker.main(["status", "team-1"]) == Exit.DONE


def test_a_detector_is_kept_and_an_artifact_that_differs_is_not(bucket, tmp_path, monkeypatch):
    from lifecycle.cloud.artifact import fetch

    settings = Settings.of(lifecycle_dir=tmp_path / "home")
    (tmp_path / "model" / "effnet").mkdir(parents=True)
    (tmp_path / "model" / "effnet" / "weights.safetensors").write_bytes(b"w")
    bucket.write("models/a/output/model.tar.gz", packed(tmp_path / "model"))
    assert "cp -r" in fetch("a", "s3://data/models/a/output/model.tar.gz", settings)
    assert (tmp_path / "home" / "models" / "a" / "effnet" / "weights.safetensors").read_bytes() == b"w"
    bucket.write("models/b/output/model.tar.gz", packed(tmp_path / "model", **{"effnet/weights.safetensors": "0"}))
    with pytest.raises(CopyDiffers, match=r"weights\.safetensors is not as the job wrote it"):
        fetch("b", "s3://data/models/b/output/model.tar.gz", settings)
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == ["a"]


# --- EC2


@pytest.fixture
def template(bucket) -> dict[str, str]:
    cloud = client("ec2")
    data = {"ImageId": "ami-12c6146b", "MetadataOptions": {"HttpTokens": "required"}}
    made = cloud.create_launch_template(LaunchTemplateName="train", LaunchTemplateData=data)["LaunchTemplate"]
    subnets = [each["SubnetId"] for each in cloud.describe_subnets()["Subnets"]][:2]
    bucket.write("data/dataset.csv", b"filepath,label,source\na.png,real,a\n")
    return {"TrainTemplateId": made["LaunchTemplateId"], "Subnets": ",".join(subnets)}


def test_a_spot_machine_is_asked_for_with_every_option(template, monkeypatch):
    sent: list[dict[str, object]] = []

    def record(service: str, **options: object):
        made = client(service, **options)
        for name in ("CreateLaunchTemplate", "CreateFleet"):
            made.meta.events.register(f"provide-client-params.ec2.{name}", lambda params, **_: sent.append(params))
        return made

    monkeypatch.setattr(ec2, "client", record)
    machine = ec2.start(job(**template), ("g4dn.xlarge", "g5.xlarge"))
    made, fleet = sent
    assert fleet["Type"] == "instant"
    assert fleet["SpotOptions"]["AllocationStrategy"] == "capacity-optimized"
    assert fleet["SpotOptions"]["InstanceInterruptionBehavior"] == "terminate"
    assert fleet["TargetCapacitySpecification"] == {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"}
    (config,) = fleet["LaunchTemplateConfigs"]
    pairs = [(each["InstanceType"], each["SubnetId"]) for each in config["Overrides"]]
    subnets = template["Subnets"].split(",")
    assert pairs == [(kind, subnet) for kind in ("g4dn.xlarge", "g5.xlarge") for subnet in subnets]
    (tags,) = fleet["TagSpecifications"]
    assert tags["Tags"] == [{"Key": "project", "Value": "team"}, {"Key": "job", "Value": "team-1"}]
    assert made["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"  # the stack's template
    script = base64.b64decode(made["LaunchTemplateData"]["UserData"]).decode()
    assert "export DATA=s3://data/data" in script and "export MAX_MINUTES=120" in script
    assert [each["InstanceId"] for each in ec2.machines("team-1")] == [machine]
    assert len(client("ec2").describe_launch_templates()["LaunchTemplates"]) == 1  # ours is gone again
    assert "running" in ec2.status("team-1", "s3://data/models/team-1")
    assert ec2.stop("team-1") == 1
    assert "goes on from its checkpoints" in ec2.status("team-1", "s3://data/models/team-1")
    place("s3://data/models/team-1").write("failure", b"job_failed: bad_table: no image")
    with pytest.raises(JobFailed, match="bad_table"):
        ec2.status("team-1", "s3://data/models/team-1")


def test_only_a_detector_on_a_packed_data_set_streams_and_a_missing_one_starts_no_machine(template, bucket):
    files, packed = job(**template), replace(job(**template), data="s3://data/packed/")
    bucket.write(
        "packed/dataset.csv", b"filepath,label,source,shard,offset,bytes\na.png,real,a,images-00000.tar,512,9\n"
    )
    assert ec2.streamed(files) == ""
    assert ec2.streamed(packed) == "s3://data/packed/dataset.csv"
    assert ec2.streamed(replace(packed, hyperparameters={"train": "retrain"})) == ""
    assert ec2.streamed(replace(packed, hyperparameters={})) == ""
    with pytest.raises(FileMissing, match=r"s3://data/none/dataset\.csv"):
        ec2.start(replace(packed, data="s3://data/none"), ec2.TYPES)
    assert ec2.machines("team-1") == []
    assert len(client("ec2").describe_launch_templates()["LaunchTemplates"]) == 1


def test_no_capacity_leaves_nothing(template, monkeypatch):
    def without_capacity(service: str, **options: object):
        made = client(service, **options)
        error = {"ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": "no capacity in eu-central-1a"}
        made.create_fleet = lambda **_: {"Errors": [error], "Instances": []}
        return made

    monkeypatch.setattr(ec2, "client", without_capacity)
    with pytest.raises(NoCapacity, match="nothing was started"):
        ec2.start(job(**template), ec2.TYPES)
    assert len(client("ec2").describe_launch_templates()["LaunchTemplates"]) == 1
    assert ec2.machines("team-1") == []


class Metadata(BaseHTTPRequestHandler):
    """A machine's metadata, version 2 only: no token, no answer."""

    wanted_back = False

    def do_PUT(self) -> None:
        self._answer(200, b"token")

    def do_GET(self) -> None:
        known = self.headers.get("X-aws-ec2-metadata-token") == "token"
        self._answer(200 if known and type(self).wanted_back else 404 if known else 401, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


STUBS = {
    "aws": 'echo "aws $*" >> "$CALLS"',
    "shutdown": 'echo "shutdown $*" >> "$CALLS"',
    "docker": """echo "docker $*" >> "$CALLS"
case "$1 $3" in
  *Running*) [ -e "$CALLS.stopped" ] && echo false || echo "${RUNNING:-true}" ;;
  *ExitCode*) echo "${EXIT_CODE:-0}" ;;
esac
[ "$1" = stop ] && touch "$CALLS.stopped"; true""",
}


PACKED = "s3://data/packed/dataset.csv"
COPIED = "aws s3 sync --only-show-errors s3://data/data "


@pytest.mark.parametrize(
    ("wanted_back", "table", "variables", "expected", "unexpected"),
    [
        (True, "", {}, ["docker stop --time 90 train", COPIED, "shutdown -P now"], ["model.tar.gz", "--dataset"]),
        (False, "", {"RUNNING": "false"}, ["models/team-1/output/model.tar.gz", COPIED], ["docker stop"]),
        (False, "", {"RUNNING": "false", "EXIT_CODE": "3"}, ["models/team-1/failure", COPIED], ["model.tar.gz"]),
        (False, PACKED, {"RUNNING": "false"}, [f"repo/train:1 train --dataset {PACKED}\n"], [COPIED]),
    ],
    ids=["interrupted", "done", "failed", "packed"],
)
def test_the_machine_ends_itself_with_a_checkpoint_whatever_happens(
    tmp_path, wanted_back, table, variables, expected, unexpected
):
    tools, root, calls = tmp_path / "bin", tmp_path / "ml", tmp_path / "calls"
    tools.mkdir()
    for name, body in STUBS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(stat.S_IRWXU)
    (root / "output").mkdir(parents=True)
    (root / "model").mkdir()
    if "EXIT_CODE" in variables:
        (root / "output" / "failure").write_text("job_failed: no")
    script = (
        ec2.user_data(job(), "eu-central-1", table)
        .replace("/opt/ml\n", f"{root}\n")
        .replace("POLL_SECONDS=5", "POLL_SECONDS=0.1")
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Now", (Metadata,), {"wanted_back": wanted_back}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            **variables,
        }
        subprocess.run(["bash", "-c", script], env=environment, timeout=60, check=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    said = calls.read_text()
    assert said.startswith("shutdown -P +120")  # at the latest then
    assert all(each in said for each in expected), said
    assert not any(each in said for each in unexpected), said
    assert said.rstrip().endswith("shutdown -P now")
    assert json.loads((root / "input" / "config" / "hyperparameters.json").read_text()) == {
        "train": "effnet",
        "steps": "9",
    }
