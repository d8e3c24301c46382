"""What a sidecar does for longer than a request: begun, followed to its end, ended with its caller.

A caller that is cancelled, or that can no longer hear how far it is, ends the operation: nothing
goes on that nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, cast

from llmspell_dist.backup.progress import Observer, Phase, Progress
from llmspell_dist.backup.waiting import to_the_end
from llmspell_dist.errors import SpellError, StoreUnavailableError
from llmspell_dist.jsonable import from_json
from llmspell_dist.remote.errors import OperationLostError
from llmspell_dist.remote.problems import error_of

if TYPE_CHECKING:
    from llmspell_dist.remote.streaming import StreamEvent
    from llmspell_dist.remote.transport import Answer, Transport

__all__ = ["carry_out"]

_OPERATIONS: Final = ("v1", "operations")
_GONE: Final = "NOT_FOUND"
_ENDS_WITHIN_S: Final = 60.0
_QUIET_S: Final = 5.0

Document = Mapping[str, Any]
Tell = Callable[[Document], None]


async def carry_out(
    transport: Transport, path: tuple[str, ...], wish: Any, progress: Observer | None = None
) -> Any:
    """Have a sidecar do something that takes long, and return its result; raises what it raised.

    `progress` is told how far it is.
    """
    begun = asyncio.ensure_future(transport.request("POST", path, document=wish))
    try:
        answer = await asyncio.shield(begun)
        ended = await _followed(transport, answer.document["id"], _told(progress))
    except (asyncio.CancelledError, SpellError):
        await to_the_end(_end(transport, begun))
        raise
    if ended["status"] == "succeeded":
        return ended["result"]
    if ended["status"] == "cancelled":
        raise OperationLostError(transport.server, ended["id"], "it was cancelled there")
    problem = ended["error"]
    raise error_of(problem["status"], problem, transport.server)


async def _end(transport: Transport, begun: asyncio.Task[Answer]) -> None:
    """End an operation that nobody waits for any more; it may not even have begun."""
    with suppress(SpellError):
        path = (*_OPERATIONS, (await begun).document["id"])
        await transport.request("DELETE", path, idempotent=True, patience_s=_ENDS_WITHIN_S)


async def _followed(transport: Transport, operation_id: str, tell: Tell) -> Document:
    """Return how an operation ended."""
    path = (*_OPERATIONS, operation_id)
    stream = cast("AsyncGenerator[StreamEvent, None]", transport.stream((*path, "events")))
    try:
        async with aclosing(stream) as events:
            while True:
                document = await _next(transport, path, events)
                if document["progress"] is not None:
                    tell(document["progress"])
                if document["status"] != "running":
                    return document
    except StoreUnavailableError as error:
        raise OperationLostError(transport.server, operation_id, error.said) from error
    except SpellError as error:
        if error.code == _GONE:
            why = "it is not known there any more"
            raise OperationLostError(transport.server, operation_id, why) from None
        raise


async def _next(
    transport: Transport, path: tuple[str, ...], events: AsyncGenerator[StreamEvent, None]
) -> Document:
    """Return how an operation stands when something is told of it, or nothing is for a while.

    A stream goes on over lost connections for as long as somebody listens. So after a while
    without news it is asked for once, which ends within the retry budget if nobody is there.
    """
    event = asyncio.ensure_future(anext(events))
    try:
        while not (await asyncio.wait((event,), timeout=_QUIET_S))[0]:
            document: Document = (await transport.request("GET", path)).document
            if document["status"] != "running":
                return document
        told: Document = from_json(json.loads(event.result().data))
        return told
    finally:
        if not event.done():
            event.cancel()
            await asyncio.wait((event,))


def _told(progress: Observer | None) -> Tell:
    """Return what tells an observer; the end says again how far it was, which is told once."""
    last: list[Progress] = []

    def tell(document: Document) -> None:
        found = Progress(**{**document, "phase": Phase(document["phase"])})
        if progress is not None and last != [found]:
            last[:] = [found]
            progress(found)

    return tell
