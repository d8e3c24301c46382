"""Watching through a sidecar: every change once, in order, over lost connections and restarts.

The stream says with each change where it is, and is asked to go on there; so a watch does not mind
which sidecar answers. One task a watch reads ahead, up to a bound.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import quote
from weakref import WeakSet

from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.jsonable import from_json
from llmspell_dist.remote.documents import change_of
from llmspell_dist.remote.reads import RemoteHistory, RemoteReads
from llmspell_dist.revision import Revision
from llmspell_dist.state.model import Change
from llmspell_dist.state.seen.changes import SeenChanges
from llmspell_dist.watch.service import Watches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.remote.driver import RemoteDriver
    from llmspell_dist.remote.streaming import StreamEvent
    from llmspell_dist.watch.watch import OnTrimmed, Watch

__all__ = ["RemoteWatch", "RemoteWatches"]

_AHEAD: Final = 1000


class RemoteWatches(Watches):
    """The watches of a client of a sidecar."""

    def __init__(self, driver: RemoteDriver) -> None:
        core = driver.core
        self.reads = RemoteReads(core)
        self.history = RemoteHistory(core, self.reads)
        self._driver = cast("Any", driver)
        self._remote = driver
        self._seen = self._awaited = self._unseen = SeenChanges(core, "watch")
        self._open_ones: WeakSet[RemoteWatch] = WeakSet()
        on_fork(self)

    def _made(
        self,
        scope: ScopeKey,
        prefix: str,
        since: Revision | Change | None,
        on_trimmed: OnTrimmed,
        shown: SeenChanges,  # noqa: ARG002 - the sidecar's hooks have looked already
    ) -> Watch:
        watch = RemoteWatch(self._remote, scope.scope.text, prefix, since, on_trimmed)
        self._open_ones.add(watch)
        return cast("Watch", watch)

    def forget(self) -> None:
        """In a forked child: watches are the parent's."""
        for watch in tuple(self._open_ones):
            watch.disown()

    async def close(self) -> None:
        """End all watches: the client is closed."""
        for watch in tuple(self._open_ones):
            await watch.end(ClosedError("the client is closed"))


class _Ahead:
    """What was read and not handed out yet; it knows nothing of the watch, which may be dropped."""

    def __init__(self) -> None:
        self.events: deque[StreamEvent] = deque()
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        self.came = asyncio.Event()
        self.room = asyncio.Event()

    async def fill(self, stream: AsyncIterator[StreamEvent]) -> None:
        """Read ahead for as long as there is room."""
        try:
            async for event in stream:
                while len(self.events) >= _AHEAD:
                    self.room.clear()
                    await self.room.wait()
                self.events.append(event)
                self.begun.set()
                self.came.set()
        except Exception as error:  # noqa: BLE001 - whoever iterates is told, not left waiting
            self.error = error
        finally:
            self.begun.set()
            self.came.set()


class RemoteWatch:
    """The changes of a scope, as an asynchronous iterator; `StateManager.watch` makes it.

    ``async with`` returns when the sidecar has begun: what is committed from then on comes. Without
    it the first step begins. One task at a time may iterate.
    """

    def __init__(
        self,
        driver: RemoteDriver,
        scope: str,
        prefix: str,
        since: Revision | Change | None,
        on_trimmed: OnTrimmed,
    ) -> None:
        self.scope = scope
        """The scope that is watched."""
        self.overflows = 0
        """How often the consumer was too slow; here the sidecar waits, and this stays 0."""
        self._transport = driver.transport
        self._prefix = prefix
        self._since = since
        self._on_trimmed = on_trimmed
        self._place = since.revision if isinstance(since, Change) else since
        self._ahead = _Ahead()
        self._filling: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Exception | str | None = None
        self._busy = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.scope} at {self._place}>"

    @property
    def revision(self) -> Revision | None:
        """Up to where every change was handed out; a later watch goes on `since` here.

        ``Revision(0, 0)``: nothing was committed yet; None: a watch from now has not begun.
        """
        return self._place

    @property
    def buffered(self) -> int:
        """How many changes were heard of and not handed out yet."""
        return len(self._ahead.events)

    # --- beginning and end

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Begin, and learn where the scope is if the watch begins now."""
        if isinstance(self._end, Exception):
            raise self._end
        if self._end is not None:
            raise ClosedError("the watch is closed")
        if self._filling is None:
            query = {"prefix": self._prefix or None, "on_trimmed": self._on_trimmed}
            since = _place_of(self._since)
            stream = self._transport.stream(
                ("v1", "watch", self.scope), query=query, last_event_id=since
            )
            self._loop = asyncio.get_running_loop()
            self._filling = self._loop.create_task(self._ahead.fill(stream))
        await self._ahead.begun.wait()
        if self._ahead.error is not None and not self._ahead.events:
            self._end = self._ahead.error
            raise self._end
        self._take_places()

    async def aclose(self) -> None:
        """End the watch; who waits for its next change gets StopAsyncIteration."""
        await self.end("closed")

    async def end(self, why: Exception | str) -> None:
        """End it with what who waits for the next change is told."""
        if self._end is None:
            self._end = why
        self._ahead.came.set()
        filling = self._filling
        if filling is not None:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)

    def disown(self) -> None:
        """In a forked child: if it has begun, it is the parent's."""
        if self._filling is not None:
            keep_forever(self._filling, self._ahead, self._loop)
            self._end = self._end or ClosedError("the watch belongs to the parent process")
            self._filling, self._ahead = None, _Ahead()

    def __del__(self) -> None:
        filling: asyncio.Task[None] | None = getattr(self, "_filling", None)
        loop: asyncio.AbstractEventLoop | None = getattr(self, "_loop", None)
        if filling is None or loop is None or loop.is_closed() or filling.done():
            return
        loop.call_soon_threadsafe(filling.cancel)

    # --- iterating

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if self._busy and self._end is None:
            raise InvalidArgumentError("watch", self, "must be iterated by one task at a time")
        self._busy = True
        try:
            return await self._next()
        finally:
            self._busy = False

    async def _next(self) -> Change:
        ahead = self._ahead
        while True:
            if self._end is not None:
                if isinstance(self._end, Exception):
                    raise self._end
                raise StopAsyncIteration
            if self._filling is None:
                await self.start()
            self._take_places()
            if ahead.events:
                event = ahead.events.popleft()
                ahead.room.set()
                self._note(event.id)
                return change_of(from_json(json.loads(event.data)))
            if ahead.error is not None:
                self._end = ahead.error
                continue
            ahead.came.clear()
            await ahead.came.wait()

    def _take_places(self) -> None:
        """Take note of what only says where the stream is."""
        events = self._ahead.events
        while events and events[0].name != "message":
            self._note(events.popleft().id)

    def _note(self, event_id: str | None) -> None:
        # One within a commit says that not all of it was handed out.
        if event_id is not None and "/" not in event_id:
            self._place = Revision.parse(event_id)


def _place_of(since: Revision | Change | None) -> str | None:
    """Return where a stream is to go on, as it says it itself."""
    if not isinstance(since, Change):
        return None if since is None else str(since)
    return f"{since.revision}/{since.operation}/{since.op}/{quote(since.key, safe='')}"
