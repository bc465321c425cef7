"""Requests made from the OpenAPI document: whatever they are, no 5xx, and no answer that it does not describe."""

from __future__ import annotations

from collections import Counter

import httpx
import jsonschema
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="pip install -r requirements-dev.txt un-skips it")

import hypothesis  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)
OPERATIONS = 19


@pytest.fixture(scope="module")
def document(live):
    return httpx.get(f"{live.url}/openapi.json").json()


def test_every_operation_is_summed_up_and_its_errors_are_problems(document):
    operations = [(path, method, each) for path, item in document["paths"].items() for method, each in item.items()]
    assert len(operations) == OPERATIONS
    for path, _, operation in operations:
        assert operation["summary"]
        assert "422" not in operation["responses"] or "HTTPValidationError" not in str(operation["responses"]["422"])
        if path != "/readyz":
            assert all("application/problem+json" in operation["responses"][code]["content"] for code in ("400", "401"))
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_examples_are_what_their_schemas_say(document):
    shown = 0
    for item in document["paths"].values():
        for operation in item.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if "example" in content:
                    jsonschema.validate(content["example"], content["schema"])
                    shown += 1
    assert shown == 4


def leaves_no_trace(case):
    """A form field that was turned into an empty list is not sent at all, and every field may be left out."""
    return case.media_type == "multipart/form-data" and isinstance(case.body, dict) and [] in case.body.values()


@pytest.mark.timeout(300)  # about 60 s alone; every operation, and some requests judge an image five times
@pytest.mark.parametrize("valid", [True, False], ids=["valid", "invalid"])
def test_no_request_makes_the_server_fail_or_answer_what_is_not_documented(live, valid):
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE
    answers: Counter[int] = Counter()
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if not (valid or operation.body):
            continue  # a path is text, and every text is a valid one

        @hypothesis.settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            response = case.call(timeout=30)
            answers[response.status_code] += 1
            rejected = () if valid or leaves_no_trace(case) else (negative_data_rejection,)
            case.validate_response(response, checks=(*CHECKS, *rejected))

        try:
            check()
        except Exception as failure:  # noqa: BLE001 - all operations are tried, so that one run tells all
            failures.append(f"{operation.label}: {failure}")
    assert not failures, "\n\n".join(failures)
    assert answers.keys() >= ({200, 202, 400, 404, 415} if valid else {400})
