"""Listening to server-sent events of a sidecar, read as the standard says; raw sockets too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fix_sidecar import Sidecar


@dataclass(frozen=True)
class Said:
    """One event of a stream."""

    event: str
    data: Any
    last_id: str | None
    """The last `id` that was there until then, as browsers keep it."""


class Listener:
    """One stream, read block by block."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id: str | None = None
        self.comments = 0
        self._lines = answer.aiter_lines()

    async def next(self, within_s: float = 10.0) -> Said:
        """Return the next event; a stream that ends is `StopAsyncIteration`."""
        async with asyncio.timeout(within_s):
            while True:
                said = await self._block()
                if said is not None:
                    return said

    async def take(self, count: int) -> list[Said]:
        return [await self.next() for _ in range(count)]

    async def began(self) -> None:
        """Wait for the block with which every stream begins."""
        async with asyncio.timeout(10):
            first = await self._block()
        assert first is None or first.event == "begun"

    async def beat(self) -> None:
        """Wait for a sign of life."""
        before = self.comments
        async with asyncio.timeout(10):
            while self.comments == before:
                assert await self._block() is None

    async def ended(self) -> list[Said]:
        """Return what still comes until the stream ends."""
        rest: list[Said] = []
        async with asyncio.timeout(10):
            while True:
                try:
                    said = await self._block()
                except StopAsyncIteration:
                    return rest
                if said is not None:
                    rest.append(said)

    async def _block(self) -> Said | None:
        event, data = "message", []
        while line := await anext(self._lines):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "":
                self.comments += 1
            elif name == "id":
                self.last_id = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
        return Said(event, json.loads("\n".join(data)), self.last_id) if data else None


@asynccontextmanager
async def listening(
    sidecar: Sidecar, path: str, *, last_id: str | None = None, headers: Any = None, **query: Any
) -> AsyncIterator[Listener]:
    """Open a stream that has begun; it is closed at the block's end."""
    sent = dict(headers or {}) | ({} if last_id is None else {"last-event-id": last_id})
    given = {name: value for name, value in query.items() if value is not None}
    async with sidecar.http.stream("GET", path, params=given, headers=sent) as answer:
        if answer.status_code != 200:
            await answer.aread()
        assert answer.status_code == 200, answer.text
        listener = Listener(answer)
        await listener.began()
        yield listener


@asynccontextmanager
async def raw(sidecar: Sidecar, path: str) -> AsyncIterator[tuple[Any, Any]]:
    """A client's bare connection that has asked for a stream, and reads only what it is told to."""
    port = sidecar.services.settings.bind.port  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def until(condition: Any, within_s: float = 10.0) -> None:
    """Wait until something holds that another task brings about; it is asked between its steps."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what it asks about tells nobody
            await asyncio.sleep(0.002)
