"""Work that only makes sense while somebody waits for it: it ends when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.errors import DrainingError
from llmspell_dist.sidecar.receiving import ClientGoneError

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call, Receive

__all__ = ["attended"]

T = TypeVar("T")


async def attended(
    call: Call,
    work: Coroutine[Any, Any, T],
    undo: Callable[[T], Awaitable[object]],
    *,
    goes_on: bool = False,
) -> T:
    """Return what the work gives, unless the client goes or the sidecar stops meanwhile.

    Then the work is cancelled; if it was done at that very moment, `undo` takes it back. Raises
    `ClientGoneError` or `DrainingError`. Meanwhile the request does not count among those that its
    client has at work: what it waits for may be brought about by one of them. With `goes_on` the
    answer is a stream, which will want to know when the client goes, too.
    """
    services = call.services
    try:
        call.step_aside()
    except BaseException:
        work.close()
        raise
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(call.receive))
    stopping = asyncio.ensure_future(services.stopping.wait())
    try:
        await asyncio.wait((task, gone, stopping), return_when=asyncio.FIRST_COMPLETED)
        result = _ended(task, gone)
        await _still_may(call)
    except BaseException:
        gone.cancel()
        await _taken_back(task, undo)
        raise
    finally:
        stopping.cancel()
    if goes_on:
        # A server that was asked and given up on says that the client has gone: it is asked once.
        call.receive = _told_by(gone)
    else:
        gone.cancel()
    return result


async def _still_may(call: Call) -> None:
    """Raise what the request would meet if it came now: waiting can take longer than a token."""
    access, peer = call.services.access, call.scope.get("llmspell.peer")
    said = call.header(b"authorization")
    principal = access.cached(said, peer) or await access.authenticate(said, peer)
    for need in call.endpoint.needs:
        principal.require(need.verb, need.target.format_map(call.parameters))


def _ended(task: asyncio.Future[T], gone: asyncio.Future[None]) -> T:
    if gone.done():
        raise ClientGoneError
    if not task.done():
        raise DrainingError("the sidecar is stopping; ask another, or again")
    return task.result()


async def _taken_back(task: asyncio.Future[T], undo: Callable[[T], Awaitable[object]]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    if task.cancelled() or task.exception() is not None:
        return
    with suppress(SpellError):  # it ends by itself
        await undo(task.result())


def _told_by(gone: asyncio.Future[None]) -> Receive:
    async def receive() -> dict[str, Any]:
        await gone
        return {"type": "http.disconnect"}

    return receive


async def _gone(receive: Receive) -> None:
    """Return once the client has gone: nothing else comes after its request."""
    while (await receive())["type"] != "http.disconnect":
        pass
