"""Bodies as they arrive: their size, their time, and what they unpack to."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.errors import BodyTooLargeError, SlowRequestError
from llmspell_dist.sidecar.problems import status_of
from llmspell_dist.sidecar.receiving import (
    ClientGoneError,
    Part,
    first_part,
    plain_body,
    rest_of,
    unpacked,
)
from llmspell_dist.sidecar.settings import Limits

pytestmark = pytest.mark.unit

LIMITS = Limits(body_bytes=10, body_s=0.01)
Receive = Callable[[], Any]


def parts(*bodies: bytes, end: bool = True) -> Receive:
    """Return a function that gives these parts of a body."""
    left = list(bodies)

    async def receive() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left) or not end}

    return receive


async def whole(receive: Receive, **headers: str) -> bytes:
    """Return a body as the sidecar reads it."""
    given_headers = {name.replace("_", "-").encode(): v.encode() for name, v in headers.items()}
    first = await first_part(receive, given_headers, LIMITS)
    return await rest_of(receive, first, LIMITS)


async def test_parts_are_put_together() -> None:
    """Up to the limit, and not a byte more."""
    assert await whole(parts(b"12345", b"67890")) == b"1234567890"
    with pytest.raises(BodyTooLargeError):
        await whole(parts(b"12345", b"67890", b"x"))


async def test_a_stated_size_over_the_limit_is_refused_unread() -> None:
    """The client need not send it."""
    with pytest.raises(BodyTooLargeError) as raised:
        await whole(parts(), content_length="11")
    assert raised.value.facts["actual"] == 11


async def test_a_body_that_is_there_is_small() -> None:
    """Even if the server says that more may come, once what was stated is there."""
    receive = parts(b"123", end=False)
    assert (await first_part(receive, {b"content-length": b"3"}, LIMITS)).is_small
    assert not (await first_part(parts(b"123", end=False), {}, LIMITS)).is_small
    assert not Part(b"x" * 100_000, more=False).is_small


async def test_who_goes_in_the_middle_has_sent_nothing() -> None:
    """Half a body is none."""
    with pytest.raises(ClientGoneError):
        await whole(parts(b"123", end=False))
    with pytest.raises(ClientGoneError):
        await whole(parts())


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """Neither for its beginning nor for its end."""
    import asyncio

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(SlowRequestError):
        await first_part(never, {}, LIMITS)
    with pytest.raises(SlowRequestError):
        await rest_of(never, Part(b"1", more=True), LIMITS)


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "zstd", "gzip, zstd", "identity"]))
def test_what_was_packed_comes_out_equal(body: bytes, encoding: str) -> None:
    """In the order in which it was packed."""
    packed = body
    for name in encoding.split(", "):
        if name == "gzip":
            packed = gzip.compress(packed)
        elif name == "zstd":
            packed = zstandard.compress(packed)
    limits = Limits(body_bytes=4000)
    assert plain_body(packed, {b"content-encoding": encoding.encode()}, limits) == body


@given(st.binary(max_size=200), st.sampled_from(["gzip", "zstd", "br", "gzip, zstd", "x" * 300]))
def test_rubbish_is_an_error_of_ours(body: bytes, encoding: str) -> None:
    """Whatever it is."""
    try:
        told = len(unpacked(body, encoding, 300))
    except SpellError as error:
        told = status_of(type(error))
    assert told <= 300 or told in {400, 413, 415}


@given(st.integers(0, 3000))
def test_what_unpacks_to_more_than_the_limit_is_refused(size: int) -> None:
    """Exactly from there on."""
    for encoding, pack in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        packed = pack(b"x" * size)
        if size > 1000:
            with pytest.raises(BodyTooLargeError):
                unpacked(packed, encoding, 1000)
        else:
            assert len(unpacked(packed, encoding, 1000)) == size
