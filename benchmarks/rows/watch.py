"""Watching: from a change in one process to its watcher in another; and reads from memory."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import monotonic

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, one_by_one
from benchmarks.layout import FIELDS, HASHES, KEYS, SCOPES, Values
from benchmarks.ours import NAMESPACE, OURS, fill_scopes, open_ours
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, fill_hashes, open_redis_py
from llmspell_dist import NearCache, Options

__all__ = ["ROWS"]

_SCOPE = "agent:watched"
_ROUND_TRIP = "one round trip"
_WRITE = "the writer's own set"
"""From the same moment until its reply: a watcher cannot hear much earlier."""


async def _latency(bench: Bench) -> Samples:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.watch_worker", bench.server.url, NAMESPACE, _SCOPE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        limit=1 << 24,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    orders, answers = process.stdin, process.stdout
    assert json.loads(await answers.readline()) == "ready"
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        watch = await stack.enter_async_context(spell.state.watch(_SCOPE))

        trips: list[float] = []
        writes: list[float] = []

        async def watched(count: int) -> float:
            turns = bench.scale(300, 20)
            orders.write(b"write %d\n" % turns)
            seen = []
            for turn in range(turns):
                orders.write(b"go\n")
                assert json.loads(await answers.readline()) == "pinged"
                orders.write(b"go\n")
                change = await anext(watch)
                seen.append(monotonic())
                assert (change.key, change.value) == ("turn", turn), "another change came"
            sent, took, pinged = json.loads(await answers.readline())
            trips.append(median(pinged) * 1e6)
            writes.append(median(took) * 1e6)
            after = [at - was for at, was in zip(seen, sent, strict=True)]
            return float(median(after) * 1e6 * count)

        samples = await bench.interleave([Arm("change to watcher", watched, fixed=1)])
        samples[_ROUND_TRIP] = trips[-len(samples["change to watcher"]) :]
        samples[_WRITE] = writes[-len(samples["change to watcher"]) :]
    orders.close()
    await process.wait()
    return samples


async def _hit(bench: Bench) -> Samples:
    values = Values(MAIN)
    fill_hashes(bench.server, values)
    cached = Options(near_cache=NearCache())
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server, cached))
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        near = spell.near_cache
        assert near is not None
        await fill_scopes(spell, values)
        await near.warm(SCOPES[0])
        texts = [f"text-{number}" for number in range(KEYS)]
        await spell.state.set_many(SCOPES[0], dict.fromkeys(texts, "a status line of some text"))
        for key in (*FIELDS, *texts):
            await spell.state.get(SCOPES[0], key)
        get, scope = spell.state.get, SCOPES[0]

        async def text(count: int) -> None:
            for turn in range(count):
                await get(scope, texts[turn % KEYS])

        async def ours(count: int) -> None:
            for turn in range(count):
                await get(scope, FIELDS[turn % KEYS])

        async def prepare(_: int) -> None:
            # A sample of hits only: nothing is too old, and everything is there.
            near.clear()
            for key in (*FIELDS, *texts):
                await get(scope, key)
            before = near.stats().misses
            for key, expected in zip(FIELDS, values.objects * KEYS, strict=False):
                assert await get(scope, key) == expected
            assert near.stats().misses == before, "a read that should be served from memory"

        async def hget(_: int, turn: int) -> None:
            await plain.hget(HASHES[0], FIELDS[turn % KEYS])

        return await bench.interleave(
            [
                Arm(OURS, text, prepare),
                Arm(f"{OURS}, a dict of {MAIN} bytes", ours, prepare),
                Arm(REDIS_PY, lambda count: one_by_one(count, hget)),
            ]
        )


ROWS = (
    Row(
        "watch_latency",
        _latency,
        (
            Pair("watch_latency", "change to watcher", _ROUND_TRIP),
            Pair("watch_latency: against the writer's own set", "change to watcher", _WRITE),
            Pair("watch_latency: the writer's own set, the bound", _WRITE, _ROUND_TRIP),
        ),
    ),
    Row(
        "near_cache_hit",
        _hit,
        (
            Pair("near_cache_hit", OURS, REDIS_PY, "ops/s"),
            Pair(
                "near_cache_hit: a dict, decoded anew for each caller",
                f"{OURS}, a dict of {MAIN} bytes",
                REDIS_PY,
                "ops/s",
            ),
        ),
    ),
)
