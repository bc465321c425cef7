"""Every failure we know, sorted by what a queue must do with it.

InputError      the caller's image: answer once, acknowledge, never retry
TransientError  the world: retried with backoff, bounded
SetupError      us: refuse to start

Anything else that is raised is a bug. A code is public and never changes its meaning; the message is one line for a
person and names the next step. docs/errors.md lists them all (a test compares).
"""

from __future__ import annotations

from typing import ClassVar


class VerifyError(Exception):
    """Base of all coded failures. Raise the narrowest subclass."""

    code: ClassVar[str]

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


class FileMissing(InputError):
    code = "file_not_found"


class EmptyInput(InputError):
    code = "empty_input"


class NotAnImage(InputError):
    code = "not_an_image"


class UnsupportedFormat(InputError):
    code = "unsupported_format"


class Undecodable(InputError):
    code = "undecodable"


class ImageTooLarge(InputError):
    """More pixels than the limit; known from the header, before anything is decoded."""

    code = "image_too_large"


class TooManyBytes(InputError):
    code = "too_many_bytes"


class DecoderKilled(InputError):
    """The decoding child went over its memory or time limit, or crashed."""

    code = "decoder_killed"


class UrlRefused(InputError):
    """The URL, or an address it leads to, is not one we connect to."""

    code = "url_refused"


class UrlNotFound(InputError):
    """The server answered, for good, that it will not serve this image (4xx)."""

    code = "url_not_found"


class BadMessage(InputError):
    """A queue entry that is not a job we understand."""

    code = "bad_message"


class PathRefused(InputError):
    """A queued path that is not below a folder the operator opened to jobs."""

    code = "path_refused"


class DeadlinePassed(InputError):
    """The caller's own deadline came before an answer."""

    code = "deadline_passed"


class BadRequest(InputError):
    """An HTTP request that does not follow docs/api.md."""

    code = "bad_request"


class Unauthorized(InputError):
    code = "unauthorized"


class NotFound(InputError):
    """No such page, job or artifact, or not any more."""

    code = "not_found"


class FetchFailed(TransientError):
    code = "fetch_failed"


class FetchTimeout(TransientError):
    code = "fetch_timeout"


class DeviceBusy(TransientError):
    code = "device_busy"


class QueueFull(TransientError):
    """More jobs wait than the operator allows; the job was not added."""

    code = "queue_full"


class QueueUnreachable(TransientError):
    """The queue's server does not answer."""

    code = "queue_unreachable"


class RateLimited(TransientError):
    """The caller sent more images in a minute than the operator allows one caller."""

    code = "rate_limited"


class WorkerLost(TransientError):
    """Every worker that held the job died or froze: killed for memory, crashed, or shut down too often."""

    code = "worker_lost"


class Internal(TransientError):
    """A bug of ours, as the caller of a queue sees it; the log has the traceback."""

    code = "internal"


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


class FusionMismatch(SetupError):
    """The fusion artifact wants inputs or a schema version that this installation does not produce."""

    code = "fusion_mismatch"


class FusionCorrupt(SetupError):
    code = "fusion_corrupt"


class ScoreNotFinite(SetupError):
    """A network gave NaN or infinity: damaged weights, or a precision too low for it."""

    code = "score_not_finite"
