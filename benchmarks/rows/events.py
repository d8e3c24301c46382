"""Durable events from one producer to one group in another process, until all are acknowledged."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack

from benchmarks.event_worker import PEER_QUEUE
from benchmarks.harness import Arm, Bench, Pair, Row, Samples
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.peers import REDIS_PY, open_redis_py
from benchmarks.server import Server
from llmspell_dist.events import Event

__all__ = ["ROWS"]

_TARGET = "20,000 a second"
_AT_ONCE = 256
_TYPE = "bench.agent.step"


class _Consumer:
    """One process of `benchmarks.event_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def expect(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % count)

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@asynccontextmanager
async def _consumer(server: Server, kind: str) -> AsyncIterator[_Consumer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.event_worker", server.url, NAMESPACE, kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    consumer = _Consumer(process)
    assert await consumer.answer() == "ready"
    try:
        yield consumer
    finally:
        await consumer.end()


async def _durable(bench: Bench) -> Samples:
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        consumer = await stack.enter_async_context(_consumer(bench.server, "ours"))
        peer_consumer = await stack.enter_async_context(_consumer(bench.server, "peer"))

        async def ours(count: int) -> None:
            consumer.expect(count)
            await spell.events.publish_many(
                Event(_TYPE, {"step": step, "tool": "search"}) for step in range(count)
            )
            assert await consumer.answer() == str(count - 1)

        def packed(step: int) -> bytes:
            # As much as a program of its own would say: what, when, which.
            event: dict[str, Any] = {
                "id": str(uuid.uuid4()),
                "type": _TYPE,
                "time": time.time(),
                "sequence": step,
                "data": {"step": step, "tool": "search"},
            }
            said: bytes = msgpack.packb(event)
            return said

        async def peer(count: int) -> None:
            peer_consumer.expect(count)
            for start in range(0, count, _AT_ONCE):
                async with plain.pipeline(transaction=False) as pipeline:
                    for step in range(start, min(start + _AT_ONCE, count)):
                        pipeline.xadd(PEER_QUEUE, {"b": packed(step)})
                    await pipeline.execute()
            assert await peer_consumer.answer() == str(count - 1)

        async def target(count: int) -> float:
            return count * 1e6 / 20_000

        count = bench.scale(20_000, 2_000)
        samples = await bench.interleave(
            [
                Arm(OURS, ours, fixed=count),
                Arm(REDIS_PY, peer, fixed=count),
                Arm(_TARGET, target, fixed=count),
            ]
        )
        assert [info.lag for info in await spell.events.subscriptions()] == [0]
        return samples


ROWS = (
    Row(
        "events_durable",
        _durable,
        (
            Pair("events_durable", OURS, _TARGET),
            Pair("events_durable: redis-py, pipelined by 256", OURS, REDIS_PY),
        ),
    ),
)
