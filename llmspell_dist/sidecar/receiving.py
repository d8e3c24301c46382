"""Reads a request's body: within its limits of size and time, unpacked if it was compressed."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from llmspell_dist.sidecar.errors import (
    BodyError,
    BodyTooLargeError,
    EncodingError,
    SlowRequestError,
)

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Receive
    from llmspell_dist.sidecar.settings import Limits

__all__ = ["SMALL", "ClientGoneError", "Part", "first_part", "plain_body", "rest_of", "unpacked"]

SMALL: Final = 64 * 1024
"""Of larger bodies a client can have so many at once as it can have requests."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_WINDOW_LOG: Final = 23
_ENCODINGS: Final = 2
"""Each may take as long as unpacking the largest body does."""


class ClientGoneError(Exception):
    """The client went away before its request was there."""


class Part(NamedTuple):
    """What of a body is there, and whether more is to come."""

    body: bytes
    more: bool

    @property
    def is_small(self) -> bool:
        """Whether it is the whole body, and nothing that memory would feel."""
        return not self.more and len(self.body) <= SMALL


async def first_part(receive: Receive, headers: dict[bytes, bytes], limits: Limits) -> Part:
    """Return the first part of a body, which mostly is all of it."""
    stated = headers.get(b"content-length")
    if stated is not None and stated.isdigit() and int(stated) > limits.body_bytes:
        raise BodyTooLargeError(int(stated), limits.body_bytes)
    try:
        async with asyncio.timeout(limits.body_s):
            body, more = await _part(receive)
    except TimeoutError:
        raise SlowRequestError(limits.body_s) from None
    # Granian says that more may come until it has looked.
    return Part(body, more and (stated is None or stated != b"%d" % len(body)))


async def rest_of(receive: Receive, first: Part, limits: Limits) -> bytes:
    """Return a body whose first part is there."""
    parts, size = [first.body], len(first.body)
    more = first.more
    try:
        async with asyncio.timeout(limits.body_s):
            while more:
                body, more = await _part(receive)
                size += len(body)
                if size > limits.body_bytes:
                    break
                parts.append(body)
    except TimeoutError:
        raise SlowRequestError(limits.body_s) from None
    if size > limits.body_bytes:
        raise BodyTooLargeError(None if more else size, limits.body_bytes)
    return b"".join(parts)


async def _part(receive: Receive) -> Part:
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGoneError
    return Part(message.get("body", b""), message.get("more_body", False))


def plain_body(body: bytes, headers: dict[bytes, bytes], limits: Limits) -> bytes:
    """Return a body as it was before it was compressed, if it was."""
    encoding = headers.get(b"content-encoding")
    if encoding is None:
        return body
    return unpacked(body, encoding.decode("latin-1"), limits.body_bytes)


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """Return what was compressed; never more than `most`, whatever it claims."""
    names = [name.strip().lower() for name in encoding.split(",")]
    if len(names) > _ENCODINGS:
        raise EncodingError(encoding)
    for name in reversed(names):
        if name in {"gzip", "x-gzip"}:
            body = _gunzip(body, most)
        elif name == "zstd":
            body = _unzstd(body, most)
        elif name not in {"identity", ""}:
            raise EncodingError(name)
    return body


def _gunzip(body: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        out = unpacker.decompress(body, most + 1)
    except zlib.error:
        raise BodyError("gzip", "it is damaged") from None
    if len(out) > most or unpacker.unconsumed_tail:
        raise BodyTooLargeError(None, most)
    if not unpacker.eof or unpacker.unused_data:
        raise BodyError("gzip", "it is not one whole member")
    return out


def _unzstd(body: bytes, most: int) -> bytes:
    # Through a reader: a frame that states its size would be given that much memory at once.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        with unpacker.stream_reader(body, read_size=1 << 16) as reader:
            out = reader.read(most + 1)
    except zstandard.ZstdError:
        raise BodyError("zstd", "it is damaged") from None
    if len(out) > most:
        raise BodyTooLargeError(None, most)
    # The reader stops at the end of a frame, and at that of what there is of one.
    whole = unpacker.decompressobj()
    out = whole.decompress(body)
    if not whole.eof or whole.unused_data:
        raise BodyError("zstd", "it is not one whole frame")
    return out
