"""Every failure we know, sorted by what a queue must do with it.

InputError      the caller's image: answer once, acknowledge, never retry
TransientError  the world: retried with backoff, bounded
SetupError      us: refuse to start
TrainingError   the data or the course of a training or a measurement: the command ends; no verdict meets it

Anything else that is raised is a bug. A code is public and never changes its meaning; the message is one line for a
person and names the next step. docs/errors.md lists them all (a test compares). ``http_status`` is what the API answers
with (RFC 9110, section 15); api/problems.py writes the rest of that answer.
"""

from __future__ import annotations

from typing import ClassVar


class VerifyError(Exception):
    """Base of all coded failures. Raise the narrowest subclass."""

    code: ClassVar[str]
    http_status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[type[VerifyError], tuple[str]]:
        # Errors cross the decoder's process boundary, so they must rebuild from the message alone.
        return type(self), (self.message,)


class InputError(VerifyError):
    """The caller's image or request is at fault."""


class TransientError(VerifyError):
    """The same request may succeed later."""


class SetupError(VerifyError):
    """This installation is incomplete or inconsistent."""


class TrainingError(VerifyError):
    """A training or a measurement cannot begin or go on: its data or its course is at fault."""


class FileMissing(InputError):
    code = "file_not_found"
    http_status = 404


class EmptyInput(InputError):
    code = "empty_input"
    http_status = 400


class NotAnImage(InputError):
    code = "not_an_image"
    http_status = 415


class UnsupportedFormat(InputError):
    code = "unsupported_format"
    http_status = 415


class Undecodable(InputError):
    code = "undecodable"
    http_status = 422


class ImageTooLarge(InputError):
    """More pixels than the limit; known from the header, before anything is decoded."""

    code = "image_too_large"
    http_status = 422


class TooManyBytes(InputError):
    code = "too_many_bytes"
    http_status = 413


class DecoderKilled(InputError):
    """The decoding child went over its memory or time limit, or crashed."""

    code = "decoder_killed"
    http_status = 422


class UrlRefused(InputError):
    """The URL, or an address it leads to, is not one we connect to."""

    code = "url_refused"
    http_status = 422


class UrlNotFound(InputError):
    """The server answered, for good, that it will not serve this image (4xx)."""

    code = "url_not_found"
    http_status = 422


class BadMessage(InputError):
    """A queue entry that is not a job we understand."""

    code = "bad_message"
    http_status = 400


class PathRefused(InputError):
    """A queued path that is not below a folder the operator opened to jobs."""

    code = "path_refused"
    http_status = 403


class DeadlinePassed(InputError):
    """The caller's own deadline came before an answer."""

    code = "deadline_passed"
    http_status = 504


class BadRequest(InputError):
    """An HTTP request that does not follow docs/api.md."""

    code = "bad_request"
    http_status = 400


class Unauthorized(InputError):
    code = "unauthorized"
    http_status = 401


class Forbidden(InputError):
    """A key that is known and lacks the right."""

    code = "forbidden"
    http_status = 403


class Conflict(InputError):
    """Somebody else changed the same thing meanwhile."""

    code = "conflict"
    http_status = 409


class NotFound(InputError):
    """No such page, job or artifact, or not any more."""

    code = "not_found"
    http_status = 404


# A page that could not be downloaded is 424 and not 502: this server and its workers are well, and a load balancer that
# counts 5xx must not take them out because a caller's URL is dead.
class FetchFailed(TransientError):
    code = "fetch_failed"
    http_status = 424
    retry_after: float | None = None  # seconds that the server asked for


class FetchTimeout(TransientError):
    code = "fetch_timeout"
    http_status = 424


class DeviceBusy(TransientError):
    code = "device_busy"
    http_status = 503


class QueueFull(TransientError):
    """More jobs wait than the operator allows; the job was not added."""

    code = "queue_full"
    http_status = 503


class DiskFull(TransientError):
    """This server's disk does not take what was sent; the log has the reason."""

    code = "disk_full"
    http_status = 503


class QueueUnreachable(TransientError):
    """The queue's server does not answer."""

    code = "queue_unreachable"
    http_status = 503


class RateLimited(TransientError):
    """The caller sent more images in a minute than the operator allows one caller."""

    code = "rate_limited"
    http_status = 429


class WorkerLost(TransientError):
    """Every worker that held the job died or froze: killed for memory, crashed, or shut down too often."""

    code = "worker_lost"
    http_status = 503


class Internal(TransientError):
    """A bug of ours, as the caller of a queue sees it; the log has the traceback."""

    code = "internal"


class NoCapacity(TransientError):
    """The cloud has no machine of the kinds asked for; nothing was started."""

    code = "no_capacity"


class CloudFailed(TransientError):
    """AWS did not answer, or refused for a reason without a code of its own here; the message has its words."""

    code = "cloud_failed"


class ClusterUnreachable(TransientError):
    """Ray's cluster does not start, or does not answer."""

    code = "cluster_unreachable"


class CopyDiffers(TransientError):
    """A copy of a file is not the file: its checksum differs, or it is not there."""

    code = "copy_differs"


class BadSettings(SetupError):
    code = "bad_settings"


class WeightsMissing(SetupError):
    code = "weights_missing"


class WeightsCorrupt(SetupError):
    """The file's sha256 or size is not the one on its card."""

    code = "weights_corrupt"


class WeightsMismatch(SetupError):
    """Keys or shapes differ from the network's."""

    code = "weights_mismatch"


class BackboneMismatch(SetupError):
    """A head was trained on another backbone than the one installed."""

    code = "backbone_mismatch"


class PlanDoesNotFit(SetupError):
    """Detectors were asked for that this machine's memory or disk cannot hold; nothing was downloaded."""

    code = "does_not_fit"


class FusionMismatch(SetupError):
    """The fusion artifact wants inputs or a schema version that this installation does not produce."""

    code = "fusion_mismatch"


class FusionCorrupt(SetupError):
    code = "fusion_corrupt"


class ReleaseUnusable(SetupError):
    """A release or the pointer of its store is missing, damaged, or not for this installation."""

    code = "release_unusable"


class CloudCredentials(SetupError):
    """AWS knows no such key, or there is none."""

    code = "cloud_credentials"


class CloudTokenExpired(SetupError):
    """The AWS session is over."""

    code = "cloud_token_expired"


class CloudDenied(SetupError):
    """The AWS identity lacks a right; the message names the action where AWS does."""

    code = "cloud_denied"


class CloudQuota(SetupError):
    """The AWS account's quota does not allow it; for spot training it often begins at 0."""

    code = "cloud_quota"


class BucketMissing(SetupError):
    code = "bucket_missing"


class BucketForeign(SetupError):
    """The bucket is another account's, or closed to this identity; nothing was sent to it."""

    code = "bucket_foreign"


class StackFailed(SetupError):
    """A CloudFormation stack could not be made as its template says; the message has the first reason."""

    code = "stack_failed"


class ScoreNotFinite(SetupError):
    """A network gave NaN or infinity: damaged weights, or a precision too low for it."""

    code = "score_not_finite"


class TableError(TrainingError):
    """A table of images or features cannot be used; the message says what to change."""

    code = "bad_table"


class DatasetMissing(TrainingError):
    """No labelled images where a command looks for them."""

    code = "dataset_missing"


class DataRefused(TrainingError):
    """A data set that must not be trained on; the message names what is wrong and the lines."""

    code = "data_refused"


class TooFewImages(TrainingError):
    """Fewer images or sources of a label than a threshold or a figure can be made from."""

    code = "too_few_images"


class TrainingDiverged(TrainingError):
    """The loss became NaN or infinite; the last checkpoint stays."""

    code = "training_diverged"


class JobFailed(TrainingError):
    """A training job in the cloud ended without a model; the message has its own reason."""

    code = "job_failed"


def classes_by_code() -> dict[str, type[VerifyError]]:
    """Every code with the class that declares it; a subclass that inherits its code is not listed."""
    found: dict[str, type[VerifyError]] = {}
    waiting: list[type[VerifyError]] = [VerifyError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "code" in vars(cls):
            found.setdefault(cls.code, cls)
    return found
