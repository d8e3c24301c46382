"""What RFC 9110 asks of a server: conditions, methods, forms, limits of a request's head."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fix_raw_http import Dial, Wire
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.agents import AgentState
from llmspell_dist.codec import decode
from llmspell_dist.sidecar.settings import Limits, Listen

pytestmark = pytest.mark.one_server

KEY = "/v1/state/agent:alice/note"
AGENT = "/v1/agents/alice"
PACKED = "application/msgpack"


async def tags(sidecar: Sidecar) -> tuple[str, str]:
    """Set a value twice; the tag that it had, and the one that it has."""
    first = (await sidecar.ask("PUT", KEY, 1)).headers["etag"]
    return first, (await sidecar.ask("PUT", KEY, 2)).headers["etag"]


# --- conditions


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("{new}", 304),
        ("W/{new}", 304),
        ("{old}, {new}", 304),
        ('"another", W/{new} ,', 304),
        ("*", 304),
        ("{old}", 200),
        ('"of-a-proxy"', 200),
        ('"", {old}', 200),
    ],
)
async def test_a_read_is_spared_by_any_of_the_tags(
    sidecar: Sidecar, form: str, status: int
) -> None:
    """13.1.2; a tag that is not ours matches nothing."""
    old, new = await tags(sidecar)
    headers = {"if-none-match": form.format(old=old, new=new)}
    answer = await sidecar.ask("GET", KEY, headers=headers)
    assert (answer.status_code, answer.headers["etag"]) == (status, new)


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        ("{new}", True),
        ("{old}, {new}", True),
        ("W/{new}", True),
        ("*", True),
        ("{old}", False),
        ('{old}, "another"', False),
        ('"another"', False),
    ],
)
async def test_a_change_is_made_if_one_of_the_tags_is_that_of_now(
    sidecar: Sidecar, form: str, holds: bool
) -> None:
    """13.1.1, of a read, a write and a removal; else 412, and nothing is changed."""
    old, new = await tags(sidecar)
    headers = {"if-match": form.format(old=old, new=new)}
    read = await sidecar.ask("GET", KEY, headers=headers)
    assert read.status_code == (200 if holds else 412)
    for method, body in (("PUT", 3), ("DELETE", None)):
        old, new = await tags(sidecar)
        headers = {"if-match": form.format(old=old, new=new)}
        answer = await sidecar.ask(method, KEY, body, headers=headers)
        assert answer.is_success == holds
        if not holds:
            facts = answer.json()["facts"]
            assert (answer.status_code, facts["actual"]) == (412, new.strip('"'))
            assert (await sidecar.ask("GET", KEY)).json() == 2


async def test_of_several_tags_only_the_one_of_now_is_written_over(sidecar: Sidecar) -> None:
    """No value: none of them holds, as ``*`` does not."""
    for form in ('"1-1", "2-1"', "*", '"another"'):
        answer = await sidecar.ask("PUT", KEY, 1, headers={"if-match": form})
        assert (answer.status_code, answer.json()["code"]) == (412, "CONFLICT")
        assert answer.headers["cache-control"] == "no-store"
    assert (await sidecar.ask("GET", KEY)).status_code == 404


@pytest.mark.parametrize("form", ["1-1", '"1-1', '"1-1" "2-1"', "", "w/*", '"a"b"', "*, *"])
async def test_what_is_no_list_of_tags_is_bad_input(sidecar: Sidecar, form: str) -> None:
    """400, instead of a condition that never holds or always does."""
    for method, header, body in (("GET", "if-none-match", None), ("PUT", "if-match", 1)):
        answer = await sidecar.ask(method, KEY, body, headers={header: form})
        expected = 400 if method == "PUT" else 404  # there is nothing to compare with
        assert answer.status_code == expected
    await sidecar.ask("PUT", KEY, 1)
    answer = await sidecar.ask("GET", KEY, headers={"if-none-match": form})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PRECONDITION")


async def test_an_agent_is_saved_over_one_of_several_revisions(sidecar: Sidecar) -> None:
    """As a value is."""
    await sidecar.services.spell.agents.save(AgentState.new("alice", "planner"))
    loaded = await sidecar.ask("GET", AGENT)
    tag, document = loaded.headers["etag"], loaded.json()
    stale = await sidecar.ask("PUT", AGENT, document, headers={"if-match": '"1-1", "x"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "CONFLICT")
    saved = await sidecar.ask("PUT", AGENT, document, headers={"if-match": f'"1-1", {tag}'})
    assert saved.status_code == 200, saved.text


# --- methods and forms


async def test_a_method_that_is_not_there_hears_of_those_that_are(sidecar: Sidecar) -> None:
    """HEAD among them wherever there is GET."""
    answer = await sidecar.ask("PATCH", KEY)
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PUT")
    answer = await sidecar.ask("GET", "/v1/transactions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("application/json;q=0, */*", PACKED),
        ("application/*;q=0.5, application/json;q=0.1", PACKED),
        (f"{PACKED};q=0.2, */*", "application/json"),
        (f"*/*;q=0.1, {PACKED};q=0.2", PACKED),
        ("*/*;q=0, application/json", "application/json"),
        (f"application/json;q=0.5, {PACKED};q=0.5", "application/json"),
    ],
)
async def test_the_more_precise_range_decides(sidecar: Sidecar, accept: str, media: str) -> None:
    """12.5.1: a weight of a form goes before that of ``*/*``."""
    await sidecar.ask("PUT", KEY, [1])
    answer = await sidecar.ask("GET", KEY, headers={"accept": accept})
    assert answer.headers["content-type"] == media


async def test_a_form_that_every_range_rules_out_is_not_acceptable(sidecar: Sidecar) -> None:
    """406."""
    answer = await sidecar.ask("GET", KEY, headers={"accept": "*/*;q=0"})
    assert (answer.status_code, answer.json()["code"]) == (406, "NOT_ACCEPTABLE")


@pytest.mark.parametrize("encoding", ["br", "gzip, br", "gzip, gzip, gzip"])
async def test_a_packing_that_is_not_known_is_told_with_those_that_are(
    sidecar: Sidecar, encoding: str
) -> None:
    """15.5.16: 415, with ``Accept-Encoding``."""
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    answer = await sidecar.http.put(KEY, content=b"1", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_ENCODING")
    assert answer.headers["accept-encoding"] == "gzip, zstd"
    assert "content-encoding" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "used"),
    [
        ("zstd;q=0.5, gzip", "gzip"),
        ("gzip;q=0.5, zstd;q=0.6", "zstd"),
        ("gzip;q=0.0001", "gzip"),
        ("zstd;q=x, gzip;q=0", None),
    ],
)
async def test_answers_are_packed_as_the_client_likes_best(
    sidecar: Sidecar, accept: str, used: str | None
) -> None:
    """12.5.3."""
    await sidecar.ask("PUT", KEY, "x" * 10_000)
    answer = await sidecar.ask("GET", KEY, headers={"accept-encoding": accept})
    assert answer.headers.get("content-encoding") == used


async def test_no_cache_keeps_what_was_read(sidecar: Sidecar) -> None:
    """State changes without a word to caches, and may be secret."""
    tag = (await sidecar.ask("PUT", KEY, 1)).headers["etag"]
    for headers in ({}, {"if-none-match": tag}):
        answer = await sidecar.ask("GET", KEY, headers=headers)
        assert answer.headers["cache-control"] == "no-store"


# --- the head of a request


async def test_a_head_that_is_too_large_is_a_problem(start_sidecar: StartSidecar) -> None:
    """431, and 414 for the path: as documents, in the form that the client asked for."""
    sidecar = await start_sidecar(limits=Limits(header_bytes=4096))
    answer = await sidecar.ask("GET", KEY, headers={"x-large": "a" * 4096})
    assert (answer.status_code, answer.json()["code"]) == (431, "HEADERS_TOO_LARGE")
    assert answer.headers["content-type"] == "application/problem+json"
    answer = await sidecar.ask("GET", KEY + "a" * 5000, headers={"accept": PACKED})
    assert (answer.status_code, decode(answer.content)["code"]) == (414, "PATH_TOO_LONG")


@pytest.mark.parametrize("first", [b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ", b"GET /"])
async def test_a_head_without_an_end_is_not_kept(
    start_sidecar: StartSidecar,
    sidecar_port: Callable[[], int],
    dial: Dial,
    first: bytes,
) -> None:
    """On the port for probes, which everybody can reach: refused once it is too large."""
    health = Listen("127.0.0.1", sidecar_port())
    await start_sidecar(health=health, limits=Limits(header_bytes=4096))
    line = await dial(health.port)
    await line.send(first)
    seen = await _flooded(line)
    assert seen.startswith(b"HTTP/1.1 431 ")
    assert json.loads(seen.partition(b"\r\n\r\n")[2])["code"] == "HEADERS_TOO_LARGE"
    other = await dial(health.port)
    for _ in range(3):  # each head begins anew
        assert (await other.ask("GET", "/livez", x="a" * 2000)).status == 200


async def test_the_unix_socket_keeps_no_endless_head_either(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """And takes bodies of any length meanwhile."""
    path = tmp_path / "s.sock"
    await start_sidecar(unix=path, limits=Limits(header_bytes=4096))
    line = Wire(*await _unix(path))
    try:
        assert (await line.ask("PUT", KEY, "x" * 1_000_000)).status == 200
        await line.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ")
        assert (await _flooded(line)).startswith(b"HTTP/1.1 431 ")
    finally:
        await line.close()


async def _flooded(line: Wire) -> bytes:
    """Send what never ends, a piece at a time, until the server answers; what it says."""
    seen = b""
    for _ in range(1000):
        await line.send(b"a" * 1000)
        try:
            async with asyncio.timeout(0.005):
                seen = await line.reader.read(1000)
        except TimeoutError:
            continue
        break
    return seen + await line.rest()


# --- WebSockets


async def _handshake(sidecar: Sidecar, path: str, **headers: str) -> httpx.Response:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    return await sidecar.http.get(path, headers=upgrade | headers)


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/nowhere", {}, 404, "ROUTE_NOT_FOUND"),
        ("/v1/events/ws?format=xml", {}, 400, "INVALID_ARGUMENT"),
        ("/v1/events/ws?durable=nobodys", {}, 404, "SUBSCRIPTION_NOT_FOUND"),
        ("/v1/events/ws", {"origin": "http://evil.example"}, 403, "FOREIGN_PAGE"),
    ],
)
async def test_a_websocket_that_cannot_be_is_refused_as_any_request(
    sidecar: Sidecar, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    """With the status and the problem document, before it is a WebSocket."""
    answer = await _handshake(sidecar, path, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def _unix(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)
