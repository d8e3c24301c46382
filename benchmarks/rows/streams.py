"""Watch streams of a sidecar: what an idle one costs, and when a change has reached all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit

import psutil

from benchmarks.harness import Bench, Pair, Row, Samples
from benchmarks.ours import open_ours
from benchmarks.rows.sidecar import running_sidecar

__all__ = ["ROWS"]

_SCOPE = "agent:watched"
_STREAMS = 2000
_SMOKE = 50
_SIDECAR = "sidecar"
_BYTES_LIMIT, _BYTES = "60 KB", 60_000.0
_SECONDS_LIMIT, _SECONDS = "2 s", 2e6
_AT_ONCE = 100
_REST_S = 1.0


class _Stream(asyncio.Protocol):
    """A client that does nothing but note when it was told what it waits for."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._end = b""
        self.begun: asyncio.Future[None] = loop.create_future()
        self.told: asyncio.Future[float] = loop.create_future()
        self.wanted = b"\0"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        end = self._end + data
        if not self.begun.done() and b"id: " in end:
            self.begun.set_result(None)
        if not self.told.done() and self.wanted in end:
            self.told.set_result(monotonic())
        self._end = end[-100:]


@asynccontextmanager
async def _streams(base: str, count: int) -> AsyncIterator[list[_Stream]]:
    address = urlsplit(base)
    head = f"GET /v1/watch/{_SCOPE} HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode()
    host, port = str(address.hostname), int(address.port or 0)
    loop = asyncio.get_running_loop()
    transports: list[asyncio.BaseTransport] = []
    streams: list[_Stream] = []
    try:
        while len(streams) < count:
            some = []
            for _ in range(min(_AT_ONCE, count - len(streams))):
                opened = await loop.create_connection(lambda: _Stream(head), host, port)
                transports.append(opened[0])
                some.append(opened[1])
            await asyncio.gather(*(stream.begun for stream in some))
            streams += some
        yield streams
    finally:
        for transport in transports:
            transport.close()


async def _idle(bench: Bench) -> Samples:
    """Measure the growth of the sidecar's memory; warm, with a few streams before."""
    count = bench.scale(_STREAMS, _SMOKE)
    sizes: list[float] = []
    seconds: list[float] = []
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        base, process = await stack.enter_async_context(running_sidecar(bench))
        resident = psutil.Process(process.pid).memory_info
        async with _streams(base, 10):
            await spell.state.set(_SCOPE, "turn", "warm")
        await asyncio.sleep(_REST_S)
        before = resident().rss
        async with _streams(base, count) as streams:
            await asyncio.sleep(_REST_S)
            sizes.append((resident().rss - before) / count)
            for turn in range(1 if bench.quick else 5):
                for stream in streams:
                    stream.wanted = f'"turn-{turn}"'.encode()
                    stream.told = asyncio.get_running_loop().create_future()
                sent = monotonic()
                await spell.state.set(_SCOPE, "turn", f"turn-{turn}")
                async with asyncio.timeout(60):
                    seconds.append(max(await asyncio.gather(*(s.told for s in streams))) - sent)
            after = (resident().rss - before) / count
    bench.note(f"{count:,} streams: {after / 1000:.1f} KB each once {len(seconds)} changes passed")
    many = len(seconds)
    return {
        _SIDECAR: sizes * many,
        _BYTES_LIMIT: [_BYTES] * many,
        "until all have it": [one * 1e6 for one in seconds],
        _SECONDS_LIMIT: [_SECONDS] * many,
    }


ROWS = (
    Row(
        "sidecar_streams",
        _idle,
        (
            Pair("sidecar_streams", _SIDECAR, _BYTES_LIMIT, "bytes"),
            Pair("sidecar_fan_out", "until all have it", _SECONDS_LIMIT),
        ),
    ),
)
