"""A watch: the changes of one scope, each once, in order, whatever happens to the connection.

All reading happens when the consumer asks for its next change, so a watch has no task of its own
and holds no more than its buffer, and ten bytes for each entry that it is behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.state.model import Change
from llmspell_dist.watch.following import Follower, OnTrimmed

if TYPE_CHECKING:
    from types import TracebackType

    from llmspell_dist.revision import Revision

__all__ = ["OnTrimmed", "Watch"]

_PAGE: Final = 100
_LOOK_AFTER_S: Final = 1.0
"""How long a watch waits between two looks at the log while the server tells it nothing."""


class Watch(Follower):
    """The changes of a scope, as an asynchronous iterator; `StateManager.watch` makes it.

    ``async with`` returns when the subscription is confirmed: what is committed from then on comes.
    Without it the first step subscribes. One task at a time may iterate.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.scope} at {self._place}>"

    @property
    def revision(self) -> Revision | None:
        """Up to where every change was handed out; a later watch goes on `since` here.

        ``Revision(0, 0)``: nothing was committed yet; None: a watch from now has not begun.
        """
        return self._place

    @property
    def overflows(self) -> int:
        """How often the consumer was too slow and went on from the log; nothing was lost."""
        return self._buffer.overflows

    @property
    def buffered(self) -> int:
        """How many commits were heard of and not handed out yet."""
        return len(self._buffer)

    # --- beginning and end

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch; who waits for its next change gets StopAsyncIteration."""
        if self._end is None:
            self._end = "closed"
        self._wake()
        leaving = self._leave()
        if leaving is not None:
            await asyncio.shield(leaving)

    def _leave(self) -> asyncio.Future[None] | None:
        joined, self._joined = self._joined, False
        return self._watches.feeds.drop(self._scope, self) if joined else None

    def __del__(self) -> None:
        if getattr(self, "_joined", False):
            self._watches.abandon(self._scope, self)

    async def start(self) -> None:
        """Subscribe, and find out where the scope is if the watch begins now."""
        self._check_open()
        if not self._started and self._shown.wanted:
            said = {"scope": self.scope, "prefix": self._prefix}
            await self._watches.run(self._shown.begin(said))
        if not self._joined:
            await self._watches.feeds.join(self._scope, self)
            self._joined = True
        if self._started:
            return
        since = self._since
        if since is None:
            await self._read(self._go_to_now)
        else:
            if isinstance(since, Change):
                await self._read(self._take_rest_of)
            self._buffer.start(self._known.revision)
            self._buffer.behind = True
        self._started = True

    def _check_open(self) -> None:
        if isinstance(self._end, SpellError):
            raise self._end
        if self._end is not None:
            raise ClosedError("the watch is closed")

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
        while True:
            if self._end is not None:
                if isinstance(self._end, SpellError):
                    raise self._end
                raise StopAsyncIteration
            if self._changes:
                return await self._hand_out_seen()
            if self._buffer:
                self._open_entry(self._buffer.take())
            elif not self._started:
                await self.start()
            elif self._scan is not None:
                await self._read(self._scan_on)
            elif self._ahead:
                await self._read(self._read_page)
            elif self._buffer.behind:
                await self._read(self._catch_up)
            else:
                await self._wait()

    async def next_page(self, page: deque[tuple[Change | SpellError, Revision | None]]) -> None:
        """Add the next change to `page`, and what is there without waiting; for other threads.

        Each comes with the watch's revision after it. Nothing is lost if the caller is cancelled:
        what was taken out of the watch is in the page.
        """
        page.append((await anext(self), self._place))
        if self._shown.wanted:
            return  # each must be looked at before it is handed out
        while len(page) < _PAGE and (self._changes or self._buffer) and self._end is None:
            if not self._changes:
                self._open_entry(self._buffer.take())
                continue
            try:
                page.append((self._hand_out(), self._place))
            except SpellError as error:
                page.append((error, self._place))

    async def _wait(self) -> None:
        """Wait for what the feed tells; while that can be nothing, look at the log now and then."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        look = None
        if not self._watches.feeds.hears(self._scope):
            look = loop.call_later(_LOOK_AFTER_S, self._look)
        try:
            await waiter
        finally:
            self._waiter = None
            if look is not None:
                look.cancel()

    def _look(self) -> None:
        self._buffer.behind = True
        self._wake()
