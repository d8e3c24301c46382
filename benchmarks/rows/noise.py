"""A/A: redis-py against itself. Its interval is what a difference must exceed to mean anything."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently
from benchmarks.layout import FIELDS, HASHES, KEYS, WORKERS, Values
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, fill_hashes, open_redis_py

__all__ = ["ROWS"]

_AGAIN = "redis-py again"


async def _measure(bench: Bench) -> Samples:
    fill_hashes(bench.server, Values(MAIN))
    async with AsyncExitStack() as stack:
        arms = []
        for name in (REDIS_PY, _AGAIN):
            client = await stack.enter_async_context(open_redis_py(bench.server))

            def hget(worker: int, turn: int, client: object = client) -> Awaitable[object]:
                return client.hget(HASHES[worker], FIELDS[turn % KEYS])  # type: ignore[attr-defined,no-any-return]

            async def work(count: int, call: object = hget) -> None:
                await concurrently(WORKERS, count, call)  # type: ignore[arg-type]

            arms.append(Arm(name, work, step=WORKERS))
        return await bench.interleave(arms)


ROWS = (Row("noise", _measure, (Pair("noise (A/A)", _AGAIN, REDIS_PY, "ops/s"),)),)
