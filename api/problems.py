"""Coded errors as HTTP answers: RFC 9457 problem details with our stable codes. Knows no route."""

from __future__ import annotations

import math

from starlette.responses import Response

from utils.contracts import Json
from utils.errors import Internal, RateLimited, VerifyError, classes_by_code
from utils.verdict_json import dump

_RETRY_SECONDS = 2  # after a 503: a batch of images takes about as long
BUG = "a bug of ours, not your image's fault; the server's log has the traceback"
MEDIA_TYPE = "application/problem+json"


class RateExceeded(RateLimited):
    """Knows when the next request will be taken."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def problem(error: VerifyError, request_id: str = "") -> dict[str, Json]:
    """The members of RFC 9457, section 3.1, and the code that docs/errors.md lists."""
    return {
        "type": f"urn:img-ml-verify:error:{error.code}",
        "title": error.code.replace("_", " "),
        "status": error.http_status,
        "detail": error.message,
        "error": error.message,
        "code": error.code,
        "request_id": request_id,
    }


def respond(error: VerifyError, request_id: str = "") -> Response:
    headers = {}
    if isinstance(error, RateExceeded):
        headers["Retry-After"] = str(max(1, math.ceil(error.seconds)))
    elif error.http_status == 503:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    elif error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = dump(problem(error, request_id))
    return Response(body, error.http_status, headers, MEDIA_TYPE)


def coded(code: str, message: str) -> VerifyError:
    """The error that a worker wrote down; ``internal`` for a code that this version does not know."""
    return classes_by_code().get(code, Internal)(message)
