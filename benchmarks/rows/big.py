"""Size must not matter: a read in a scope of a million keys, an append to a list of 100,000."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from contextlib import AsyncExitStack

import llmspell_dist
from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import WORKERS
from benchmarks.ours import open_ours
from benchmarks.payloads import MAIN, SMALL, value
from llmspell_dist import StateClass

__all__ = ["ROWS"]

_PICKED = 20_000
_PER_COMMIT = 1_000


async def _get(bench: Bench) -> Samples:
    sizes = {"1,000,000 keys": bench.scale(1_000_000, 10_000), "1,000 keys": 1_000}
    data = value(SMALL)
    source = random.Random(1)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        arms = []
        for name, size in sizes.items():
            scope = f"session:of-{size}"
            for start in range(0, size, _PER_COMMIT):
                batch = {f"key-{n}": data for n in range(start, start + _PER_COMMIT)}
                await spell.state.set_many(scope, batch, state_class=StateClass.BULK)
            assert await spell.state.count(scope) == size
            keys = [f"key-{source.randrange(size)}" for _ in range(_PICKED)]
            arms.append(_reader(name, spell, scope, keys))
        return await bench.interleave(arms)


def _reader(name: str, spell: llmspell_dist.Spell, scope: str, keys: list[str]) -> Arm:
    get = spell.state.get

    def call(worker: int, turn: int) -> Awaitable[object]:
        return get(scope, keys[(worker * 397 + turn) % _PICKED])

    async def work(count: int) -> None:
        await concurrently(WORKERS, count, call)

    return Arm(name, work, step=WORKERS)


async def _append(bench: Bench) -> Samples:
    message = value(MAIN)
    length = bench.scale(100_000, 2_000)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        append, appended = spell.state.append, [0]
        for _ in range(length // _PER_COMMIT):
            await append("session:long", "messages", *[message] * _PER_COMMIT)

        async def to_long(count: int) -> None:
            await one_by_one(count, lambda _, __: append("session:long", "messages", message))
            appended[0] += count

        async def renew_short(count: int) -> None:
            async def renew(worker: int, turn: int) -> None:
                key = f"messages-{worker + turn * WORKERS}"
                await spell.state.delete("session:short", key)
                await append("session:short", key, *[message] * 10)

            await concurrently(WORKERS, count // WORKERS * WORKERS + WORKERS, renew)

        async def to_short(count: int) -> None:
            await one_by_one(
                count, lambda _, turn: append("session:short", f"messages-{turn}", message)
            )

        samples = await bench.interleave(
            [Arm("100,000 messages", to_long), Arm("10 messages", to_short, renew_short)]
        )
        stored = await spell.state.get("session:long", "messages")
        assert len(stored) == length + appended[0]
        assert stored[-1] == message
        assert len(await spell.state.get("session:short", "messages-0")) == 11
        newest = (await spell.state.history("session:long", "messages", limit=1))[0]
        record = await spell.state.get_record("session:long", "messages")
        assert record is not None
        assert (newest.revision, newest.value) == (record.revision, (message,))
        return samples


ROWS = (
    Row(
        "get_in_scope_1m",
        _get,
        (Pair("get_in_scope_1m", "1,000,000 keys", "1,000 keys"),),
    ),
    Row(
        "append_to_100k",
        _append,
        (Pair("append_to_100k", "100,000 messages", "10 messages"),),
    ),
)
