"""p99 of small reads while 10 MB values go over the same client and a WAIT hangs.

Everything shares one process, one event loop and one client, as it does in an agent: what is
measured is whether heavy traffic and a slow acknowledgement hold up small reads. redis-py under
the same storm stands beside it: its pool gives every caller a connection of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from time import perf_counter
from typing import Any

import redis.asyncio  # noqa: TC002 - as in the other rows

import llmspell_dist
from benchmarks.harness import Arm, Bench, Pair, Row, Samples, background, concurrently
from benchmarks.layout import FIELDS, HASHES, KEYS, SCOPES, WORKERS, Values
from benchmarks.ours import fill_scopes, open_ours
from benchmarks.payloads import HUGE, MAIN
from benchmarks.peers import fill_hashes, open_redis_py
from benchmarks.stats import percentile
from llmspell_dist import AckNotReachedError, StateClass, replicated

__all__ = ["ROWS"]

_READS = 20_000
_WAIT_MS = 1_000

Call = Callable[[int, int], Awaitable[Any]]
Job = Callable[[], Awaitable[None]]


async def _measure(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        await fill_scopes(spell, values)
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        fill_hashes(bench.server, values)
        get = spell.state.get

        def ours(worker: int, turn: int) -> Awaitable[Any]:
            return get(SCOPES[worker], FIELDS[turn % KEYS])

        def peer(worker: int, turn: int) -> Awaitable[Any]:
            return plain.hget(HASHES[worker], FIELDS[turn % KEYS])

        reads = bench.scale(_READS, 300)
        blob = bytes(bench.scale(HUGE - 1_024, 500_000))
        arms = []
        for readers in (WORKERS, 1):
            name = f"{readers} readers" if readers > 1 else "1 reader"
            count = reads if readers > 1 else reads // 10
            arms += _arms(name, ours, _our_storm(spell, blob), readers, count)
        arms += _arms("redis-py", peer, _redis_py_storm(plain, blob), WORKERS, reads)
        return await bench.interleave(arms, rounds=min(bench.rounds, 11))


def _arms(name: str, read: Call, storm: list[Job], readers: int, reads: int) -> list[Arm]:
    async def p99(count: int) -> float:
        spent: list[float] = []

        async def call(worker: int, turn: int) -> None:
            started = perf_counter()
            await read(worker, turn)
            spent.append(perf_counter() - started)

        await concurrently(readers, count, call)
        return percentile(sorted(spent), 99) * 1e6 * count

    async def in_storm(count: int) -> float:
        async with background(*storm):
            return await p99(count)

    return [
        Arm(f"calm, {name}", p99, fixed=reads),
        Arm(f"storm, {name}", in_storm, fixed=reads),
    ]


def _our_storm(spell: llmspell_dist.Spell, blob: bytes) -> list[Job]:
    """Return what blows beside the reads: 10 MB out and in again without a pause, and a WAIT."""

    async def ten_megabytes() -> None:
        while True:
            await spell.state.set("session:storm", "blob", blob, state_class=StateClass.BULK)
            assert len(await spell.state.get("session:storm", "blob")) == len(blob)

    async def hanging_wait() -> None:
        while True:
            # There is no replica: the acknowledgement hangs for its whole time limit.
            with suppress(AckNotReachedError):
                await spell.state.set("session:storm", "waited", 1, ack=replicated(1))

    return [ten_megabytes, hanging_wait]


def _redis_py_storm(plain: redis.asyncio.Redis, blob: bytes) -> list[Job]:
    async def ten_megabytes() -> None:
        while True:
            await plain.hset("plain:storm", "blob", blob)
            assert await plain.hget("plain:storm", "blob") == blob

    async def hanging_wait() -> None:
        while True:
            await plain.wait(1, _WAIT_MS)

    return [ten_megabytes, hanging_wait]


ROWS = (
    Row(
        "p99_under_load",
        _measure,
        (
            Pair("p99_under_load", "storm, 50 readers", "calm, 50 readers"),
            Pair("p99_under_load: one reader", "storm, 1 reader", "calm, 1 reader"),
            Pair("p99_under_load: redis-py, 50 readers", "storm, redis-py", "calm, redis-py"),
            Pair("p99_under_load: both in the storm", "storm, 50 readers", "storm, redis-py"),
        ),
    ),
)
