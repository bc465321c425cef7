"""The clients' types follow the OpenAPI document."""

import tomllib

import pytest

from img_ml_verify_client import answers
from scripts.write_clients import PYTHON, TYPESCRIPT, document, files, type_of
from tests.clients.conftest import ROOT
from utils.verdict_json import json_schema


def test_the_types_are_what_the_document_says():
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m scripts.write_clients"


def test_every_schema_and_every_field_of_a_verdict_has_a_type():
    assert all(hasattr(answers, name) for name in document()["components"]["schemas"])
    assert answers.Verdict.__annotations__.keys() == json_schema()["properties"].keys()


@pytest.mark.parametrize(
    ("schema", "python", "typescript"),
    [
        ({"type": "integer"}, "int", "number"),
        ({"enum": ["a", "b"], "type": "string"}, 'Literal["a", "b"]', '"a" | "b"'),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "float | None", "number | null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Reason"}}, "list[Reason]", "Array<Reason>"),
        ({"prefixItems": [{"type": "number"}] * 2, "type": "array"}, "tuple[float, float]", "[number, number]"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "dict[str, str]", "Record<string, string>"),
        ({"type": "object"}, "dict[str, Any]", "Record<string, unknown>"),
        ({}, "Any", "unknown"),
    ],
)
def test_a_schema_is_a_type(schema, python, typescript):
    assert type_of(schema, PYTHON) == python
    assert type_of(schema, TYPESCRIPT) == typescript


def test_the_python_client_needs_httpx_alone():
    project = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [each for each in ours["dependencies"] if each.startswith("httpx")]
    assert (project["version"], project["requires-python"]) == (ours["version"], ours["requires-python"])
