"""Shares the sidecar fairly: a client that floods waits in its own line, and nobody else does."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmspell_dist.sidecar.errors import TooManyRequestsError

__all__ = ["Gate"]


class Gate:
    """Lets so many requests of each client work at once; the others wait in that client's line.

    What waits for something that another request brings about steps aside: it counts as waiting.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self.at_once = at_once
        self.waiting = waiting
        self._working: dict[str, int] = {}
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._aside: Counter[str] = Counter()

    @property
    def working(self) -> int:
        """Requests at work."""
        return sum(self._working.values())

    def enter(self, client: str) -> asyncio.Future[None] | None:
        """Let a request in; a future if it must wait for that.

        Raises `TooManyRequestsError` if too many wait already.
        """
        count = self._working.get(client, 0)
        if count < self.at_once:
            self._working[client] = count + 1
            return None
        line = self._lines.setdefault(client, deque())
        if len(line) >= self.waiting:
            raise TooManyRequestsError(len(line))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(future)
        return future

    async def wait(self, waiting: asyncio.Future[None], client: str) -> None:
        """Wait for one's turn; who is cancelled meanwhile leaves the line."""
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.leave(client)  # its turn had come
            else:
                self._forget(waiting, client)
            raise

    def _forget(self, waiting: asyncio.Future[None], client: str) -> None:
        line = self._lines[client]
        line.remove(waiting)
        if not line:
            del self._lines[client]

    def leave(self, client: str) -> None:
        """Let the next one of this client in."""
        line = self._lines.get(client)
        while line:
            future = line.popleft()
            if not line:
                del self._lines[client]
            if not future.done():
                future.set_result(None)  # its place is this one
                return
        count = self._working[client] - 1
        if count:
            self._working[client] = count
        else:
            del self._working[client]

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Hold a place inside the block, waiting for it in this client's line."""
        waiting = self.enter(client)
        if waiting is not None:
            await self.wait(waiting, client)
        try:
            yield
        finally:
            self.leave(client)

    def step_aside(self, client: str) -> None:
        """Give a place up to wait for something else: what ends that wait may be the next in line.

        Raises `TooManyRequestsError`, with the place kept, if too many of this client wait so.
        """
        if self._aside[client] >= self.waiting:
            raise TooManyRequestsError(self.waiting, "requests of this client wait for something")
        self._aside[client] += 1
        self.leave(client)

    def leave_aside(self, client: str) -> None:
        """Have done with such a wait."""
        self._aside[client] -= 1
        if not self._aside[client]:
            del self._aside[client]
