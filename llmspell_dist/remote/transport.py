"""Requests to a sidecar: one way out for all services, with retries that apply nothing twice.

A read is asked again after a failure. So is a write: each carries a number, under which the sidecar
carries it out once and answers the second time as it did the first. What cannot be settled within
the retry budget is an `OutcomeUnknownError`; its operation is the request itself, which
`Transport.settle` sends again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from yarl import URL

from llmspell_dist.backoff import Backoff
from llmspell_dist.closing import AsyncClosing
from llmspell_dist.codec import Codec
from llmspell_dist.context import get_context
from llmspell_dist.errors import (
    ClosedError,
    OutcomeUnknownError,
    SpellError,
    StoreTimeoutError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.remote.address import Address, encoded_path
from llmspell_dist.remote.contexts import context_headers
from llmspell_dist.remote.numbering import Numbering
from llmspell_dist.remote.problems import error_of, pause_of, reason_of
from llmspell_dist.remote.sessions import leave_to_parent, make_session
from llmspell_dist.remote.streams import Listening, events

if TYPE_CHECKING:
    from llmspell_dist.config import Options
    from llmspell_dist.remote.credentials import Credentials
    from llmspell_dist.remote.streaming import StreamEvent

__all__ = ["NOTHING", "Answer", "RemoteOperation", "Transport"]

MESSAGEPACK: Final = "application/msgpack"
_PROBLEM: Final = "application/problem+msgpack"
_SAFE: Final = frozenset({"GET", "HEAD"})
_AGAIN: Final = frozenset({429, 503})
_REQUEST: Final = "llmspell-request"
_REPEAT: Final = "llmspell-repeat"
_INSTANCE: Final = "llmspell-instance"
_REPEAT_UNKNOWN: Final = "REPEAT_UNKNOWN"
_CONNECTIONS: Final = 100
_LARGE: Final = 256 * 1024
_LARGEST: Final = 512_000_000
_DEEPEST: Final = 256
_SILENCE_S: Final = 60.0
"""How long a stream may say nothing, not even that it is there, until it counts as lost."""

Query = Mapping[str, str | int | float | bool | None]


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()
"""No body: another thing than the value None."""


class Answer(NamedTuple):
    """What a sidecar answered."""

    status: int
    document: Any
    """The value of the body; `NOTHING` without one."""
    headers: Mapping[str, str]
    """By name, in any case."""


@dataclass(frozen=True, slots=True)
class RemoteOperation:
    """A request; as a write whose outcome is not known, sent again it is applied at most once."""

    method: str
    path: str
    body: bytes | None = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    number: int | None = None
    """Under which the sidecar remembers it; None: it may be carried out twice."""
    client: str = ""
    """Whose number that is."""
    instance: str = ""
    """What the sidecar had told before it may have carried it out."""


class Transport(AsyncClosing):
    """Carries requests to one sidecar; opened by the first, closed by ``async with`` or `close`."""

    def __init__(self, address: Address, options: Options, credentials: Credentials) -> None:
        self.server = str(address)
        """Which sidecar, without secrets."""
        self.options = options
        self._address = address
        self._base = address.base
        self._credentials = credentials
        self._codec = Codec(_LARGEST, _DEEPEST)
        self._numbering = Numbering()
        self._connect_timeout = address.connect_timeout or options.connect_timeout
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inherited: asyncio.AbstractEventLoop | None = None
        """In a forked child: the parent's loop."""
        self._closed = False
        on_fork(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.server}>"

    def serve_by(self, instance: str) -> None:
        """Note which start of the sidecar answers, and what it knows; so do answers to writes."""
        self._numbering.instance = instance

    # --- requests

    async def request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Query | None = None,
        document: Any = NOTHING,
        packed: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool = False,
        accept: frozenset[str] = frozenset(),
        patience_s: float | None = 0.0,
    ) -> Answer:
        """Send one request and return its answer; a problem is raised as the library's error.

        `packed`: a body that is encoded already. `idempotent`: it may be carried out twice, and
        needs no key; GET and HEAD always may. `accept`: problems of these codes are answers too.
        `patience_s`: how much longer than the retry budget the answer may take, None for ever: for
        what waits on the other side.
        """
        said = get_context()
        safe = method in _SAFE
        if said is not None and said.refuse is not None and not safe:
            said.refuse(["/".join(path)])
        sent = context_headers(self.options.client_name)
        sent["accept"] = MESSAGEPACK
        body = packed
        if document is not NOTHING:
            body = self._codec.encode(document)
        if body is not None:
            sent["content-type"] = MESSAGEPACK
        if headers:
            sent.update(headers)
        url = self._url(path, query)
        if safe or idempotent:
            return await self._sent(RemoteOperation(method, url, body, sent), accept, patience_s)
        number = self._numbering.begin()
        operation = RemoteOperation(method, url, body, sent, number, self._numbering.client)
        return await self._numbered(operation, accept, patience_s)

    async def settle(self, operation: RemoteOperation) -> Answer:
        """Carry a write with an unknown outcome out now, unless it was before.

        Within a minute: then the sidecar need not remember it any more. Any client may do it.
        """
        assert operation.number is not None  # noqa: S101 - only of writes the outcome matters
        if operation.client == self._numbering.client:
            self._numbering.resume(operation.number)
        return await self._numbered(operation, frozenset(), 0.0, unsettled=True)

    async def _numbered(
        self,
        operation: RemoteOperation,
        accept: frozenset[str],
        patience_s: float | None,
        *,
        unsettled: bool = False,
    ) -> Answer:
        known = False
        assert operation.number is not None  # noqa: S101 - writes have one
        try:
            answer = await self._sent(operation, accept, patience_s, unsettled=unsettled)
            known = True
        except SpellError as error:
            known = not getattr(error, "may_have_happened", False)
            raise
        finally:
            if operation.client == self._numbering.client:
                self._numbering.end(operation.number, known=known)
        self._numbering.instance = answer.headers.get(_INSTANCE, self._numbering.instance)
        return answer

    def _url(self, path: tuple[str, ...], query: Query | None) -> str:
        url = encoded_path(path)
        if query:
            given = {name: _said(value) for name, value in query.items() if value is not None}
            url += "?" + str(URL.build(query=given).raw_query_string) if given else ""
        return url

    async def _sent(
        self,
        operation: RemoteOperation,
        accept: frozenset[str],
        patience_s: float | None,
        *,
        unsettled: bool = False,
    ) -> Answer:
        """Send a request until it is answered; `unsettled`: it may have been carried out."""
        budget_s = self.options.retry_budget
        deadline = monotonic() + budget_s
        backoff: Backoff | None = None
        refreshed = False
        token, number = self._credentials.header(), operation.number
        while True:
            left = max(0.001, deadline - monotonic())
            timeout = None if patience_s is None else left + patience_s
            pause = 0.0
            if not unsettled and number:
                # What was told before it was sent: whatever was forgotten since may be this write.
                operation = replace(operation, instance=self._numbering.instance)
            try:
                answer = await self._once(operation, token, timeout, unsettled)
            except StoreUnavailableError as error:
                unsettled = unsettled or error.may_have_happened
                failure: SpellError = error
            else:
                if answer.status < 400:
                    return answer
                failure = error_of(answer.status, answer.document, self.server)
                if failure.code in accept:
                    return answer
                if answer.status == 401 and not refreshed:
                    # Kubernetes replaces tokens: the file may hold another by now.
                    refreshed, before, token = True, token, self._credentials.header()
                    if token != before:
                        continue
                self._check_final(failure, answer, operation)
                pause = pause_of(answer.headers)
            backoff = backoff or Backoff.within(budget_s)
            pause = max(pause, backoff.next_s())
            if monotonic() + pause >= deadline:
                raise self._unknown(failure, operation) if unsettled else failure
            await asyncio.sleep(pause)

    def _check_final(self, failure: SpellError, answer: Answer, operation: RemoteOperation) -> None:
        """Raise what comes no better if it is asked again."""
        if failure.code == _REPEAT_UNKNOWN:
            raise self._unknown(failure, operation)
        if getattr(failure, "may_have_happened", False):
            failure.__dict__["operation"] = operation
            raise failure
        if answer.status not in _AGAIN or not failure.retryable:
            raise failure

    def _unknown(self, failure: SpellError, operation: RemoteOperation) -> SpellError:
        said = (
            failure.said if isinstance(failure, StoreUnavailableError) else str(failure).rstrip(".")
        )
        return OutcomeUnknownError(self.server, said, True, operation)

    async def _once(
        self, operation: RemoteOperation, token: str | None, timeout: float | None, again: bool
    ) -> Answer:
        session = self._open()
        headers, number = operation.headers, operation.number
        if number is not None:
            headers = headers | {_REQUEST: self._numbering.stamp(operation.client, number)}
            if again:
                headers[_REPEAT] = operation.instance
        if token is not None:
            headers = headers | {"authorization": token}
        patience = aiohttp.ClientTimeout(total=timeout, sock_connect=self._connect_timeout)
        try:
            async with session.request(
                operation.method,
                URL(self._base + operation.path, encoded=True),
                data=_sent(operation.body),
                headers=headers,
                timeout=patience,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                found = response.headers
                document = self._read(body, found.get("content-type"))
                return Answer(response.status, document, found)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            said = "it could not be reached in time" if connecting else "no answer in time"
            happened = number is not None and not connecting
            raise StoreTimeoutError(self.server, said, happened) from None
        except aiohttp.ClientConnectorError as error:  # nothing was sent
            raise StoreUnavailableError(self.server, reason_of(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            happened = number is not None
            raise StoreUnavailableError(self.server, reason_of(error), happened) from None

    def _read(self, body: bytes, media: str | None) -> Any:
        if not body:
            return NOTHING
        if media in {MESSAGEPACK, _PROBLEM}:
            return self._codec.decode(body)
        return body

    # --- streams

    def stream(
        self,
        path: tuple[str, ...],
        *,
        query: Query | None = None,
        last_event_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[StreamEvent]:
        """Iterate over server-sent events, over any number of connections.

        After a lost connection, and when the sidecar ends, it goes on behind the last id. Only the
        first connection must come about within the retry budget; a problem is raised.
        """

        def connect(last: str | None) -> Listening:
            return self._listening(path, query, last, headers)

        return events(connect, self.server, last_event_id, self.options.retry_budget)

    def _listening(
        self,
        path: tuple[str, ...],
        query: Query | None,
        last_event_id: str | None,
        headers: Mapping[str, str] | None,
    ) -> Listening:
        self._open()
        if self._streams is None:
            self._streams = make_session(self._address, self.options, limit=0)
        sent = context_headers(self.options.client_name) | dict(headers or {})
        sent["accept"] = "text/event-stream"
        sent["cache-control"] = "no-store"
        if last_event_id is not None:
            sent["last-event-id"] = last_event_id
        if (token := self._credentials.header()) is not None:
            sent["authorization"] = token
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout, sock_read=_SILENCE_S
        )
        url = URL(self._base + self._url(path, query), encoded=True)
        return Listening(self.server, self._streams, url, sent, timeout)

    # --- the session

    def _open(self) -> aiohttp.ClientSession:
        session = self._session
        if session is None:
            if self._closed:
                raise ClosedError
            loop = asyncio.get_running_loop()
            if loop is self._inherited:
                raise WrongEventLoopError(
                    "the event loop belongs to the process that this one was forked from; use "
                    "another one in the child, such as that of asyncio.run()"
                )
            self._loop = loop
            session = self._session = make_session(self._address, self.options, limit=_CONNECTIONS)
        elif self._loop is not asyncio.get_running_loop():
            raise WrongEventLoopError
        return session

    def forget(self) -> None:
        """In a forked child: be another client, with connections and an event loop of its own."""
        for session in (self._session, self._streams):
            if session is not None:
                leave_to_parent(session)
        self._inherited = self._loop or self._inherited
        keep_forever(self._inherited)
        self._session = self._streams = self._loop = None
        self._numbering.new_client()

    async def close(self) -> None:
        """Close every connection; more than once is allowed."""
        self._closed = True
        sessions, self._session, self._streams = (self._session, self._streams), None, None
        for session in sessions:
            if session is not None:
                await session.close()


def _sent(body: bytes | None) -> bytes | BytesIO | None:
    """Return a body as it is sent: what is large in pieces, so that others come in between."""
    return BytesIO(body) if body is not None and len(body) > _LARGE else body


def _said(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
