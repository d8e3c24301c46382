"""Hostile input: paths, headers, bodies and framing that try to mean something else.

What matters is what does not happen: nobody gets at another key, nothing is reflected, nothing is
applied twice or by a request that was smuggled, and the next request is served.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Any

import msgpack
import pytest
import zstandard
from fix_raw_http import HOST, Answer, CutError, Dial, Wire, request
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.sidecar.settings import Limits

pytestmark = [pytest.mark.one_server, pytest.mark.security]

KEY = "/v1/state/agent:alice/note"
LIMIT = 256 * 1024


@pytest.fixture
async def line(start_sidecar: StartSidecar, dial: Dial) -> Any:
    """A raw connection to a sidecar that takes bodies of 256 KiB, with a value at KEY."""
    sidecar: Sidecar = await start_sidecar(limits=Limits(body_bytes=LIMIT, body_s=2.0))
    found = await dial(int(sidecar.url.rpartition(":")[2]))
    assert (await found.ask("PUT", KEY, "mine")).status == 200
    yield found
    # Whatever came: the sidecar serves, and the value is what it was.
    after = await dial(int(sidecar.url.rpartition(":")[2]))
    answer = await after.ask("GET", KEY)
    assert (answer.status, answer.document) == (200, "mine")


async def sent(line: Wire, data: bytes) -> Answer | None:
    """Return the answer to raw bytes; None if the server just hung up."""
    await line.send(data)
    try:
        return await line.answer()
    except CutError as cut:
        if cut.seen:
            raise
        return None


# --- paths ----------------------------------------------------------------------------------------

PATHS = {
    "/v1/state/agent:alice/../agent:alice/note": {404},
    "/v1/state/./agent:alice/note": {404},
    "/v1/state/agent:alice/note/": {404},
    "/v1/state//agent:alice/note": {404},
    "/v1/state/agent:alice//note": {404},
    "//v1/state/agent:alice/note": {404},
    "/v1/state/agent:alice%2Fnote": {404},
    "/v1/state/agent:alice\\note": {404},
    "/v1/state/agent:alice;a=b/note": {400, 404},
    "/v1/state/agent:alice/note;a=b": {404},
    "/v1/state/%2e%2e/agent:alice/note": {404},
    "/v1/state/agent:alice/%2e%2e%2fnote": {404},
    "/v1/state/agent:alice/..%2f..%2fagent:alice%2fnote": {404},
    "/v1/state/agent:alice/%252e%252e%252fnote": {404},
    "/v1/state/agent%2Falice/note": {400},
    "/v1/state/agent:alice%00/note": {400},
    "/v1/state/agent:alice/note%00": {400},
    "/v1/state/agent:alice/note%2500": {404},
    "/v1/state/agent:alice/%c0%ae%c0%ae": {400},
    "/v1/state/agent:alice/%ed%a0%80": {400},
    "/v1/state/agent:alice/%ff": {400},
    "/v1/state/agent:alice/%": {404},
    "/v1/state/agent:alice/%zz": {404},
    "/v1/state/agent:alice/%u0041": {404},
    "/v1/state/*/note": {400},
    "/v1/state/agent:*/note": {400},
    "/v1/state/AGENT:alice/note": {400},
    "/v1/state/agent:/note": {400},
    "/v1/state/agent:alice/" + "x" * 5000: {414},
    "/V1/state/agent:alice/note": {404},
    "/v1/state/agent:alice/note?at=../x": {400},
    "/v1/state/agent:alice/note?record=true&record=true": {400},
    "/v1/state/agent:alice/note?unknown=1": {400},
    "/v1/state/agent:alice/note?record=%00": {400},
    "/v1/state/agent:alice/note?%ff=1": {400},
    "/v1/state/agent:alice/note?a;b": {400},
    "*": {404},
    "/": {404},
}


@pytest.mark.parametrize("path", PATHS, ids=[path[:50] for path in PATHS])
async def test_no_path_reaches_what_it_does_not_name(line: Wire, path: str) -> None:
    """Only the plain spelling of a key is that key."""
    answer = await line.ask("GET", path)
    assert answer.status in PATHS[path], answer.body
    assert b"mine" not in answer.body
    assert answer.headers[b"content-type"] == b"application/problem+json"


@pytest.mark.parametrize(
    "path", ["/v1/state/agent:a%2520b/k", "/v1/state/agent:%C3%BC/k", KEY + "%2e"]
)
async def test_odd_names_are_names(line: Wire, path: str) -> None:
    """What is written under one is read under it, and nowhere else."""
    assert (await line.ask("PUT", path, "odd")).status == 200
    assert (await line.ask("GET", path)).document == "odd"


async def test_a_step_of_a_workflow_is_one_segment(line: Wire) -> None:
    """Its slash is encoded; written plainly, it is another path."""
    assert (await line.ask("PUT", "/v1/state/workflow:w%2Fstep:s/k", 1)).status == 200
    assert (await line.ask("GET", "/v1/state/workflow:w/step:s/k")).status == 404


# --- headers --------------------------------------------------------------------------------------

EVIL = "x%0d%0aset-cookie:%20evil=1"


@pytest.mark.parametrize(
    "name", ["idempotency-key", "x-actor", "x-correlation-id", "traceparent", "baggage", "accept"]
)
async def test_no_header_is_reflected_into_a_header(line: Wire, name: str) -> None:
    """Not encoded, and not as raw bytes beyond ASCII."""
    for value in (EVIL, "x\x85evil", "ü" * 50, "a" * 4000, "%0d%0a%00"):
        data = request("PUT", "/v1/state/agent:bob/k", 1, {name: value})
        answer = await sent(line, data)
        assert answer is not None
        assert answer.status in {200, 400, 406}
        told = b"\n".join(b"%s: %s" % pair for pair in answer.headers.items())
        assert b"evil" not in told
        assert b"aaaa" not in told


@pytest.mark.parametrize(
    "head",
    [
        b"X-Actor: a\r\n\tfolded\r\n",
        b"X-Actor: a\rSet-Cookie: evil\r\n",
        b"X-Actor: a\0b\r\n",
        b"X Actor: a\r\n",
        b"X-Actor : a\r\n",
        b": a\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 1,1\r\n",
        b"Content-Length: 0x1\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"X: " + b"x" * 600_000 + b"\r\n",
        b"".join(b"X-%d: y\r\n" % n for n in range(300)),
    ],
    ids=lambda head: repr(head[:30]),
)
async def test_a_head_that_two_servers_could_read_differently_is_refused(
    line: Wire, head: bytes
) -> None:
    """And nothing after it is read from that connection."""
    data = f"PUT {KEY} HTTP/1.1\r\n".encode() + HOST + head + b"\r\n1" + request("GET", "/livez")
    await line.send(data)
    seen = await line.rest()
    assert seen == b"" or seen.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert seen.count(b"HTTP/1.1 ") <= 1


async def test_two_lengths_do_not_smuggle_a_request(line: Wire, dial: Dial) -> None:
    """Chunks win over Content-Length, as the RFC says, and the connection ends with that answer."""
    for length in (b"4", b"5", b"60"):
        inner = request("PUT", "/v1/state/agent:smuggled/k", 1)
        head = b"PUT /v1/state/agent:bob/k HTTP/1.1\r\n" + HOST
        head += b"content-type: application/json\r\ncontent-length: " + length + b"\r\n"
        body = b"transfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n" + inner
        await line.send(head + body)
        seen = await line.rest()
        assert seen.count(b"HTTP/1.1 ") == 1
        line = await dial(line.writer.get_extra_info("peername")[1])


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + b"x" * 200,
        b"\0" * 100,
        b"*1\r\n$4\r\nPING\r\n",
        b"G<T / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_no_answer_of_ours(line: Wire, data: bytes) -> None:
    """400 without a body, or nothing."""
    await line.send(data)
    seen = await line.rest()
    assert seen == b"" or seen.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


@pytest.mark.parametrize(
    "headers",
    [
        {"x-http-method-override": "DELETE"},
        {"x-method-override": "DELETE"},
        {"x-original-url": "/v1/scopes/agent:alice/clear"},
        {"x-rewrite-url": "/livez"},
        {"x-forwarded-for": "10.0.0.1", "x-forwarded-host": "evil", "forwarded": "for=evil"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_headers_do_not_change_what_is_asked(line: Wire, headers: dict[str, str]) -> None:
    """Method and path are those of the request line."""
    answer = await line.ask("GET", KEY, **headers)
    assert answer.document == "mine"


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "X" * 1000])
async def test_unknown_methods_are_told_so(line: Wire, method: str) -> None:
    """405 with what there is, and nothing is echoed at length."""
    answer = await sent(line, f"{method} {KEY} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    assert answer is not None
    assert answer.status in {400, 404, 405}
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8750"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1].evil.example"}, 403),
        ({"Host": "[::1]:80.evil.example"}, 403),
        ({"Host": "127.0.0.1:"}, 403),
        ({"Host": "127.0.0.1:80:80"}, 403),
        ({"Host": "[::1]:8750"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "localhost:8750"}, 200),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1.evil"}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, 200),
        ({"Host": "127.0.0.1", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "127.0.0.1", "Sec-Fetch-Site": "same-site"}, 200),
    ],
)
async def test_pages_from_elsewhere_are_not_served_without_credentials(
    line: Wire, headers: dict[str, str], status: int
) -> None:
    """Neither by a name that was made to mean this machine, nor from another origin."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    answer = await sent(line, f"GET {KEY} HTTP/1.1\r\n{lines}\r\n".encode())
    assert answer is not None
    assert answer.status == status
    assert b"access-control-allow-origin" not in answer.headers


async def test_a_form_of_a_page_is_no_body(line: Wire) -> None:
    """What browsers send anywhere without asking is in none of our media types."""
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        data = f"PUT {KEY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media}\r\n".encode()
        answer = await sent(line, data + b"Content-Length: 1\r\n\r\n1")
        assert answer is not None
        assert (answer.status, answer.document["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("path", [KEY, "/livez", "/v1/transactions", "/nowhere"])
async def test_a_websocket_on_a_plain_route_is_refused(line: Wire, path: str) -> None:
    """And no plain answer leaks out of it."""
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = await sent(line, f"GET {path} HTTP/1.1\r\n".encode() + HOST + upgrade)
    assert answer is not None
    assert answer.status == (404 if path == "/nowhere" else 405)
    assert b"mine" not in answer.body


# --- bodies ---------------------------------------------------------------------------------------


def body_request(body: bytes, media: str, **headers: str) -> bytes:
    """Return a PUT to another key with any body."""
    head = b"PUT /v1/state/agent:bob/k HTTP/1.1\r\n" + HOST
    head += f"content-type: {media}\r\ncontent-length: {len(body)}\r\n".encode()
    for name, value in headers.items():
        head += f"{name.replace('_', '-')}: {value}\r\n".encode()
    return head + b"\r\n" + body


JSONS = {
    "nothing": b"",
    "truncated": b'{"a": [1, 2',
    "trailing": b"1 2",
    "nan": b"NaN",
    "infinity": b"[Infinity]",
    "lone surrogate": b'"\\ud800"',
    "raw surrogate": b'"\xed\xa0\x80"',
    "latin": b'"\xff"',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf1",
    "single quotes": b"{'a': 1}",
    "comment": b"1 // one",
    "depth": b"[" * 100_000 + b"]" * 100_000,
    "depth of objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "tag twice": b'{"$bytes": "aGk=", "$set": []}',
    "tag with rubbish": b'{"$datetime": "yesterday"}',
    "tag of a list": b'{"$map": [[[], 1]]}',
    "unhashable in a set": b'{"$set": [[1]]}',
    "huge int": b'{"$int": "' + b"9" * 100_000 + b'"}',
    "float of a huge int": b"1" + b"0" * 5000,
}


@pytest.mark.parametrize("name", JSONS)
async def test_json_that_is_none_is_refused(line: Wire, name: str) -> None:
    """400 with the library's code, at once."""
    answer = await sent(line, body_request(JSONS[name], "application/json"))
    assert answer is not None
    assert answer.status == 400, answer.body
    assert len(answer.body) < 2000
    assert (await line.ask("GET", "/v1/state/agent:bob/k")).status == 404


def nested(depth: int) -> bytes:
    """Return MessagePack lists within one another."""
    return b"\x91" * depth + b"\xc0"


PACKED = {
    "nothing": b"",
    "truncated": b"\x92\x01",
    "trailing": b"\x01\x01",
    "reserved": b"\xc1",
    "depth": nested(100_000),
    "depth of maps": b"\x81\xa1a" * 50_000 + b"\xc0",
    "huge array": b"\xdd" + struct.pack(">I", 2**32 - 1),
    "huge map": b"\xdf" + struct.pack(">I", 2**32 - 1),
    "huge bytes": b"\xc6" + struct.pack(">I", 2**32 - 1),
    "huge text": b"\xdb" + struct.pack(">I", 2**32 - 1),
    "unknown extension": msgpack.packb(msgpack.ExtType(99, b"x")),
    "list as key": b"\x81\x90\x01",
    "map as key": b"\x81\x80\x01",
    "latin": b"\xa1\xff",
}


@pytest.mark.parametrize("name", PACKED)
async def test_messagepack_that_is_none_is_refused(line: Wire, name: str) -> None:
    """400, whatever it claims of its size."""
    answer = await sent(line, body_request(PACKED[name], "application/msgpack"))
    assert answer is not None
    assert answer.status == 400, answer.body
    assert (await line.ask("GET", "/v1/state/agent:bob/k")).status == 404


def gzipped(size: int) -> bytes:
    """Return a text of JSON, as gzip."""
    return gzip.compress(b'"' + b"x" * size + b'"')


def zstd(size: int, *, stated: bool) -> bytes:
    """Return a text of JSON, as zstd, with or without its size."""
    options = zstandard.ZstdCompressor(write_content_size=stated)
    return options.compress(b'"' + b"x" * size + b'"')


BOMBS = {
    "gzip": ("gzip", gzipped(50_000_000)),
    "zstd": ("zstd", zstd(50_000_000, stated=True)),
    "zstd without its size": ("zstd", zstd(50_000_000, stated=False)),
    "gzip in gzip": ("gzip, gzip", gzip.compress(gzipped(50_000_000))),
    "gzip in zstd": ("gzip, zstd", zstandard.compress(gzipped(50_000_000))),
    "just over": ("gzip", gzipped(LIMIT)),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_what_unpacks_to_more_than_the_limit_is_refused(line: Wire, name: str) -> None:
    """413, before it is unpacked."""
    encoding, body = BOMBS[name]
    answer = await sent(line, body_request(body, "application/json", content_encoding=encoding))
    assert answer is not None
    assert (answer.status, answer.document["code"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b"1")[:-4], 400),
        ("gzip", gzip.compress(b"1") + b"more", 400),
        ("gzip", gzip.compress(b"1") * 2, 400),
        ("gzip", zlib.compress(b"1"), 400),
        ("zstd", b"no zstd", 400),
        ("zstd", zstandard.compress(b"[1,2,3]")[:-2], 400),
        ("zstd", zstandard.compress(b"1") + b"more", 400),
        ("br", b"1", 415),
        ("deflate", zlib.compress(b"1"), 415),
        (", ".join(["gzip"] * 50), b"1", 415),
        ("identity", b"1", 200),
        ("x-gzip", gzip.compress(b"1"), 200),
        ("gzip, zstd", zstandard.compress(gzip.compress(b"1")), 200),
    ],
)
async def test_encodings_are_what_they_say_or_refused(
    line: Wire, encoding: str, body: bytes, status: int
) -> None:
    """Damaged, unknown, and too many of them."""
    answer = await sent(line, body_request(body, "application/json", content_encoding=encoding))
    assert answer is not None
    assert answer.status == status, answer.body


async def test_a_body_over_the_limit_is_refused_before_it_is_read(line: Wire) -> None:
    """By its stated length; without one, as soon as it is over."""
    head = body_request(b"", "application/json").replace(b": 0\r\n", b": 999999999\r\n")
    answer = await sent(line, head)
    assert answer is not None
    assert answer.status == 413


async def test_chunks_over_the_limit_are_refused(line: Wire) -> None:
    """A body without a stated length ends at the limit too."""
    head = body_request(b"", "application/json").replace(
        b"content-length: 0", b"transfer-encoding: chunked"
    )
    chunk = b"10000\r\n" + b"1" * 0x10000 + b"\r\n"
    answer = await sent(line, head + chunk * 8)
    assert answer is None or answer.status == 413


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n1\r\n0\r\n\r\n",
        b"-1\r\n1\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n1\r\n0\r\n\r\n",
        b"1\r\n12\r\n0\r\n\r\n",
        b"1;" + b"x" * 20_000 + b"\r\n1\r\n0\r\n\r\n",
        b"1\n1\n0\n\n",
    ],
)
async def test_malformed_chunks_are_refused(line: Wire, chunks: bytes) -> None:
    """400, and nothing of it is kept."""
    head = body_request(b"", "application/json").replace(
        b"content-length: 0", b"transfer-encoding: chunked"
    )
    answer = await sent(line, head + chunks)
    assert answer is None or answer.status in {400, 408}


async def test_a_body_shorter_than_it_says_is_not_taken(line: Wire) -> None:
    """The client hangs up in the middle: nothing is written."""
    data = body_request(b"12345", "application/json").replace(b": 5\r\n", b": 50\r\n")
    await line.send(data)
    line.writer.write_eof()
    seen = await line.rest()
    assert seen == b"" or seen.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408"))


@pytest.mark.parametrize("path", [KEY, "/v1/scopes", "/livez"])
async def test_a_get_with_a_body_does_not_shift_the_next_request(line: Wire, path: str) -> None:
    """It is refused or ignored, but never read as the next one."""
    inner = request("PUT", KEY, "smuggled")
    await line.send(request("GET", path, inner) + request("GET", "/livez"))
    first, second = await line.answer(), await line.answer()
    assert first.status in {200, 400}
    assert (second.status, second.document["status"]) == (200, "alive")
