"""The web page's own files. Knows nothing of verdicts; what the page does is in api/static/."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from utils.errors import NotFound

STATIC = Path(__file__).with_name("static")

router = APIRouter(include_in_schema=False)


def _page_files() -> dict[str, tuple[bytes, str, str]]:
    """File name -> content, type, entity tag. Read once: a request's path never reaches the file system."""
    types = {".js": "text/javascript"}  # what mimetypes says depends on the machine
    return {
        path.name: (
            (content := path.read_bytes()),
            types.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        )
        for path in STATIC.iterdir()
    }


_PAGE = _page_files()


@router.get("/")
async def get_page(request: Request) -> Response:
    return await get_static(request, "index.html")


@router.get("/favicon.ico")
async def get_icon(request: Request) -> Response:
    return await get_static(request, "icon.svg")


@router.get("/static/{name}")
async def get_static(request: Request, name: str) -> Response:
    if name not in _PAGE:
        raise NotFound("no such page")
    content, kind, tag = _PAGE[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache"}  # asked again, and mostly answered 304
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)
