"""What all subscriptions have in common: tasks wait in line for what comes, and it ends for all."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from typing import Generic, TypeVar

from llmspell_dist.closing import AsyncClosing
from llmspell_dist.errors import ClosedError

__all__ = ["Subscription"]

T = TypeVar("T")


class Subscription(AsyncClosing, Generic[T]):
    """Gives one thing after the other to the tasks that wait, first come, first served."""

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._end: BaseException | None = None
        self._begun = False

    @abstractmethod
    def _take(self) -> T | None:
        """Return what is there to be given out; None if there is nothing now."""

    def _begin(self) -> None:
        if self._begun:
            raise ClosedError("the subscription has begun already")

    async def _next(self) -> T:
        """Wait for the next; raises what ended the subscription, or StopAsyncIteration."""
        while True:
            taken = self._take()
            if taken is not None:
                return taken
            if self._end is not None:
                if isinstance(self._end, StopAsyncIteration):
                    # A new one each time: several may wait, and a traceback grows with each.
                    raise StopAsyncIteration
                raise self._end
            if not self._begun:
                raise ClosedError("the subscription has not begun: use `async with` around it")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # it was woken for one that another can take
                raise

    def _wake(self, count: int = 1) -> None:
        """Let so many look again."""
        while self._waiters and count:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    def _finish(self, error: BaseException | None) -> None:
        """Let all that wait stop: with an error, or as iterations do."""
        if self._end is None:
            self._end = error or StopAsyncIteration()
        self._wake(len(self._waiters))
