"""What can be asked of this server, as a document for programs and as a page for people?

The document is OpenAPI 3.1, made of the table of routes and of the types that decode bodies and encode answers, so it
cannot say anything else than they do. The page is one file without scripts and fetches nothing.
"""

import html
import importlib.metadata
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.http import schemas

if TYPE_CHECKING:
    from coordinator.http.routes import Operation

_REF = "#/components/schemas/{name}"
_FAILURES = {
    "400": "the request cannot be served as it is",
    "401": "an API key is needed",
    "403": "the Host header names a host that this server is not known by",
    "404": "no such model",
    "405": "not this method",
    "408": "the request did not arrive in time",
    "413": "the body is too large",
    "415": "not JSON",
    "429": "the queue is full, or the client too fast",
    "431": "the head of the request is too large",
    "500": "the server failed",
    "503": "loading, shutting down, or a worker was lost",
    "504": "the request took longer than it may",
}
_EVENT = {
    "type": "object",
    "description": "One event of the stream: `data` is JSON (x-event, or an error), and [DONE] at the end.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
"""Before OpenAPI 3.2, the schema of an event stream describes each event: so tools read it."""
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:.9em/1.4 ui-monospace,monospace}pre{background:#f5f5f5;padding:.7rem;overflow:auto}
h2{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1rem}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #eee;text-align:left;padding:.25rem .6rem;vertical-align:top}.m{color:#06c}"""


def document(operations: Sequence["Operation"]) -> dict[str, Any]:
    """The OpenAPI document."""
    shapes = [shape for one in operations for shape in (one.body, one.answer, one.stream) if shape is not None]
    unique = list(dict.fromkeys([*shapes, schemas.ErrorBody]))
    _, components = msgspec.json.schema_components(unique, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path.replace(":path", ""), {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvrelay",
            "version": importlib.metadata.version("kvrelay"),
            "description": "The OpenAI-compatible front of a disaggregated prefill/decode server.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(one: "Operation") -> dict[str, Any]:
    content: dict[str, Any] = {}
    if one.answer is not None:
        content["application/json"] = {"schema": _ref(one.answer)}
    if one.stream is not None:
        content["text/event-stream"] = {"schema": _EVENT, "x-event": _ref(one.stream)}
    responses: dict[str, Any] = {"200": {"description": "the answer", **({"content": content} if content else {})}}
    error = {"application/json": {"schema": _ref(schemas.ErrorBody)}}
    for status, description in _FAILURES.items():
        responses[status] = {"description": description, "content": error}
    if one.path in ("/health", "/ready"):
        unwell = {"application/json": {"schema": {"anyOf": [_ref(schemas.HealthBody), _ref(schemas.ErrorBody)]}}}
        responses["503"] = {"description": "not now; `status` says why", "content": unwell}
    described: dict[str, Any] = {
        "operationId": one.handler.__name__,
        "summary": one.summary,
        "responses": responses,
        **({"security": []} if one.public else {}),
    }
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(one.body)}}}
    if "{model" in one.path:
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return described


def _ref(shape: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def docs_page(described: dict[str, Any]) -> str:
    """The document as a page: every route with its fields."""
    components = described["components"]["schemas"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>kvrelay API</title><style>{_STYLE}</style>",
        f"<h1>kvrelay API {html.escape(described['info']['version'])}</h1>",
        "<p>The OpenAI API, with the extensions that vLLM's users send. For programs: "
        "<a href=/openapi.json><code>/openapi.json</code></a>. Fields with * are required.</p>",
    ]
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            parts.append(f"<h2><span class=m>{method.upper()}</span> <code>{html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(one['summary'])}.</p>")
            body = one.get("requestBody")
            if body is not None:
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                parts.append(_fields(components[name]))
    parts.append("<h2>Shapes</h2>")
    for name, shape in sorted(components.items()):
        parts.append(f"<h3 id={html.escape(name)}>{html.escape(name)}</h3>{_fields(shape)}")
    parts.append("</html>")
    return "\n".join(parts)


def _fields(shape: dict[str, Any]) -> str:
    if "properties" not in shape:
        return f"<pre>{html.escape(json.dumps(shape, indent=1))}</pre>"
    required = set(shape.get("required", ()))
    rows = [
        f"<tr><td><code>{html.escape(name)}</code>{' *' if name in required else ''}<td>{_kind(field)}"
        for name, field in shape["properties"].items()
    ]
    about = f"<p>{html.escape(shape['description'])}</p>" if shape.get("description") else ""
    return f"{about}<table><tr><th>field<th>value</tr>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    """A field's type in words, with links to the shapes it names."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"<code>{html.escape(json.dumps(value))}</code>" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}" if "items" in field else "list"
    bounds = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    told = [f"{sign} {field[key]}" for key, sign in bounds.items() if key in field]
    return " ".join([html.escape(str(field.get("type", "anything"))), *told])
