"""HTTP/1.1 by hand: bytes that no well-behaved client sends, and a count of what is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

HOST: Final = b"Host: 127.0.0.1\r\n"
_PATIENCE_S: Final = 20.0


@dataclass(frozen=True)
class Answer:
    """One answer, as it came."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = field(repr=False)

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        """Whether the server says that the connection ends with it."""
        return self.headers.get(b"connection", b"").lower() == b"close"


class CutError(Exception):
    """The connection ended; `seen` is what came of an answer before."""

    def __init__(self, seen: bytes) -> None:
        self.seen = seen
        super().__init__(seen[:200])


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes; that the server has hung up is seen by reading."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, *, of_head: bool = False) -> Answer:
        """Read one answer; `CutError` if the connection ends before it does."""
        head = await self._read(self.reader.readuntil(b"\r\n\r\n"))
        line, *lines = head[:-4].split(b"\r\n")
        status = int(line.split(b" ")[1])
        pairs = [one.partition(b":") for one in lines]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        size = 0 if of_head or status == 304 else int(headers.get(b"content-length", b"0"))
        body = await self._read(self.reader.readexactly(size)) if size else b""
        return Answer(status, headers, body)

    async def _read(self, reading: Any) -> bytes:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found: bytes = await reading
                return found
        except asyncio.IncompleteReadError as error:
            raise CutError(error.partial) from None
        except ConnectionError as error:
            raise CutError(b"") from error

    async def rest(self) -> bytes:
        """Read until the server hangs up."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self.reader.read()
        except ConnectionError:
            return b""

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request with a JSON body, and read its answer."""
        await self.send(request(method, path, body, headers))
        return await self.answer()

    async def close(self) -> None:
        """Hang up, without a word."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def request(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a whole request; bytes as a body are sent as they are."""
    lines = [f"{method} {path} HTTP/1.1\r\n".encode(), HOST]
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += [b"content-type: application/json\r\n", b"content-length: %d\r\n" % len(content)]
    for name, value in (headers or {}).items():
        lines.append(f"{name.replace('_', '-')}: {value}\r\n".encode())
    return b"".join([*lines, b"\r\n", content])


async def connected(port: int) -> Wire:
    """Return a connection to a port of this machine; who asks closes it."""
    return Wire(*await asyncio.open_connection("127.0.0.1", port))


@contextlib.asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    """Connect for the length of a block."""
    found = await connected(port)
    try:
        yield found
    finally:
        await found.close()


Dial = Callable[[int], Awaitable[Wire]]


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """A function that connects to a port of this machine; the connections end with the test."""
    opened: list[Wire] = []

    async def open_one(port: int) -> Wire:
        opened.append(await connected(port))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()
