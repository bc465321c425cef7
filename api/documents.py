"""The OpenAPI document: what FastAPI cannot see in routes that read their own bodies. Serves nothing."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.problems import MEDIA_TYPE
from api.schemas import BatchLine, Problem
from utils.errors import classes_by_code

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_FILE = {"type": "string", "format": "binary", "description": "the image: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF"}
_EXAMPLE_URL = "https://example.org/photo.jpg"


def _problems() -> dict[int | str, dict[str, Any]]:
    codes: dict[int, list[str]] = {405: ["bad_request"], 500: ["internal"]}
    for code, error in sorted(classes_by_code().items()):
        if "http_status" in vars(error):  # the others are 500, and say "internal" to a caller
            codes.setdefault(error.http_status, []).append(code)
    return {
        status: {"description": "codes: " + ", ".join(names), "content": _PROBLEM}
        for status, names in sorted(codes.items())
    }


PROBLEMS = _problems()
ACCEPTED: dict[str, Any] = {
    "description": "taken; ask for the job",
    "headers": {"Location": {"schema": {"type": "string"}, "description": "the job's address"}},
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobAnswer"}}},
}


def body_of(contents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in contents.items()}
    return {"requestBody": {"required": True, "content": content}}


def image_body(model: type[BaseModel], *, many: bool = False) -> dict[str, Any]:
    """One image, or many, in every form that api/intake.py reads."""
    example: dict[str, Any] = {"url": _EXAMPLE_URL}
    files: dict[str, Any] = {"type": "array", "items": _FILE, "minItems": 1} if many else _FILE
    form: dict[str, Any] = {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {"file": files, "artifacts": {"type": "boolean"}, "stability": {"type": "boolean"}},
    }
    body = {"application/json": inlined(model.model_json_schema()), "multipart/form-data": form}
    if not many:
        form["properties"]["async"] = {"type": "boolean"}
        body |= {"application/octet-stream": _FILE}
    documented = body_of(body)
    shown = {"images": [example], "artifacts": False} if many else example
    documented["requestBody"]["content"]["application/json"]["example"] = shown
    return documented


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Without $defs: a request body stands alone, and a definition of ours is used once."""
    definitions = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            if name := str(value.get("$ref", "")).removeprefix("#/$defs/"):
                return resolved(definitions[name])
            return {key: resolved(each) for key, each in value.items()}
        return [resolved(each) for each in value] if isinstance(value, list) else value

    done: dict[str, Any] = resolved(schema)
    return done


def finish_openapi(app: FastAPI) -> None:
    """Add the parts that no response model names, and the ways to give a key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = made.setdefault("components", {})
            for model in (Problem, BatchLine):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                components["schemas"] |= own.pop("$defs", {}) | {model.__name__: own}
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            made["security"] = [{"bearer": []}, {"key": []}, {}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents
