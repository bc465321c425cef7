"""Write the types of the clients from the API's OpenAPI document: python -m scripts.write_clients

The document comes from the application itself; no server is started and no model loaded.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from api.app import create_app
from utils.exits import Exit, command, command_parser
from utils.settings import Settings

Schema: TypeAlias = "Mapping[str, Any]"

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
_HEAD = "Written from the API's OpenAPI document: python -m scripts.write_clients"
_REF = "#/components/schemas/"
_JSON = "application/json"
_WIDTH = 116  # of a description; ruff's line less its indent


class Language(NamedTuple):
    """How a language writes types."""

    plain: Mapping[str, str]  # JSON's type -> its own
    choice: Callable[[Sequence[str]], str]  # of texts
    anything: str
    array: str
    mapping: str
    tuple: str


PYTHON = Language(
    {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"},
    lambda texts: f"Literal[{', '.join(map(json.dumps, texts))}]",
    "Any",
    "list[{}]",
    "dict[str, {}]",
    "tuple[{}]",
)
TYPESCRIPT = Language(
    {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"},
    lambda texts: " | ".join(map(json.dumps, texts)),
    "unknown",
    "Array<{}>",
    "Record<string, {}>",
    "[{}]",
)


def document() -> dict[str, Any]:
    """The OpenAPI document, as a server with workers serves it: the same as any other's."""
    return create_app(Settings.of(redis_url="redis://127.0.0.1:1/0")).openapi()


def type_of(schema: Schema, language: Language) -> str:
    """A schema as a type."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_REF)
    if "enum" in schema:
        return language.choice(schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(type_of(each, language) for each in schema["anyOf"]))
    if "prefixItems" in schema:
        return language.tuple.format(", ".join(type_of(each, language) for each in schema["prefixItems"]))
    if schema.get("type") == "array":
        return language.array.format(type_of(schema["items"], language))
    if schema.get("type") == "object":
        values = schema.get("additionalProperties", True)
        return language.mapping.format(language.anything if values is True else type_of(values, language))
    return language.plain.get(schema.get("type", ""), language.anything)


def python(found: Schema) -> str:
    """A TypedDict for every schema of the document."""
    lines = [f'"""{_HEAD}"""', "", "from __future__ import annotations", ""]
    lines += ["from typing import Any, Literal, NotRequired, TypedDict"]
    for name, schema in sorted(found["components"]["schemas"].items()):
        lines += ["", "", f"class {name}(TypedDict):"]
        if said := _sentence(schema):
            lines += [*_wrapped(f'"""{said}"""', "    "), ""]
        for field, of in schema["properties"].items():
            kind = type_of(of, PYTHON)
            lines += _wrapped(_sentence(of), "    # ")
            lines.append(f"    {field}: {kind if field in schema.get('required', ()) else f'NotRequired[{kind}]'}")
    return "\n".join([*lines, ""])


def typescript(found: Schema) -> str:
    """An interface for every schema, and the answer of every operation that answers in JSON."""
    lines = [f"// {_HEAD}", ""]
    for name, schema in sorted(found["components"]["schemas"].items()):
        if said := _sentence(schema):
            lines.append(f"/** {said} */")
        lines.append(f"export interface {name} {{")
        for field, of in schema["properties"].items():
            if said := _sentence(of):
                lines.append(f"  /** {said} */")
            optional = "" if field in schema.get("required", ()) else "?"
            lines.append(f"  {field}{optional}: {type_of(of, TYPESCRIPT)};")
        lines += ["}", ""]
    lines += ["/** What each operation answers when all is well. */", "export interface Answers {"]
    for path, item in found["paths"].items():
        for method, operation in item.items():
            answers = [
                each.get("content", {}).get(_JSON) for code, each in operation["responses"].items() if code < "3"
            ]
            kinds = [type_of(each["schema"], TYPESCRIPT) for each in answers if each]
            if kinds:
                lines.append(f'  "{method.upper()} {path}": {" | ".join(kinds)};')
    return "\n".join([*lines, "}", ""])


def _sentence(schema: Schema) -> str:
    return " ".join(str(schema.get("description", "")).replace("``", "`").split())


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def files() -> dict[Path, str]:
    """The text of every file that this writes."""
    found = json.loads(json.dumps(document()))
    return {
        CLIENTS / "python" / "img_ml_verify_client" / "answers.py": python(found),
        CLIENTS / "typescript" / "src" / "answers.ts": typescript(found),
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    command_parser("python -m scripts.write_clients", __doc__).parse_args(argv)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(CLIENTS.parent)}: {text.count(chr(10))} lines")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
