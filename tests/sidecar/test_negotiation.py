"""JSON or MessagePack, packed or plain: as the client asked, and said so."""

from __future__ import annotations

import gzip

import httpx
import pytest
import zstandard
from fix_sidecar import Sidecar

from llmspell_dist.codec import decode, encode

pytestmark = pytest.mark.one_server

KEY = "/v1/state/agent:alice/note"
JSON = "application/json"
PACKED = "application/msgpack"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        (PACKED, PACKED),
        ("application/x-msgpack", PACKED),
        (f"{JSON};q=0.1, {PACKED}", PACKED),
        (f"{PACKED};q=0, */*", JSON),
        (f"text/html, {PACKED};q=0.5", PACKED),
        ("application/problem+json", JSON),
    ],
)
async def test_answers_come_as_the_client_wants_them(
    sidecar: Sidecar, accept: str, media: str
) -> None:
    """RFC 9110, 12.5.1."""
    await sidecar.ask("PUT", KEY, [1, "ü"])
    answer = await sidecar.ask("GET", KEY, headers={"accept": accept})
    assert answer.headers["content-type"] == media
    assert (answer.json() if media == JSON else decode(answer.content)) == [1, "ü"]


@pytest.mark.parametrize("accept", ["text/html", "image/*", "", f"{JSON};q=0"])
async def test_what_nobody_speaks_is_not_acceptable(sidecar: Sidecar, accept: str) -> None:
    """406, in JSON, before anything is done."""
    answer = await sidecar.ask("PUT", KEY, 1, headers={"accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "NOT_ACCEPTABLE")
    assert (await sidecar.ask("GET", KEY)).status_code == 404


async def test_problems_come_in_the_form_of_the_answers(sidecar: Sidecar) -> None:
    """With a media type of their own."""
    answer = await sidecar.ask("GET", KEY, headers={"accept": PACKED})
    assert answer.headers["content-type"] == "application/problem+msgpack"
    assert decode(answer.content)["code"] == "NOT_FOUND"
    answer = await sidecar.ask("GET", KEY)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("media", [JSON, "application/json; charset=utf-8", "application/x+json"])
async def test_json_is_known_by_its_names(sidecar: Sidecar, media: str) -> None:
    """Parameters and suffixes do not matter."""
    headers = {"content-type": media}
    assert (await sidecar.ask("PUT", KEY, 1, headers=headers)).status_code == 200


async def raw(sidecar: Sidecar, encoding: str) -> tuple[httpx.Response, bytes]:
    """Return an answer, and its body as it came."""
    headers = {"accept-encoding": encoding}
    async with sidecar.http.stream("GET", KEY, headers=headers) as answer:
        return answer, b"".join([piece async for piece in answer.aiter_raw()])


@pytest.mark.parametrize(
    ("accept", "used"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, zstd", "zstd"),
        ("zstd;q=0, gzip", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
    ],
)
async def test_large_answers_are_packed_if_the_client_takes_it(
    sidecar: Sidecar, accept: str, used: str | None
) -> None:
    """The answer says how, and that it depends on what was asked."""
    await sidecar.ask("PUT", KEY, "x" * 10_000)
    answer, body = await raw(sidecar, accept)
    if used == "gzip":
        plain = gzip.decompress(body)
    else:
        plain = zstandard.decompress(body) if used else body
    assert plain == b'"' + b"x" * 10_000 + b'"'
    assert answer.headers.get("content-encoding") == used
    assert int(answer.headers["content-length"]) == len(body)
    if used is not None:
        assert answer.headers["vary"] == "accept-encoding"


async def test_small_answers_are_not_packed(sidecar: Sidecar) -> None:
    """It would not pay."""
    await sidecar.ask("PUT", KEY, "x" * 100)
    assert "content-encoding" not in (await raw(sidecar, "gzip"))[0].headers


async def test_packed_bodies_are_read(sidecar: Sidecar) -> None:
    """In either form."""
    content = gzip.compress(encode({"a": (1, 2)}))
    headers = {"content-type": PACKED, "content-encoding": "gzip"}
    answer = await sidecar.http.put(KEY, content=content, headers=headers)
    assert answer.status_code == 200
    assert (await sidecar.ask("GET", KEY)).json() == {"a": {"$tuple": [1, 2]}}


async def test_a_head_has_everything_but_the_body(sidecar: Sidecar) -> None:
    """The length among it."""
    path = "/v1/scopes/agent:alice/keys"
    await sidecar.ask("PUT", KEY, "x" * 100)
    head, got = await sidecar.ask("HEAD", path), await sidecar.ask("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]


async def test_a_head_of_a_key_tells_whether_it_is_there(sidecar: Sidecar) -> None:
    """Without reading the value."""
    assert (await sidecar.ask("HEAD", KEY)).status_code == 404
    await sidecar.ask("PUT", KEY, 1)
    assert (await sidecar.ask("HEAD", KEY)).status_code == 200
