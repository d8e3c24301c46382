"""What the tests of events share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Container
from typing import Any, TypeVar

import pytest
from fix_state import Raw

from llmspell_dist.errors import StoreBusyError, StorePermissionError
from llmspell_dist.events import Event
from llmspell_dist.events.manager import Events
from llmspell_dist.keys import KeySpace

T = TypeVar("T")
WITHIN_S = 10.0


async def soon(waiting: Awaitable[T], within_s: float = WITHIN_S) -> T:
    """Wait for something that must come, and fail instead of hanging if it does not."""
    async with asyncio.timeout(within_s):
        return await waiting


async def take(subscription: Any, count: int, *, ack: bool = True) -> list[Event]:
    """Return the next events of a subscription; a durable one is told that they were handled."""
    found = []
    for _ in range(count):
        event = await soon(anext(subscription))
        found.append(event)
        if ack and hasattr(subscription, "ack"):
            await subscription.ack(event)
    return found


async def everything_of(subscription: Any) -> None:
    """Take what comes for as long as something can come, and settle nothing."""
    async for _ in subscription:
        pass


async def data_of(subscription: Any, count: int) -> list[Any]:
    """Return the data of the next events."""
    return [event.data for event in await take(subscription, count)]


def refuse_calls(events: Events, which: Container[int]) -> None:
    """Have the server be too busy for these of the calls in which a client publishes, from 1 on."""
    execute, count = events._publisher._execute, 0

    async def refusing(call: Any) -> Any:
        nonlocal count
        count += 1
        if count in which:
            raise StoreBusyError("redis://test", "BUSY a script is running")
        return await execute(call)

    events._publisher._execute = refusing


class Refusing:
    """Stands where a consumer calls the server, and lets it refuse while it is told to.

    With `error`, by default one of missing rights; `script`: only calls of this one.
    """

    def __init__(
        self, caller: Any, error: Exception | None = None, script: str | None = None
    ) -> None:
        self.on = True
        self._error = error
        self._script = script
        self._execute = caller._execute
        caller._execute = self

    async def __call__(self, call: Any) -> Any:
        """Carry a call out, or refuse it."""
        if self.on and self._script in (None, call.name):
            raise self._error or StorePermissionError("redis://test", "NOPERM")
        return await self._execute(call)


class EventStore:
    """The queues of one namespace, as they lie in Redis."""

    def __init__(self, raw: Raw, namespace: str) -> None:
        self.raw = raw
        self.space = KeySpace(namespace)

    def queue(self, name: str) -> int:
        """How many events are in a queue."""
        return int(self.raw("XLEN", self.space.event_queue("0", name)))

    def dead(self, name: str) -> int:
        """How many dead letters there are."""
        return int(self.raw("XLEN", self.space.event_dead("0", name)))

    def pending(self, name: str) -> int:
        """How many events consumers hold."""
        return int(self.raw("XPENDING", self.space.event_queue("0", name), "q")[0])

    def poison(self, name: str, raw_bytes: bytes) -> None:
        """Put bytes into a queue past the library."""
        self.raw("XADD", self.space.event_queue("0", name), "*", "b", raw_bytes)
        self.raw("PUBLISH", self.space.event_bell("0", name), "n")

    def idle(self, name: str) -> bool:
        """Whether a consumer waits for the bell."""
        return bool(self.raw("HEXISTS", self.space.event_idle("0"), name))


@pytest.fixture
def event_store(raw: Raw, namespace: str) -> EventStore:
    """The queues of the test's namespace."""
    return EventStore(raw, namespace)
