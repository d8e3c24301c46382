"""How waiters are woken: one channel a client and shard, and who waits for which message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmspell_dist.errors import ClosedError
from llmspell_dist.leases.wire import NONCE_BYTES

if TYPE_CHECKING:
    from llmspell_dist.leases.steps import LeaseSteps
    from llmspell_dist.redis.hub import Hub

__all__ = ["CLOSED", "GRANTED", "RESUMED", "Waiter", "Wakes"]

GRANTED, BROKEN, RESUMED, CLOSED = b"g", b"b", b"r", b"c"
"""The lease is yours; it was taken from you; messages may be missing; the client is closed."""


class Waiter:
    """One who waits for its turn."""

    __slots__ = ("_messages", "_wakened")

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._wakened: asyncio.Future[None] | None = None

    def take(self, message: bytes) -> None:
        """Hand a message to the waiter."""
        self._messages.append(message)
        if self._wakened is not None and not self._wakened.done():
            self._wakened.set_result(None)

    async def next(self, within_s: float | None) -> bytes:
        """Return the next message; empty if there is none in time."""
        if not self._messages:
            loop = asyncio.get_running_loop()
            wakened = self._wakened = loop.create_future()
            timer = None
            if within_s is not None:
                timer = loop.call_later(max(0.0, within_s), _resolve, wakened)
            try:
                await wakened
            finally:
                self._wakened = None
                if timer is not None:
                    timer.cancel()
        return self._messages.popleft() if self._messages else b""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Wakes:
    """Hands the messages of this client's channels to those whom they concern.

    `broken` is called with the nonce of a grant that somebody took away by force, and what was
    said about it.
    """

    def __init__(self, steps: LeaseSteps, hub: Hub, broken: Callable[[bytes, bytes], None]) -> None:
        self._steps = steps
        self._hub = hub
        self._broken = broken
        self._waiters: dict[bytes, Waiter] = {}
        self._dismissed = False
        self._subscribing: dict[str, asyncio.Task[None]] = {}

    def listens(self, shard: str) -> bool:
        """Whether this client can be woken in a shard, without asking for that first."""
        task = self._subscribing.get(shard)
        return task is not None and task.done() and not task.cancelled() and not task.exception()

    async def listen(self, shard: str) -> None:
        """See to it that this client can be woken in a shard; asked once, it lasts."""
        task = self._subscribing.get(shard)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.get_running_loop().create_task(
                self._hub.subscribe(self._steps.channel(shard), self._hear, resumed=self._resumed)
            )
            self._subscribing[shard] = task
        # Others may wait for the same subscription: a cancelled caller leaves it to them.
        await asyncio.wait({task})
        if task.cancelled():  # by `close`: whoever waits here was not cancelled
            raise ClosedError("the client was closed while it waited")
        task.result()

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, nonce: bytes) -> Waiter:
        """Begin to listen for one who waits."""
        if self._dismissed:
            raise ClosedError("the client is closed")
        waiter = self._waiters[nonce] = Waiter()
        return waiter

    def leave(self, nonce: bytes) -> None:
        """Stop to listen for one who waited."""
        self._waiters.pop(nonce, None)

    def _hear(self, message: bytes) -> None:
        nonce, what = message[:NONCE_BYTES], message[NONCE_BYTES:]
        if what[:1] == BROKEN:
            self._broken(nonce, what[1:])
            return
        waiter = self._waiters.get(nonce)
        if waiter is not None:
            waiter.take(what)

    def _resumed(self) -> None:
        for waiter in tuple(self._waiters.values()):
            waiter.take(RESUMED)

    async def dismiss(self) -> None:
        """Let nobody wait any more; returns when those who waited have heard it."""
        self._dismissed = True
        waiters = tuple(self._waiters.values())
        if not waiters:
            return
        for waiter in waiters:
            waiter.take(CLOSED)
        # A turn for what was woken, another for what it sends.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def close(self) -> None:
        """End subscriptions that are under way."""
        for task in self._subscribing.values():
            task.cancel()
        await asyncio.gather(*self._subscribing.values(), return_exceptions=True)
