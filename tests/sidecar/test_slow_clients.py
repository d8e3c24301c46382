"""Clients that send in drops, vanish, or never read: others are served as if they were not there.

The quick form has 200 of them inside the test's process; the slow form 2,000 against the sidecar
as it is run, whose memory is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter

import psutil
import pytest
from fix_raw_http import Dial, Wire, request
from fix_sidecar import StartSidecar
from fix_sidecar_process import StartProcess

from llmspell_dist.sidecar.settings import Limits, Listen

pytestmark = pytest.mark.one_server

KEY = "/v1/state/agent:slow/key"
HEAD = b"GET /v1/state/agent:slow/key HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
BODY = (
    f"PUT {KEY} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
).encode()
CHUNKED = BODY.replace(b"content-length: 100000", b"transfer-encoding: chunked")
KINDS = {
    "head": (HEAD, b"a"),
    "body": (BODY, b"1"),
    "chunks": (CHUNKED, b"1\r\n1\r\n"),
    "nothing": (b"", b""),
}


@asynccontextmanager
async def dripping(lines: list[Wire], drop: bytes) -> AsyncIterator[None]:
    """Let all of them send a drop again and again, for the length of a block."""

    async def drip() -> None:
        while True:
            for line in lines:
                if drop and not line.writer.is_closing():
                    line.writer.write(drop)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def crowd(dial: Dial, port: int, count: int, first: bytes) -> list[Wire]:
    """Connect many that have each sent the beginning of a request."""
    lines = [await dial(port) for _ in range(count)]
    for line in lines:
        await line.send(first)
    return lines


async def latency(ask: Callable[[], Awaitable[object]], count: int = 60) -> float:
    """Return the median time of a request."""
    times = []
    for _ in range(count):
        began = perf_counter()
        await ask()
        times.append(perf_counter() - began)
    return median(times)


@pytest.mark.parametrize("kind", KINDS)
async def test_slow_clients_are_cut_off(start_sidecar: StartSidecar, dial: Dial, kind: str) -> None:
    """After the time for a head, or for a body; a slow body is told why (408)."""
    sidecar = await start_sidecar(limits=Limits(header_s=1.0, body_s=1.0))
    first, drop = KINDS[kind]
    lines = await crowd(dial, int(sidecar.url.rpartition(":")[2]), 5, first)
    async with dripping(lines, drop):
        seen = [await line.rest() for line in lines]
    told = b" 408 " if kind in {"body", "chunks"} else b""
    # A connection is reset if more drops came than were read; then the answer may be lost.
    assert all(one == b"" or (told and told in one) for one in seen)


@pytest.mark.parametrize("kind", KINDS)
async def test_others_are_served_meanwhile(
    start_sidecar: StartSidecar, dial: Dial, kind: str
) -> None:
    """200 slow ones make a request of another client not much slower, and none fail."""
    sidecar = await start_sidecar(limits=Limits(header_s=30.0, body_s=30.0))
    port = int(sidecar.url.rpartition(":")[2])
    other = await dial(port)
    assert (await other.ask("PUT", KEY, "fine")).status == 200
    first, drop = KINDS[kind]
    lines = await crowd(dial, port, 100, first)
    async with dripping(lines, drop):
        answers = [await other.ask("GET", KEY) for _ in range(50)]
    assert {(one.status, one.document) for one in answers} == {(200, "fine")}


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has this limit")
async def test_whoever_takes_nothing_of_its_answer_is_let_go(
    start_sidecar: StartSidecar,
) -> None:
    """The answer is larger than what the kernel keeps for it; so is what the server would hold."""
    sidecar = await start_sidecar(limits=Limits(answer_s=1.0))
    await sidecar.ask("PUT", KEY, "x" * 8_000_000)
    port = int(sidecar.url.rpartition(":")[2])
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", port))
        await loop.sock_sendall(deaf, request("GET", KEY))
        mine = deaf.getsockname()

        def is_held() -> bool:
            found = psutil.Process().net_connections("tcp")
            return any(one.raddr == mine and one.laddr.port == port for one in found)

        assert is_held()
        async with asyncio.timeout(20):
            while is_held():  # noqa: ASYNC110 - it is the kernel that ends it, and tells nobody
                await asyncio.sleep(0.1)


async def test_a_client_that_reads_slowly_gets_everything(start_sidecar: StartSidecar) -> None:
    """The limit is for taking nothing, not for taking long."""
    sidecar = await start_sidecar(limits=Limits(answer_s=1.0))
    await sidecar.ask("PUT", KEY, "x" * 2_000_000)
    got = 0
    async with sidecar.http.stream("GET", KEY) as answer:
        async for piece in answer.aiter_bytes(200_000):
            got += len(piece)
            await asyncio.sleep(0.2)
    assert got == 2_000_002


async def test_probes_are_not_starved_by_slow_clients(
    start_sidecar: StartSidecar, sidecar_port: Callable[[], int], dial: Dial
) -> None:
    """The port for probes lets go of who does not send its request, and answers others."""
    health = Listen("127.0.0.1", sidecar_port())
    await start_sidecar(health=health, limits=Limits(header_s=1.0))
    lines = await crowd(dial, health.port, 50, b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ")
    async with dripping(lines, b"a"):
        assert (await (await dial(health.port)).ask("GET", "/livez")).status == 200
        assert [await line.rest() for line in lines] == [b""] * 50
        assert (await (await dial(health.port)).ask("GET", "/readyz")).status == 200


@pytest.mark.slow
@pytest.mark.needs("process")
@pytest.mark.parametrize("kind", KINDS)
async def test_two_thousand_slow_clients_cost_little(
    sidecar_process: StartProcess, dial: Dial, url: str, kind: str
) -> None:
    """Others wait at most ten times as long, and each slow one costs less than 60 KB."""
    sidecar = await sidecar_process(url)
    async with sidecar.http() as http:
        await http.put(KEY, json="fine")

        async def ask() -> None:
            assert (await http.get(KEY)).json() == "fine"

        quiet, before = await latency(ask), sidecar.resident
        first, drop = KINDS[kind]
        lines = await crowd(dial, sidecar.port, 2000, first)
        async with dripping(lines[:200], drop):
            loaded, after = await latency(ask), sidecar.resident
    assert loaded < 10 * quiet
    assert after - before < 2000 * 60_000
