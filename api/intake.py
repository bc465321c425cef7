"""A request's body as images and options: multipart, JSON or the bare file. Knows nothing of what becomes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from api.jobs import Image
from api.schemas import BatchRequest, Extras, Feedback, Item, Options, UrlRequest, VerifyRequest
from ingress.sources import from_base64, is_url, too_many_bytes
from utils.contracts import Json
from utils.errors import BadRequest, DiskFull, TooManyBytes

log = logging.getLogger(__name__)

FILE_FIELDS = ("file", "image", "files", "images")
_MOST_FIELDS = 16  # of a form, besides its files
_MOST_PARTS = 50_000  # of a JSON body; each may cost an object and an error, and base64 has none of their characters
_LONGEST_NAME = 200
_HOW = "send multipart/form-data with `file`, application/json with `url` or `image_base64`, or the bare file"

Body = TypeVar("Body", bound=BaseModel)


async def read_one(request: Request, options: Options, max_bytes: int) -> tuple[Image, Options]:
    """
    Raises:
        BadRequest: not one image, or an option we do not know.
        TooManyBytes: the image is larger than ``max_bytes``.
    """
    kind = _content_type(request)
    if kind == "application/json":
        body = await _json(request, VerifyRequest)
        given = {name: getattr(body, name) for name in body.model_fields_set & Options.model_fields.keys()}
        return await _image(body, max_bytes), options.model_copy(update=given)
    if kind == "multipart/form-data":
        async with _form(request, most_files=1) as form:
            files, fields = _parts(form, FILE_FIELDS)
            url = fields.pop("url", None)
            if len(files) + (url is not None) != 1:
                raise BadRequest(f"a request has one image; {_HOW}")
            options = _validated(Options, options.model_dump(by_alias=True) | fields)
            return await _upload(files[0], max_bytes) if files else _linked(str(url)), options
    if kind.startswith("image/") or kind == "application/octet-stream":
        return _sized("upload", await request.body(), max_bytes), options
    raise BadRequest(f"a body of type {kind or 'none'!r}; {_HOW}")


async def read_url(request: Request) -> Image:
    """
    Raises:
        BadRequest: not JSON with a URL.
    """
    return _linked((await _json(request, UrlRequest)).url)


async def read_feedback(request: Request, max_bytes: int) -> tuple[Feedback, bytes | None]:
    """
    Raises:
        BadRequest: not JSON that names an image and its label.
        TooManyBytes: the image that is sent along is larger than ``max_bytes``.
    """
    feedback = await _json(request, Feedback)
    if feedback.image_base64 is None:
        return feedback, None
    return feedback, (await _image(Item(image_base64=feedback.image_base64), max_bytes)).raw


async def read_json_object(request: Request) -> dict[str, Json]:
    """
    Raises:
        BadRequest: not a JSON object.
    """
    if _content_type(request) != "application/json":
        raise BadRequest("send application/json")
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not JSON: {error}"[:200]) from error
    if not isinstance(found, dict):
        raise BadRequest("send a JSON object")
    return found


async def read_many(
    request: Request, max_bytes: int, most: int
) -> tuple[list[Image | TooManyBytes | BadRequest], Extras]:
    """The images of a batch, a refused one as its error, and what is asked of each.

    Raises:
        BadRequest: not a batch, or more than ``most`` images.
    """
    kind = _content_type(request)
    images: list[Image | TooManyBytes | BadRequest] = []
    if kind == "application/json":
        body = await _json(request, BatchRequest)
        _check_count(body.images, most)
        for item in body.images:
            try:
                images.append(await _image(item, max_bytes))
            except (BadRequest, TooManyBytes) as error:
                images.append(error)
        return images, body
    if kind != "multipart/form-data":
        raise BadRequest("send multipart/form-data with many `file`, or application/json with `images`")
    async with _form(request, most_files=most) as form:
        files, fields = _parts(form, FILE_FIELDS)
        _check_count(files, most)
        for file in files:
            try:
                images.append(await _upload(file, max_bytes))
            except TooManyBytes as error:
                images.append(error)
        return images, _validated(Extras, fields)


def _check_count(given: Sequence[object], most: int) -> None:
    if not 1 <= len(given) <= most:
        raise BadRequest(f"a batch has 1 to {most} images, got {len(given)}")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json(request: Request, model: type[Body]) -> Body:
    raw = await request.body()
    if sum(map(raw.count, (b",", b"{", b"["))) > _MOST_PARTS:
        raise BadRequest(f"JSON of more than {_MOST_PARTS:,} parts; send fewer images at a time")
    try:  # a thread: tens of megabytes of base64 take long enough to be noticed
        return await asyncio.to_thread(model.model_validate_json, raw)
    except ValidationError as error:
        raise _explained(error) from None


def _validated(model: type[Body], fields: object) -> Body:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> BadRequest:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return BadRequest(f"{where}: {first['msg']}" if where else first["msg"])


@asynccontextmanager
async def _form(request: Request, most_files: int) -> AsyncIterator[FormData]:
    """A form whose temporary files are gone afterwards."""
    try:
        form = await request.form(max_files=most_files, max_fields=_MOST_FIELDS)
    except HTTPException as error:  # what Starlette makes of a broken or too large form
        raise BadRequest(f"the form: {error.detail}") from None
    except OSError as error:  # files of a form are kept on the disk while they arrive
        log.error("cannot keep an upload in %s: %s", tempfile.gettempdir(), error.strerror)
        raise DiskFull(
            "this server's disk does not take the upload; try again shortly, or send the bare file"
        ) from None
    try:
        yield form
    finally:
        await form.close()


def _parts(form: FormData, names: Sequence[str]) -> tuple[list[UploadFile], dict[str, str]]:
    files: list[UploadFile] = []
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in names:
                raise BadRequest(f"a file in the field {name!r}; call it `file`")
            files.append(value)
        elif name in fields:
            raise BadRequest(f"the field {name!r} stands twice in the form")
        else:
            fields[name] = value
    return files, fields


async def _upload(file: UploadFile, max_bytes: int) -> Image:
    raw = await file.read()
    return _sized(shown(file.filename or "upload"), raw, max_bytes)


async def _image(item: Item, max_bytes: int) -> Image:
    if (item.url is None) == (item.image_base64 is None):
        raise BadRequest("give one of url and image_base64")
    if item.url is not None:
        return _linked(item.url)
    try:
        raw = await asyncio.to_thread(from_base64, (item.image_base64 or "").encode(), max_bytes)
    except ValueError:
        raise BadRequest("image_base64: not base64 (RFC 4648, without line breaks)") from None
    return Image(shown(item.filename or "upload"), raw=raw)


def _linked(url: str) -> Image:
    if not is_url(url) or not url.isprintable():
        raise BadRequest("url: not an http or https URL")
    return Image(url, url=url)


def _sized(source: str, raw: bytes, max_bytes: int) -> Image:
    if len(raw) > max_bytes:
        raise too_many_bytes(max_bytes)
    return Image(source, raw=raw)


def shown(name: str) -> str:
    """A file's name for people: no folders, nothing that drives a terminal."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable())[:_LONGEST_NAME] or "upload"
