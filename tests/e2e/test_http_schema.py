"""Does the server do what its own OpenAPI document says, for requests that nobody thought of?

schemathesis makes requests from the document, valid and broken ones, always the same.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.http_cells import HostedCell, assert_api_error, hosted, mock_http
from tests.support.raw_http import ask, request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

EXAMPLES = 30


@pytest.fixture(scope="module")
def cell() -> Iterator[HostedCell]:
    with hosted(mock_http({"body_timeout_s": 2.0})) as running:
        before = running.pids()
        yield running
        running.pages_back()
        assert running.pids() == before
        assert not [line for line in running.recorder.lines if "Traceback" in line]
        assert ask(running.port, request("/v1/completions", {"prompt": "x", "max_tokens": 2})).status == 200


@pytest.fixture(scope="module")
def document(cell: HostedCell) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{cell.api}/openapi.json")


def keeps_the_document(case: Case[Any], statuses: Counter[int]) -> None:
    response = case.call(timeout=30)
    statuses[response.status_code] += 1
    if response.status_code >= 400:
        assert_api_error(response.status_code, response.content)
    assert response.status_code < 500, (case, response.text)
    case.validate_response(
        response, checks=[status_code_conformance, content_type_conformance, response_schema_conformance]
    )


def tamed(case: Case[Any]) -> Case[Any]:
    """What the document cannot say: which model there is, and how much fits into it."""
    if isinstance(case.body, dict):
        small: dict[str, Any] = {"model": "mock", "max_tokens": 8, "n": 2, "stream_options": None, "logit_bias": None}
        gone: tuple[str, ...]
        gone = (
            "max_completion_tokens",
            "min_tokens",
            "stop_token_ids",
            "response_format",
            "structured_outputs",
        )
        gone += ("tools", "tool_choice", "top_logprobs", "echo")
        case.body = {key: small.get(key, value) for key, value in case.body.items() if key not in gone}
        if case.body.get("prompt") is not None:
            case.body.pop("messages", None)
        if "messages" in case.body:
            case.body["messages"] = [{"role": "user", "content": "x"}]
        if "prompt" in case.body and not isinstance(case.body["prompt"], str):
            case.body["prompt"] = "x"
    return case


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as told", "broken"])
def test_every_operation_keeps_the_document(document: BaseSchema, mode: GenerationMode) -> None:
    operations = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) >= 10
    for operation in operations:
        bodied = operation.method.upper() == "POST"
        if mode is GenerationMode.NEGATIVE and not bodied:
            continue  # there is nothing to break
        statuses = _run(operation, mode, EXAMPLES if bodied else 3)
        if bodied and mode is GenerationMode.POSITIVE:
            assert statuses[200] >= 3, (operation.label, statuses)  # it was not all refused


def _run(operation: Any, mode: GenerationMode, examples: int) -> Counter[int]:
    statuses: Counter[int] = Counter()

    def check(case: Case[Any]) -> None:
        keeps_the_document(case, statuses)
        if mode is GenerationMode.POSITIVE:
            keeps_the_document(tamed(case), statuses)

    options = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    options(given(case=operation.as_strategy(generation_mode=mode))(check))()
    return statuses


def test_the_document_names_every_route(cell: HostedCell) -> None:
    told = json.loads(ask(cell.port, request("/openapi.json")).body)
    assert told["openapi"].startswith("3.")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/live", "/metrics"):
        assert path in told["paths"]
    page = ask(cell.port, request("/docs")).body.decode()
    assert "/v1/chat/completions" in page
    assert "<script" not in page
