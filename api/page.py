"""The web page's own files, and the reference at /docs and /redoc. Knows nothing of verdicts; see api/static/."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")

mimetypes.add_type("text/javascript", ".js")  # what the machine's own table says may be anything

router = APIRouter(include_in_schema=False)


class Assets(StaticFiles):
    """Files that a browser asks for again each time, and is mostly answered 304."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


assets = Assets(directory=STATIC)
reference = Assets(packages=[("fastapi_offline", "static")])  # Swagger UI and ReDoc, carried by a package

# ReDoc draws by style elements of its own making. Scripts stay ours, and nothing is fetched from elsewhere.
_REDOC_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)


@router.get("/")
async def get_page(request: Request) -> Response:
    return await assets.get_response("index.html", request.scope)


@router.get("/docs")
async def get_docs(request: Request) -> Response:
    return await assets.get_response("docs.html", request.scope)


@router.get("/redoc")
async def get_redoc(request: Request) -> Response:
    response = await assets.get_response("redoc.html", request.scope)
    response.headers["Content-Security-Policy"] = _REDOC_POLICY
    return response


@router.get("/favicon.ico")
async def get_icon(request: Request) -> Response:
    return await assets.get_response("icon.svg", request.scope)
