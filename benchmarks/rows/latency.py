"""One caller, one call after the other: what a single agent's step waits for."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, one_by_one
from benchmarks.layout import FIELDS, HASHES, KEYS, SCOPES, VARIANTS, Values
from benchmarks.ours import OURS, check_written, entries_added, fill_scopes, open_ours
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, check_hashes, fill_hashes, open_redis_py

__all__ = ["ROWS"]


async def _get(bench: Bench) -> Samples:
    values = Values(MAIN)
    fill_hashes(bench.server, values)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        spell = await stack.enter_async_context(open_ours(bench.server))
        await fill_scopes(spell, values)
        get = spell.state.get

        def ours(_: int, turn: int) -> Awaitable[object]:
            return get(SCOPES[0], FIELDS[turn % KEYS])

        def peer(_: int, turn: int) -> Awaitable[object]:
            return plain.hget(HASHES[0], FIELDS[turn % KEYS])

        return await bench.interleave(
            [
                Arm(OURS, lambda count: one_by_one(count, ours)),
                Arm(REDIS_PY, lambda count: one_by_one(count, peer)),
            ]
        )


async def _set(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        spell = await stack.enter_async_context(open_ours(bench.server))
        put, commits, before = spell.state.set, [0], entries_added(bench.server)

        def ours(_: int, turn: int) -> Awaitable[object]:
            commits[0] += 1
            return put(SCOPES[0], FIELDS[turn % KEYS], values.objects[turn % VARIANTS])

        def peer(_: int, turn: int) -> Awaitable[object]:
            return plain.hset(HASHES[0], FIELDS[turn % KEYS], values.bytes[turn % VARIANTS])

        samples = await bench.interleave(
            [
                Arm(OURS, lambda count: one_by_one(count, ours)),
                Arm(REDIS_PY, lambda count: one_by_one(count, peer)),
            ]
        )
        check_hashes(bench.server, values)
        await check_written(spell, bench.server, values, commits=commits[0], before=before)
        return samples


ROWS = (
    Row("get_1", _get, (Pair("get_1", OURS, REDIS_PY),)),
    Row("set_1", _set, (Pair("set_1", OURS, REDIS_PY),)),
)
