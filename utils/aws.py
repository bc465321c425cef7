"""AWS by boto3: its clients, and its failures as ours.

Credentials, profile and region are found as boto3 does; AWS_ENDPOINT_URL leads to another server. boto3 is imported
when a client is made, so nothing else waits for it. Knows no service but what errors look like.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from utils.errors import (
    BadSettings,
    BucketForeign,
    BucketMissing,
    CloudCredentials,
    CloudDenied,
    CloudFailed,
    CloudQuota,
    CloudTokenExpired,
    NoCapacity,
    VerifyError,
)

CONNECTIONS = 32  # of one client: what its callers' threads share

# AWS's codes of every service that we call -> ours, and the next step.
_CODES: Final[Mapping[type[VerifyError], tuple[str, tuple[str, ...]]]] = {
    CloudCredentials: (
        "AWS does not know these credentials: set AWS_PROFILE, or run aws configure",
        (
            *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClientException"),
            *("AuthFailure", "InvalidToken", "InvalidSignatureException", "MissingAuthenticationToken"),
        ),
    ),
    CloudTokenExpired: (
        "the AWS session is over: sign in again (aws sso login, or new temporary keys)",
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
    ),
    CloudDenied: (
        "this AWS identity (aws sts get-caller-identity) lacks a right; docs/aws.md lists what each role needs",
        ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AllAccessDisabled", "403"),
    ),
    BucketMissing: ("there is no such bucket: check the name, or make it with the stack", ("NoSuchBucket",)),
    NoCapacity: (
        "AWS has no machine of these kinds now; nothing was started: allow more kinds or zones, or try later",
        (
            *("InsufficientInstanceCapacity", "InsufficientCapacity", "UnfulfillableCapacity", "CapacityError"),
            *("SpotMaxPriceTooLow", "InsufficientHostCapacity", "InsufficientFreeAddressesInSubnet"),
        ),
    ),
    CloudQuota: (
        "the account's quota does not allow it: ask for more in Service Quotas; nothing was started",
        (
            *("ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"),
            *("MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded", "LimitExceeded"),
        ),
    ),
}
_CLASSES = {code: (cls, step) for cls, (step, codes) in _CODES.items() for code in codes}


def client(service: str, **options: object) -> Any:
    """A client of one service; it may be shared by threads.

    Raises:
        BadSettings: boto3 is not installed, or no region is known.
        CloudCredentials: AWS_PROFILE names none.
    """
    try:
        from botocore.config import Config
    except ImportError as error:
        raise BadSettings("AWS needs boto3: pip install boto3") from error
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=CONNECTIONS,
    )
    with coded(service):
        variables = tuple(sorted(each for each in os.environ.items() if each[0].startswith("AWS_")))
        return _session(variables).client(service, config=config, **options)


@lru_cache(maxsize=1)
def _session(variables: tuple[tuple[str, str], ...]) -> Any:
    """One for as long as the environment stays as it is: a session takes long to make, and remembers credentials."""
    import boto3

    return boto3.Session()


def account() -> str:
    """The number of the account that the credentials belong to."""
    with coded("sts"):
        return str(client("sts").get_caller_identity()["Account"])


@contextmanager
def coded(what: str) -> Iterator[None]:
    """Make AWS's failures ours.

    Args:
        what: that was asked for, for the message.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError as error:
        raise BadSettings("AWS needs boto3: pip install boto3") from error
    try:
        yield
    except ClientError as error:
        raise error_of(error.response.get("Error", {}), what) from error
    except BotoCoreError as error:
        raise _without_answer(error, what) from error
    except ResponseParserError as error:  # it is none of the others
        step = "what answered is not AWS: check proxies and AWS_ENDPOINT_URL, or try again"
        raise CloudFailed(f"{what}: {step} ({str(error)[:200]})") from error


def error_of(said: Mapping[str, str], what: str) -> VerifyError:
    """What an error in an answer of AWS means.

    Args:
        said: ``Code`` and ``Message``.
    """
    code, message = said.get("Code", ""), said.get("Message", "")
    cls, step = _CLASSES.get(code, (CloudFailed, "AWS refused"))
    return cls(f"{what}: {step} ({code}: {message})")


def _without_answer(error: Exception, what: str) -> VerifyError:
    """Of what went wrong before or instead of an answer."""
    name = type(error).__name__
    if name == "NoRegionError":
        return BadSettings(f"{what}: no AWS region is set; set AWS_REGION, such as eu-central-1")
    if "SSO" in name or "TokenRetrieval" in name or "LoginRefresh" in name:
        return CloudTokenExpired(f"{what}: {_CODES[CloudTokenExpired][0]} ({error})")
    if "Credential" in name or name == "ProfileNotFound":
        return CloudCredentials(f"{what}: no usable AWS credentials: set AWS_PROFILE, or run aws configure ({error})")
    return CloudFailed(f"{what}: AWS does not answer; check the network and AWS_ENDPOINT_URL ({error})")


def bucket_client(bucket: str, owner: str = "") -> Any:
    """A client of S3 whose every call names the account that the bucket must belong to.

    A name of a bucket that was deleted is free for everybody: whoever took it would get our data.

    Args:
        owner: number of that account; empty: the one of the credentials.

    Raises:
        BucketMissing, BucketForeign: nothing was sent.
    """
    from botocore.exceptions import ClientError, ParamValidationError

    owner = owner or account()
    s3 = client("s3")
    s3.meta.events.register("provide-client-params.s3", lambda params, **_: {**params, "ExpectedBucketOwner": owner})
    with coded(f"s3://{bucket}"):
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:  # an answer to HEAD has a status and no text
            raise _of_head(error, bucket, owner) or error from error
        except ParamValidationError as error:
            raise BucketMissing(f"s3://{bucket}: no bucket can have this name; check it") from error
    return s3


def _of_head(error: Any, bucket: str, owner: str) -> VerifyError | None:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 404:
        return BucketMissing(f"s3://{bucket}: {_CODES[BucketMissing][0]}")
    if status == 403:
        return BucketForeign(
            f"s3://{bucket} is not a bucket of account {owner}, or this identity may not list it (s3:ListBucket); "
            "check the name and the account (aws sts get-caller-identity); nothing was sent"
        )
    return None
