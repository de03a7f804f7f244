"""Which paths are there, and what does each do?

Thin: a body becomes a request (`requests`, `translate`), the service prepares it, a `Generation` answers. One table
names every route, whether it needs a key, and the shapes of its body and its answer; the router and the OpenAPI
document are both made of it.
"""

import importlib.metadata
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from coordinator.config import HttpConfig
from coordinator.http import constraints, schemas, translate
from coordinator.http.answers import ChatAnswer, Head, TextAnswer
from coordinator.http.body import read_json_body
from coordinator.http.constraints import Constraint
from coordinator.http.counters import HttpCounters
from coordinator.http.errors import ApiError, of_invalid
from coordinator.http.generation import Generation, OpenAnswers
from coordinator.http.metrics import CONTENT_TYPE, Exposition
from coordinator.http.openapi import docs_page, document
from coordinator.http.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    R,
    TokenizeRequest,
    decode,
    names,
)
from coordinator.http.translate import AskLimits
from coordinator.service import Prepared, Service
from coordinator.validation import InvalidRequest
from runtime import logs
from transport.messages.client import GenerateRequest

_MOST_WARNED_KEYS = 100
_log = logs.get("http")
Handler = Callable[[Request], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `answers` are the shapes of a 200, by content type."""

    method: str
    path: str
    summary: str
    handler: Handler
    body: type | None = None
    answer: type | None = None
    stream: type | None = None  # of the events, if `stream` is true
    public: bool = False


class Api:
    """The handlers; owns nothing but the keys that it has warned of."""

    def __init__(
        self,
        service: Service,
        config: HttpConfig,
        open_answers: OpenAnswers,
        counters: HttpCounters,
        exposition: Exposition,
    ) -> None:
        self._service = service
        self._limits = config.limits
        self._ask_limits = AskLimits(config.limits.max_n, config.limits.max_choices)
        self._open_answers = open_answers
        self._counters = counters
        self._exposition = exposition
        self._created = _now()
        self._warned: set[str] = set()
        self.operations = self._table()

    def routes(self) -> list[Route]:
        return [Route(one.path, one.handler, methods=[one.method]) for one in self.operations]

    def _table(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/chat/completions",
                "Answer a conversation",
                self.chat,
                body=ChatRequest,
                answer=schemas.ChatCompletion,
                stream=schemas.ChatChunk,
            ),
            Operation(
                "POST",
                "/v1/completions",
                "Continue texts or token ids",
                self.completion,
                body=CompletionRequest,
                answer=schemas.TextCompletion,
                stream=schemas.TextCompletion,
            ),
            Operation("GET", "/v1/models", "The model that is served", self.models, answer=schemas.ModelList),
            Operation("GET", "/v1/models/{model:path}", "The model by its id", self.model, answer=schemas.Model),
            Operation(
                "POST",
                "/tokenize",
                "Token ids of a text or a conversation",
                self.tokenize,
                TokenizeRequest,
                schemas.Tokens,
            ),
            Operation(
                "POST", "/detokenize", "Text of token ids", self.detokenize, DetokenizeRequest, schemas.Detokenized
            ),
            Operation(
                "GET", "/health", "200 if tokens can be produced", self.health, answer=schemas.HealthBody, public=True
            ),
            Operation(
                "GET", "/ready", "200 if a request would be taken", self.ready, answer=schemas.HealthBody, public=True
            ),
            Operation("GET", "/live", "200 if the coordinator runs", self.live, answer=schemas.HealthBody, public=True),
            Operation("GET", "/version", "Version of this server", self.version, answer=schemas.Version),
            Operation("GET", "/metrics", "Metrics in the Prometheus text format", self.metrics),
            Operation("GET", "/openapi.json", "This document", self.openapi),
            Operation("GET", "/docs", "This document, to read", self.docs),
        )

    # --- generation --------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> ASGIApp:
        body, received_at = await self._read(request, ChatRequest)
        constraint = constraints.of_chat(body)
        asked = translate.chat(body, constraint, self._ask_limits)
        prepared = await self._prepare(asked.requests, constraint)
        head = self._head("chatcmpl")
        return self._generation(prepared, ChatAnswer(head, asked, prepared, self._service.text), received_at)

    async def completion(self, request: Request) -> ASGIApp:
        body, received_at = await self._read(request, CompletionRequest)
        constraint = constraints.of_format(body)
        asked = translate.completion(body, constraint, self._ask_limits)
        prepared = await self._prepare(asked.requests, constraint)
        head = self._head("cmpl")
        return self._generation(prepared, TextAnswer(head, asked, prepared, self._service.text), received_at)

    def _generation(
        self, prepared: Sequence[Prepared], answer: ChatAnswer | TextAnswer, received_at: float
    ) -> Generation:
        return Generation(self._service, prepared, answer, self._open_answers, self._counters, received_at)

    async def _prepare(self, requests: Sequence[GenerateRequest], constraint: Constraint | None) -> list[Prepared]:
        """All of them or none: nothing is started before every prompt is known to be good."""
        try:
            return [await self._service.prepare(one) for one in requests]
        except InvalidRequest as error:
            raise of_invalid(error, constraint.param if constraint is not None else None) from error

    def _head(self, kind: str) -> Head:
        return Head(f"{kind}-{secrets.token_hex(12)}", _now(), self._service.config.model)

    # --- models and tokens -------------------------------------------------------------------------------------------

    async def models(self, _: Request) -> ASGIApp:
        return _json(schemas.ModelList([self._described()]))

    async def model(self, request: Request) -> ASGIApp:
        if request.path_params["model"] != self._service.config.model:
            raise ApiError(404, "this model is not served here; see /v1/models", "model_not_found", "model")
        return _json(self._described())

    def _described(self) -> schemas.Model:
        name = self._service.config.model
        model = self._service.model
        return schemas.Model(name, self._created, root=name, max_model_len=model.max_model_len if model else 0)

    async def tokenize(self, request: Request) -> ASGIApp:
        body, _ = await self._read(request, TokenizeRequest)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", "invalid_value", "prompt")
        asked = GenerateRequest(
            prompt=body.prompt,
            messages=None if body.messages is None else translate.messages(body.messages),
            tools=translate.as_template_tools(body.tools or ()),
            template_arguments=body.chat_template_kwargs or {},
            add_special_tokens=body.add_special_tokens is not False,
            model=body.model,
        )
        try:
            tokens = await self._service.tokenise(asked)
        except InvalidRequest as error:
            raise of_invalid(error) from error
        text, model = self._service.text, self._service.model
        return _json(
            schemas.Tokens(
                count=len(tokens),
                max_model_len=model.max_model_len if model is not None else 0,
                tokens=tokens,
                token_strs=[text.token_text(token) for token in tokens] if body.return_token_strs else None,
            )
        )

    async def detokenize(self, request: Request) -> ASGIApp:
        body, _ = await self._read(request, DetokenizeRequest)
        text = self._service.text
        unknown = next((token for token in body.tokens if token >= text.vocab_size), None)
        if unknown is not None:
            raise ApiError(400, f"token id {unknown} is outside the vocabulary", "invalid_value", "tokens")
        return _json(schemas.Detokenized(text.decode(body.tokens)))

    # --- the server itself -------------------------------------------------------------------------------------------

    async def health(self, _: Request) -> ASGIApp:
        health = self._service.health()
        return _json(schemas.HealthBody(health.reason or "ok"), 200 if health.ok else 503)

    async def ready(self, _: Request) -> ASGIApp:
        health = self._service.health()
        return _json(schemas.HealthBody(health.reason or "ok"), 200 if health.accepting else 503)

    async def live(self, _: Request) -> ASGIApp:
        return _json(schemas.HealthBody("ok"))

    async def version(self, _: Request) -> ASGIApp:
        return _json(schemas.Version(importlib.metadata.version("kvrelay")))

    async def metrics(self, _: Request) -> ASGIApp:
        return Response(self._exposition.text(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> ASGIApp:
        return Response(msgspec.json.encode(document(self.operations)), media_type="application/json")

    async def docs(self, _: Request) -> ASGIApp:
        return Response(docs_page(document(self.operations)), media_type="text/html")

    async def _read(self, request: Request, form: type[R]) -> tuple[R, float]:
        """The body, and when its last byte was in: what a slow client takes before that is no time of ours."""
        data = await read_json_body(request, self._limits)
        received_at = self._open_answers.now()
        body, unknown = decode(data, form)
        fresh = [key for key in names(unknown) if key not in self._warned]
        if fresh and len(self._warned) < _MOST_WARNED_KEYS:
            self._warned.update(fresh)
            _log.warning("unknown keys in a request are ignored", extra={"fields": {"keys": fresh[:10]}})
        return body, received_at


def _json(body: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _now() -> int:
    """Seconds since 1970, for `created`: a label, never compared."""
    return int(time.time())  # noqa: TID251 - not a duration
