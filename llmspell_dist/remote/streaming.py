"""Server-sent events out of chunks of bytes, however they were cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp

__all__ = ["EventReader", "StreamEvent", "events_of"]

_LARGEST: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream."""

    name: str
    """Its type; ``message`` if it has none; empty for a block that only says where it is (`id`)."""
    data: str
    id: str | None = None
    """Behind which a stream goes on; None: it has none of its own."""
    retry_s: float | None = None
    """How long to wait before a new connection, if it says so."""


class EventReader:
    """Takes bytes and gives events: what WHATWG's "event stream interpretation" says."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._retry_s: float | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Return the events that are whole with this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) + self._size > _LARGEST:
            raise aiohttp.ClientPayloadError("an event is larger than 64 MiB")
        found = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                found.append(event)
        return found

    def _line(self, line: bytes) -> StreamEvent | None:
        if not line:
            return self._whole()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode()
        if name == b"data":
            self._data.append(text)
            self._size += len(line)
        elif name == b"event":
            self._name = text
        elif name == b"id" and "\0" not in text:
            self._id = text
        elif name == b"retry" and text.isascii() and text.isdigit():
            self._retry_s = int(text) / 1000
        return None

    def _whole(self) -> StreamEvent | None:
        event = None
        if self._data or self._name or self._id is not None:
            name = self._name or ("message" if self._data else "")
            event = StreamEvent(name, "\n".join(self._data), self._id, self._retry_s)
        self._name, self._data, self._id, self._retry_s, self._size = "", [], None, None, 0
        return event


async def events_of(content: aiohttp.StreamReader) -> AsyncIterator[StreamEvent]:
    """Iterate over the events of a response."""
    reader = EventReader()
    async for chunk in content.iter_any():
        for event in reader.feed(chunk):
            yield event
