"""Coded errors as HTTP answers: RFC 9457 problem details with our stable codes. Knows no route."""

from __future__ import annotations

import math
from collections.abc import Iterator

from starlette.responses import Response

from utils.contracts import Json
from utils.errors import Internal, RateLimited, VerifyError
from utils.verdict_json import dump

# A page that could not be downloaded is 424 and not 502: this server and its workers are well, and a load balancer that
# counts 5xx must not take them out because a caller's URL is dead.
STATUS = {
    "bad_request": 400,
    "bad_message": 400,
    "empty_input": 400,
    "unauthorized": 401,
    "path_refused": 403,
    "file_not_found": 404,
    "not_found": 404,
    "too_many_bytes": 413,
    "not_an_image": 415,
    "unsupported_format": 415,
    "undecodable": 422,
    "image_too_large": 422,
    "decoder_killed": 422,
    "url_refused": 422,
    "url_not_found": 422,
    "fetch_failed": 424,
    "fetch_timeout": 424,
    "rate_limited": 429,
    "device_busy": 503,
    "queue_full": 503,
    "queue_unreachable": 503,
    "worker_lost": 503,
    "deadline_passed": 504,
}
_RETRY_SECONDS = 2  # after a 503: a batch of images takes about as long
BUG = "a bug of ours, not your image's fault; the server's log has the traceback"
MEDIA_TYPE = "application/problem+json"


class RateExceeded(RateLimited):
    """Knows when the next request will be taken."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def status_of(error: VerifyError) -> int:
    return STATUS.get(error.code, 500)


def problem(error: VerifyError, request_id: str = "") -> dict[str, Json]:
    """The members of RFC 9457, section 3.1, and the code that docs/errors.md lists."""
    return {
        "type": f"urn:img-ml-verify:error:{error.code}",
        "title": error.code.replace("_", " "),
        "status": status_of(error),
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }


def respond(error: VerifyError, request_id: str = "") -> Response:
    headers = {}
    if isinstance(error, RateExceeded):
        headers["Retry-After"] = str(max(1, math.ceil(error.seconds)))
    elif status_of(error) == 503:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    elif status_of(error) == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = dump(problem(error, request_id))
    return Response(body, status_of(error), headers, MEDIA_TYPE)


def coded(code: str, message: str) -> VerifyError:
    """The error that a worker wrote down."""
    for cls in _descendants(VerifyError):
        if cls.__dict__.get("code") == code:
            return cls(message)
    return Internal(message)


def _descendants(cls: type[VerifyError]) -> Iterator[type[VerifyError]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)
