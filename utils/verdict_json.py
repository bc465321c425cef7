"""The verdict and errors as JSON, and the JSON Schema of a verdict, generated from the type."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from pydantic import TypeAdapter

from utils.contracts import PUBLIC_FEATURES, Json, Verdict
from utils.errors import VerifyError


def verdict_dict(verdict: Verdict) -> dict[str, Json]:
    return dataclasses.asdict(verdict)


def numbers_of(verdict: Mapping[str, Json]) -> dict[str, float | None]:
    """Of a verdict as JSON: the nine public numbers, then its signals. Older verdicts may lack some."""
    return {**{name: verdict.get(name) for name in PUBLIC_FEATURES}, **verdict["signals"]}


def error_dict(source: str, error: VerifyError, job_id: str | None = None) -> dict[str, Json]:
    return {"job_id": job_id, "source": source, "error": {"code": error.code, "message": str(error)}}


def json_schema() -> dict[str, Json]:
    """JSON Schema (draft 2020-12) of what ``verdict_dict`` gives."""
    schema = TypeAdapter(Verdict).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "img_ml_verify verdict", **schema}


def dump(value: Json, *, pretty: bool = False) -> str:
    """One line unless ``pretty``. NaN cannot occur: a missing number is null.

    A byte of a file name that is not UTF-8, which Python holds as a lone surrogate, becomes JSON's escape of it.
    """
    text = json.dumps(value, indent=2 if pretty else None, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()
