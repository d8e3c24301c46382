"""A hundred keys of one scope in one call."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgpack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples
from benchmarks.layout import HASHES, SCOPES, VARIANTS, Values
from benchmarks.ours import OURS, check_written, entries_added, open_ours
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, check_hashes, open_redis_py

__all__ = ["ROWS"]

Value = TypeVar("Value")

_HUNDRED = [f"message-{number}" for number in range(100)]


async def _set_many(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        spell = await stack.enter_async_context(open_ours(bench.server))
        commits, before = [0], entries_added(bench.server)
        mappings = [_hundred(values.objects, shift) for shift in range(VARIANTS)]
        ready = [_hundred(values.bytes, shift) for shift in range(VARIANTS)]

        async def ours(count: int) -> None:
            for turn in range(count):
                await spell.state.set_many(SCOPES[0], mappings[turn % VARIANTS])
            commits[0] += count

        async def peer(count: int) -> None:
            for turn in range(count):
                async with plain.pipeline(transaction=False) as pipe:
                    for key, data in ready[turn % VARIANTS].items():
                        pipe.hset(HASHES[0], key, data)
                    await pipe.execute()

        samples = await bench.interleave([Arm(OURS, ours), Arm(REDIS_PY, peer)])
        check_hashes(bench.server, values)
        assert await spell.state.count(SCOPES[0]) == len(_HUNDRED)
        await check_written(spell, bench.server, values, commits=commits[0], before=before)
        return samples


async def _get_many(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        spell = await stack.enter_async_context(open_ours(bench.server))
        ready: dict[Any, Any] = dict(_hundred(values.bytes, 0))
        await plain.hset(HASHES[0], mapping=ready)
        expected = _hundred(values.objects, 0)
        await spell.state.set_many(SCOPES[0], expected)
        assert await spell.state.get_many(SCOPES[0], _HUNDRED) == expected

        async def ours(count: int) -> None:
            for _ in range(count):
                await spell.state.get_many(SCOPES[0], _HUNDRED)

        async def peer(count: int) -> None:
            unpack = msgpack.unpackb
            for _ in range(count):
                found = await plain.hmget(HASHES[0], _HUNDRED)
                dict(zip(_HUNDRED, [unpack(data) for data in found], strict=True))

        return await bench.interleave([Arm(OURS, ours), Arm(REDIS_PY, peer)])


def _hundred(variants: list[Value], shift: int) -> dict[str, Value]:
    return {key: variants[(number + shift) % VARIANTS] for number, key in enumerate(_HUNDRED)}


ROWS = (
    Row("set_many_100", _set_many, (Pair("set_many_100", OURS, REDIS_PY),)),
    Row("get_many_100", _get_many, (Pair("get_many_100", OURS, REDIS_PY),)),
)
