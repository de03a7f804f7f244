"""Is the OpenAPI document valid, complete and true of the types that decode and encode?"""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from coordinator.http.openapi import docs_page, document
from coordinator.http.requests import ChatRequest, CompletionRequest
from coordinator.http.schemas import ErrorBody
from tests.support.answers import STOP, chat, completion, streamed, whole
from tests.support.asgi import delta
from tests.support.fronts import front

OPERATIONS = front().operations
DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(document(OPERATIONS)))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(reference: str) -> Any:
    assert reference.startswith("#/")
    place: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        place = place[step]
    return place


def validator(name: str) -> Any:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(schema)


def test_the_document_has_the_form_of_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"].keys() >= {"title", "version"}
    for path, methods in DOCUMENT["paths"].items():
        assert path.startswith("/")
        for method, operation in methods.items():
            assert method in {"get", "post"}
            assert operation["summary"]
            assert "200" in operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())
            in_path = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))
    ids = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_schema_is_valid_json_schema() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert re.fullmatch(r"[\w.-]+", name)
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}), name


def test_every_route_is_described_once() -> None:
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == {(one.method, one.path.replace(":path", "")) for one in OPERATIONS}
    assert len(described) == len(OPERATIONS)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 20
    for reference in found:
        assert resolve(reference)


def test_public_routes_need_no_key_and_all_others_may() -> None:
    for one in OPERATIONS:
        described = DOCUMENT["paths"][one.path.replace(":path", "")][one.method.lower()]
        assert described.get("security", DOCUMENT["security"]) == ([] if one.public else [{"key": []}, {}])


def test_errors_have_one_form() -> None:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for status in ("400", "401", "404", "413", "429", "500"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}


@pytest.mark.parametrize(
    ("form", "body", "good"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": "hi"}]}, True),
        (ChatRequest, {"messages": []}, False),
        (ChatRequest, {"messages": [{"role": "user", "content": "hi"}], "temperature": -1}, False),
        (ChatRequest, {"messages": [{"role": "user", "content": "hi"}], "temperature": None}, True),
        (ChatRequest, {"messages": [{"role": "user", "content": "hi"}], "stranger": 1}, True),
        (CompletionRequest, {"prompt": [[1, 2]]}, True),
        (CompletionRequest, {"prompt": [-1]}, False),
        (CompletionRequest, {}, False),
    ],
)
def test_the_document_says_of_bodies_what_the_decoder_says(form: Any, body: dict[str, Any], good: bool) -> None:
    assert validator(form.__name__).is_valid(body) == good
    try:
        msgspec.json.decode(json.dumps(body), type=form)
    except msgspec.ValidationError:
        assert not good
    else:
        assert good


def test_answers_are_what_the_document_says() -> None:
    tokens = [(0, delta(0, "a", logprob=True)), (0, delta(1, "b", STOP, stop=7, logprob=True))]
    fields: dict[str, Any] = {"return_token_ids": True}
    validator("ChatCompletion").validate(whole(chat(logprobs=True, **fields), *tokens))
    validator("TextCompletion").validate(whole(completion(logprobs=0, **fields), *tokens))
    for chunk in streamed(chat(stream=True, logprobs=True, **fields), *tokens):
        validator("ChatChunk").validate(chunk)
    for chunk in streamed(completion(stream=True, logprobs=0, **fields), *tokens):
        validator("TextCompletion").validate(chunk)
    assert not validator("ChatChunk").is_valid({"id": 1})


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.handlers: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.links.add(value or "")
            if name == "id":
                self.places.add(value or "")
            if name.startswith("on"):
                self.handlers.add(name)


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    text = docs_page(document(OPERATIONS))
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not page.handlers
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    places = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert page.links - {f"#{place}" for place in places} == {"/openapi.json"}
    assert places <= page.places, "links that lead nowhere"


def test_the_page_shows_every_route_and_every_field() -> None:
    text = docs_page(document(OPERATIONS))
    for one in OPERATIONS:
        path = one.path.replace(":path", "")
        assert f"{one.method}</span> <code>{path}</code>" in text
    for field in ("max_completion_tokens", "truncate_prompt_tokens", "structured_outputs", "messages", "echo"):
        assert f"<code>{field}</code>" in text
    assert "<code>messages</code> *" in text


def test_what_the_page_shows_is_escaped() -> None:
    described = document(OPERATIONS)
    described["paths"] = {"/<b>": {"get": {"summary": "<script>x</script>"}}}
    described["components"] = {"schemas": {"X": {"description": "<i>", "properties": {"f": {"enum": ["<u>"]}}}}}
    assert not Page(docs_page(described)).tags & {"b", "script", "i", "u"}
