"""Large text and bytes, encoded and put together piece by piece.

Ten megabytes copied at once hold the event loop, and every other caller in it, for milliseconds.
So a large text or bytes object is encoded while it is sent, and put together while it arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, Final

from llmspell_dist.errors import CodecError, LimitError

__all__ = ["CHUNK_BYTES", "INLINE_LIMIT", "NOT_LARGE", "Collector", "Pieces", "pieces_of"]

INLINE_LIMIT: Final = 512 * 1024
"""Values up to this stand in the record itself, and in the log."""
CHUNK_BYTES: Final = 32 * 1024
_BIN32, _STR32 = 0xC6, 0xDB
_HEADER: Final = 5

NOT_LARGE: Final = object()
"""What `Collector.value` gives for what is neither one text nor one bytes object."""


class Pieces:
    """The encoded bytes of a large text or bytes object, made one piece at a time."""

    __slots__ = ("_value", "size")

    def __init__(self, value: str | bytes, max_bytes: int) -> None:
        self._value = value
        self.size = _HEADER + _encoded_size(value)
        if self.size > max_bytes:
            raise LimitError("bytes of the encoded value", self.size, max_bytes, "$")

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        kind = _STR32 if isinstance(self._value, str) else _BIN32
        yield bytes((kind,)) + (self.size - _HEADER).to_bytes(4, "big")
        for start in range(0, len(self._value), CHUNK_BYTES):
            part = self._value[start : start + CHUNK_BYTES]
            yield part.encode() if isinstance(part, str) else part


def pieces_of(payload: bytes | Pieces) -> Iterable[bytes]:
    """Return the pieces that a large value is stored in."""
    if isinstance(payload, Pieces):
        return payload
    return (payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES))


def _encoded_size(value: str | bytes) -> int:
    if isinstance(value, bytes) or value.isascii():
        return len(value)
    try:
        return sum(
            len(value[start : start + CHUNK_BYTES].encode())
            for start in range(0, len(value), CHUNK_BYTES)
        )
    except UnicodeEncodeError:
        raise CodecError("$", "the text is not valid Unicode (a lone surrogate)") from None


class Collector:
    """Takes the pieces of a large value as they arrive."""

    __slots__ = ("_buffer", "_first", "count")

    def __init__(self) -> None:
        self._buffer = BytesIO()
        self._first = b""
        self.count = 0

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        if not self.count:
            self._first = piece[:_HEADER]
            piece = piece[_HEADER:]
        self.count += 1
        self._buffer.write(piece)

    def value(self) -> Any:
        """Return the text or bytes, if that is what the pieces are of, else `NOT_LARGE`."""
        first = self._first
        if len(first) == _HEADER and first[0] in (_BIN32, _STR32):
            body = self._buffer.getvalue()  # shares its memory, so this copies nothing
            if int.from_bytes(first[1:], "big") == len(body):
                return body if first[0] == _BIN32 else body.decode()
        return NOT_LARGE

    def payload(self) -> bytes:
        """All the bytes."""
        return self._first + self._buffer.getvalue()
