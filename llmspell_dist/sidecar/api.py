"""The way of a request: route, who, may they, body, handler, answer. One place for all routes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import BaseRoute, Match

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.admission import Admission
from llmspell_dist.sidecar.answering import Answering
from llmspell_dist.sidecar.bodies import JSON, MESSAGEPACK, accepted
from llmspell_dist.sidecar.call import Call, Receive, Send
from llmspell_dist.sidecar.contexts import context_of
from llmspell_dist.sidecar.dispatch import Dispatcher
from llmspell_dist.sidecar.endpoint import VALUE, Endpoint, Handler
from llmspell_dist.sidecar.errors import (
    BodyError,
    HeadersTooLargeError,
    NotAcceptableError,
    PreconditionRequiredError,
)
from llmspell_dist.sidecar.gate import Gate
from llmspell_dist.sidecar.idempotency import Idempotency
from llmspell_dist.sidecar.parameters import read_query
from llmspell_dist.sidecar.problems import problem_of, status_of
from llmspell_dist.sidecar.receiving import (
    SMALL,
    ClientGoneError,
    first_part,
    plain_body,
    rest_of,
)
from llmspell_dist.sidecar.repeats import Repeats

if TYPE_CHECKING:
    from llmspell_dist.sidecar.reply import Reply
    from llmspell_dist.sidecar.services import Services

__all__ = ["Api"]

logger = logging.getLogger("llmspell_dist.sidecar")

Scope = MutableMapping[str, Any]
_BODILESS: Final = frozenset({"GET", "HEAD"})
_BROKEN: Final = "it ended before it was whole, or its chunks are malformed"
_CONDITIONS: Final = {
    b"if-match": "If-Match",
    b"if-none-match": "If-None-Match",
    b"if-unmodified-since": "If-Unmodified-Since",
}
_STATUS: Final = "http.response.status_code"
_SERVER_ERROR: Final = 500
_CLIENT_GONE: Final = 499
"""What is counted for a client that did not wait, as nginx does."""


class Api(BaseRoute):
    """Every route of the sidecar, as one route of Starlette."""

    def __init__(self, services: Services, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._services = services
        self._bodies = services.bodies
        self._observer = services.observer
        self._spans = services.spans if services.spans.tracing else None
        self._find = Dispatcher(self.endpoints).find
        self._admission = Admission(services)
        self._answering = Answering(services)
        self._idempotency = Idempotency(services)
        self._repeats = services.one(Repeats)
        limits = self._limits = services.settings.limits
        self._gate = Gate(limits.client_requests, limits.client_waiting)
        self._receiving = Gate(limits.client_requests, limits.client_waiting)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Take every request and every WebSocket."""
        return (Match.NONE if scope["type"] == "lifespan" else Match.FULL), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        method, scheme = scope["method"], scope.get("scheme", "http")
        seen = self._observer.started(method, scheme)
        status, route, wanted = 500, "(none)", JSON
        try:
            headers = _collected(scope["headers"], self._limits.header_bytes)
            found = self._find("GET" if method == "HEAD" else method, _path(scope))
            endpoint = found.endpoint
            route = endpoint.path
            if endpoint.streams is None and not endpoint.public and b"accept" in headers:
                wanted = accepted(headers[b"accept"].decode("latin-1"))
            principal = self._admission.known(scope, headers, endpoint)
            if principal is None:
                principal = await self._admission.authenticate(scope, headers)
            call = Call(endpoint, found.parameters, principal, self._services, headers, wanted)
            call.scope, call.receive, call.send = scope, receive, send
            self._admission.check(call)
            reply = await (self._shared(call) if self._spans is None else self._traced(call))
            status = 200
            if reply is not None:
                status = reply.status
                start, body = self._answering.reply(reply, call)
                await send(start)
                await send(body)
        except ClientGoneError:
            # Or it sent what is no body: then it hears so.
            _, (start, body) = self._answering.problem(BodyError("request", _BROKEN), wanted)
            status = _CLIENT_GONE
            await send(start)
            await send(body)
        except Exception as error:
            if not isinstance(error, SpellError):
                logger.exception("%s %s failed", method, route)
            if isinstance(error, NotAcceptableError):
                wanted = JSON
            elif headers.get(b"accept") == MESSAGEPACK.encode():
                wanted = MESSAGEPACK
            status, (start, body) = self._answering.problem(error, wanted)
            await send(start)
            await send(body)
        finally:
            self._observer.ended(seen, method, route, status, scheme)

    async def _traced(self, call: Call) -> Reply | None:
        """Record it as a span of the trace that it came with, if it is sampled; no streams."""
        endpoint = call.endpoint
        if self._spans is None or endpoint.streams is not None or endpoint.public:
            return await self._shared(call)
        name, refused = f"{endpoint.method} {endpoint.path}", None
        attributes = {
            "http.request.method": endpoint.method,
            "http.route": endpoint.path,
            "url.scheme": call.scope.get("scheme", "http"),
        }
        parent = call.header(b"traceparent")
        with self._spans.span(name, "server", attributes, parent=parent, covers=True) as span:
            try:
                reply = await self._shared(call)
            except SpellError as error:
                status = status_of(type(error))
                span.set(_STATUS, status)
                if status >= _SERVER_ERROR:
                    raise
                refused = error  # by the conventions the caller's error is none of the server's
            else:
                span.set(_STATUS, 200 if reply is None else reply.status)
                return reply
        raise refused

    async def _shared(self, call: Call) -> Reply | None:
        """Carry a request out, when it is this client's turn; streams have limits of their own."""
        endpoint, scope = call.endpoint, call.scope
        query = scope["query_string"]
        call.query = read_query(query, endpoint.query) if query or endpoint.query else None
        if endpoint.streams is not None:
            return await self._streamed(call)
        client = call.principal.label
        if call.principal.kind == "anonymous" and scope.get("client"):
            client = scope["client"][0]
        call.client = client
        if scope["method"] in _BODILESS and b"content-length" not in call.headers:
            return await self._in_turn(call, endpoint.handler)
        first = await first_part(call.receive, call.headers, self._limits)
        if first.is_small:
            return await self._in_turn(call, partial(self._carried_out, body=first.body))
        # Bodies that take memory or time have a line of their own, and hold nothing up but it.
        async with self._receiving.place(client):
            body = await rest_of(call.receive, first, self._limits)
            if len(body) > SMALL:
                return await self._in_turn(call, partial(self._carried_out, body=body))
        return await self._in_turn(call, partial(self._carried_out, body=body))

    async def _streamed(self, call: Call) -> Reply | None:
        body = b""
        if call.scope["method"] not in _BODILESS or b"content-length" in call.headers:
            first = await first_part(call.receive, call.headers, self._limits)
            body = await rest_of(call.receive, first, self._limits)
        return await self._carried_out(call, body=body)

    async def _in_turn(self, call: Call, work: Handler) -> Reply | None:
        """Do something when there is a place for it among the requests of this client."""
        gate = call.gate = self._gate
        waiting = gate.enter(call.client)
        if waiting is not None:
            await gate.wait(waiting, call.client)
        try:
            return await work(call)
        finally:
            call.leave()

    async def _carried_out(self, call: Call, *, body: bytes) -> Reply | None:
        """Read the body, then run the handler: for changes in the context that came with them."""
        endpoint, method = call.endpoint, call.scope["method"]
        body = plain_body(body, call.headers, self._limits)
        if endpoint.body is not None:
            call.body = await self._read(body, call, endpoint.body)
        elif body.strip():
            raise BodyError("request", "it must have no body")
        if method in _BODILESS:
            return await endpoint.handler(call)
        _check_conditions(call)
        with context_of(call):
            return await self._repeats.run(call, partial(self._idempotency.run, call, body))

    async def _read(self, body: bytes, call: Call, shape: type) -> Any:
        if not body:
            raise BodyError("request", "it must have a body")
        document = await self._bodies.read_aside(body, call.header(b"content-type"))
        if shape is VALUE:
            return document
        try:
            return msgspec.convert(document, shape)
        except msgspec.ValidationError as error:
            raise BodyError(shape.__name__, str(error)) from None

    # --- WebSockets

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        talks = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal talks
            talks = talks or message["type"] == "websocket.accept"
            await send(message)

        try:
            headers = _collected(scope["headers"], self._limits.header_bytes)
            found = self._find("WEBSOCKET", _path(scope))
            principal = self._admission.known(scope, headers, found.endpoint)
            if principal is None:
                principal = await self._admission.authenticate(scope, headers)
            call = Call(found.endpoint, found.parameters, principal, self._services, headers, JSON)
            call.scope, call.receive, call.send = scope, receive, sending
            self._admission.check(call)
            call.query = read_query(scope["query_string"], found.endpoint.query)
            await found.endpoint.handler(call)
        except Exception as error:
            ours = isinstance(error, SpellError)
            if not ours:
                logger.exception("a WebSocket failed")
            if not talks and "websocket.http.response" in scope.get("extensions", {}):
                await self._refused(error, send)
                return
            code = 4000 + problem_of(error).status if ours else 1011
            await send({"type": "websocket.close", "code": code, "reason": _code_of(error)})

    async def _refused(self, error: Exception, send: Send) -> None:
        """Answer the request to connect as any other request that is refused."""
        _, (start, body) = self._answering.problem(error, JSON)
        await send(start | {"type": f"websocket.{start['type']}"})
        await send(body | {"type": f"websocket.{body['type']}"})


def _code_of(error: Exception) -> str:
    return error.code if isinstance(error, SpellError) else "INTERNAL"


def _check_conditions(call: Call) -> None:
    """Refuse a change under a condition that its route does not keep, instead of making it."""
    for name, header in _CONDITIONS.items():
        if name in call.headers and header not in call.endpoint.headers:
            rule = "is no condition that this route keeps; nothing was changed"
            raise PreconditionRequiredError(header.lower(), call.header(name), rule)


def _collected(pairs: Iterable[tuple[bytes, bytes]], most: int) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    size = 0
    for name, value in pairs:
        size += len(name) + len(value)
        headers[name] = value if name not in headers else headers[name] + b", " + value
    if size > most:
        raise HeadersTooLargeError(size, most)
    return headers


def _path(scope: Scope) -> str:
    raw = scope.get("raw_path")
    if raw is None:
        path: str = scope["path"]
        return path
    return str(raw.partition(b"?")[0], "latin-1")
