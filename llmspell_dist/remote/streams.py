"""Streams of a sidecar: server-sent events over any number of connections, none left out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final

import aiohttp

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import SpellError, StoreTimeoutError, StoreUnavailableError
from llmspell_dist.jsonable import from_json
from llmspell_dist.remote.problems import error_of, pause_of, reason_of
from llmspell_dist.remote.streaming import StreamEvent, events_of

if TYPE_CHECKING:
    from yarl import URL

__all__ = ["Connect", "Listening", "events"]

_PASSING: Final = frozenset({429, 503})
_LONGEST_PAUSE_S: Final = 2.0


class RefusedError(Exception):
    """A stream was answered with a problem that passes."""

    def __init__(self, error: SpellError, pause: float) -> None:
        self.error = error
        self.pause = pause
        super().__init__(str(error))


class Listening:
    """One connection of a stream."""

    def __init__(
        self,
        server: str,
        session: aiohttp.ClientSession,
        url: URL,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._server = server
        self._asked = session.get(url, headers=headers, timeout=timeout, allow_redirects=False)

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response = await self._asked.__aenter__()
        if response.status >= 400:
            try:
                raise _refused(response, await response.read(), self._server)
            finally:
                response.close()
        return response

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._asked.__aexit__(kind, error, traceback)


Connect = Callable[[str | None], Listening]
"""Opens a connection that goes on behind an id."""


async def events(
    connect: Connect, server: str, last_event_id: str | None, budget_s: float
) -> AsyncIterator[StreamEvent]:
    """Iterate over the events of a stream, over any number of connections.

    The first one must come about within `budget_s`; later ones are tried for as long as somebody
    listens.
    """
    backoff, begun = Backoff(max_s=_LONGEST_PAUSE_S), False
    deadline = monotonic() + budget_s
    while True:
        pause = 0.0
        failure: SpellError | None = None
        try:
            async with connect(last_event_id) as response:
                begun = True
                async for event in events_of(response.content):
                    backoff.reset()
                    if event.id is not None:
                        last_event_id = event.id
                    if event.name == "end":
                        pause = event.retry_s or 0.0
                        break
                    if event.name == "problem":
                        raise _told(event, server)
                    yield event
        except TimeoutError:
            failure = StoreTimeoutError(server, "the stream fell silent")
        except (aiohttp.ClientError, OSError) as error:
            failure = StoreUnavailableError(server, reason_of(error))
        except RefusedError as refused:
            failure, pause = refused.error, refused.pause
        pause = max(pause, backoff.next_s())
        if failure is not None and not begun and monotonic() + pause >= deadline:
            raise failure
        await asyncio.sleep(pause)


def _refused(response: aiohttp.ClientResponse, body: bytes, server: str) -> Exception:
    media = response.headers.get("content-type", "")
    document = _document(body) if media.endswith("json") else None
    error = error_of(response.status, document, server)
    return _passing(error, response.status, pause_of(response.headers))


def _told(event: StreamEvent, server: str) -> Exception:
    """Return what a stream ended with."""
    document = _document(event.data.encode())
    status = document.get("status") if isinstance(document, dict) else None
    status = status if type(status) is int else 500
    return _passing(error_of(status, document, server), status, 0.0)


def _passing(error: SpellError, status: int, pause: float) -> Exception:
    return RefusedError(error, pause) if status in _PASSING and error.retryable else error


def _document(body: bytes) -> object:
    try:
        return from_json(json.loads(body))
    except ValueError:
        return None
