"""Correlations: a long timeline against reading its events, and what a commit pays to be in one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgpack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import FIELDS, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.payloads import MAIN, value
from benchmarks.peers import REDIS_PY, open_redis_py
from llmspell_dist import Spell, context
from llmspell_dist.events.model import Event
from llmspell_dist.keys import KeySpace

__all__ = ["ROWS"]

_RUN = "run-1"
_DATA = f"{OURS}, with the data of every event"
_PEER_DATA = f"{REDIS_PY}, with the data of every event"
_IN_RUN = "in a correlation"
_OUTSIDE = "outside"


async def _fill(spell: Spell, events: int) -> None:
    """Publish events of one correlation, each caused by one of the ten before it."""
    made: list[Event] = []
    data = value(MAIN)
    for number in range(events):
        cause = made[-1 - number % min(10, number)].id if number else None
        made.append(
            Event(
                *("tool.called", data),
                source=f"worker-{number % 7}",
                tags=("bench",),
                correlation_id=_RUN,
                causation_id=cause,
            )
        )
    assert await spell.events.publish_many(made) == events


async def _timeline(bench: Bench) -> Samples:
    length = bench.scale(10_000, 500)
    stream = KeySpace(NAMESPACE).correlation("0", _RUN)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        await _fill(spell, length)

        async def ours(count: int) -> None:
            for _ in range(count):
                found = await spell.correlation.timeline(_RUN)
                assert len(found) == length
                assert found[-1].depth > length // 12

        async def ours_with_data(count: int) -> None:
            for _ in range(count):
                found = await spell.correlation.timeline(_RUN)
                assert all(entry.data is not None for entry in found)

        async def read() -> list[Any]:
            entries: Any = await plain.xrange(stream)
            return [msgpack.unpackb(fields[b"b"][1:]) for _, fields in entries]

        async def peer(count: int) -> None:
            for _ in range(count):
                assert len(await read()) == length

        async def peer_with_data(count: int) -> None:
            for _ in range(count):
                events = [msgpack.unpackb(event[2]) for event in await read()]
                assert len(events) == length

        return await bench.interleave(
            [
                Arm(OURS, ours, fixed=1),
                Arm(REDIS_PY, peer, fixed=1),
                Arm(_DATA, ours_with_data, fixed=1),
                Arm(_PEER_DATA, peer_with_data, fixed=1),
            ]
        )


async def _correlated_set(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        put = spell.state.set

        def write(worker: int, turn: int) -> Awaitable[object]:
            return put(SCOPES[worker], FIELDS[turn % KEYS], values.objects[turn % VARIANTS])

        def inside(
            run: Callable[[int], Awaitable[None]],
        ) -> Callable[[int], Awaitable[None]]:
            async def work(count: int) -> None:
                with context(correlation_id=_RUN):
                    await run(count)

            return work

        def alone(count: int) -> Awaitable[None]:
            return one_by_one(count, write)

        def many(count: int) -> Awaitable[None]:
            return concurrently(WORKERS, count, write)

        samples = await bench.interleave(
            [
                Arm(_IN_RUN, inside(alone)),
                Arm(_OUTSIDE, alone),
                Arm(f"{_IN_RUN}, {WORKERS} callers", inside(many), step=WORKERS),
                Arm(f"{_OUTSIDE}, {WORKERS} callers", many, step=WORKERS),
            ]
        )
        assert await spell.correlation.timeline(_RUN)
        return samples


ROWS = (
    Row(
        "timeline_10000",
        _timeline,
        (
            Pair("timeline_10000", OURS, REDIS_PY),
            Pair("timeline_10000: with data", _DATA, _PEER_DATA),
        ),
    ),
    Row(
        "correlated_set",
        _correlated_set,
        (
            Pair("correlated_set", _IN_RUN, _OUTSIDE),
            Pair(
                f"correlated_set: {WORKERS} callers",
                f"{_IN_RUN}, {WORKERS} callers",
                f"{_OUTSIDE}, {WORKERS} callers",
            ),
        ),
    ),
)
