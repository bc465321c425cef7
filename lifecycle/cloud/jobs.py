"""What every way of training in the cloud is told: where things lie, how long, with which choices. Starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lifecycle.cloud.stack import NAME, outputs

MEASURED = ("step", "loss", "accuracy")  # of a row that a trainer logs


@dataclass(frozen=True, slots=True)
class Job:
    """One training, wherever it runs."""

    name: str
    stack: str
    made: Mapping[str, str]  # outputs of the stack
    data: str
    image: str
    hyperparameters: Mapping[str, str]
    run_hours: float
    wait_hours: float

    @property
    def checkpoints(self) -> str:
        return f"s3://{self.made['Bucket']}/checkpoints/{self.name}"

    @property
    def model(self) -> str:
        return model_of(self.made, self.name)


def model_of(made: Mapping[str, str], job: str) -> str:
    """Where the artifact of a job lies, by the outputs of its stack."""
    return f"s3://{made['Bucket']}/models/{job}"


def add_later_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """The commands about a job that was started, each with its name."""
    said = {"status": "where it stands", "stop": "end it", "fetch": "bring its artifact back"}
    parsers = [commands.add_parser(name, help=text) for name, text in said.items()]
    for each in parsers:
        each.add_argument("job")
    return parsers


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-tag", required=True, metavar="TAG", help="of the image in the stack's train registry")
    parser.add_argument(
        "--job", default="", help="name; a name again goes on from its checkpoints (default: a new one)"
    )
    parser.add_argument("--stack", default=NAME, help="whose bucket, role and network (default: %(default)s)")
    parser.add_argument(
        "--data", default="", metavar="s3://…", help="of lifecycle.cloud.data (default: data in the bucket)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="hyperparameter, such as train=effnet"
    )
    parser.add_argument("--run-hours", type=float, default=6.0, help="that it trains at most (default: %(default)s)")
    parser.add_argument(
        "--wait-hours", type=float, default=24.0, help="that it may take with waiting (default: %(default)s)"
    )


def job_of(arguments: argparse.Namespace) -> Job:
    made = outputs(arguments.stack)
    given = dict(each.partition("=")[::2] for each in arguments.set)
    return Job(
        arguments.job or f"{arguments.stack}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        arguments.stack,
        made,
        arguments.data or f"s3://{made['Bucket']}/data",
        f"{made['TrainRepository']}:{arguments.image_tag}",
        given,
        arguments.run_hours,
        max(arguments.wait_hours, arguments.run_hours),
    )
