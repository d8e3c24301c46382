"""50 coroutines of one process read small values: ours with decoding, the peers' raw bytes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from benchmarks.harness import Bench, Pair, Row, Samples
from benchmarks.layout import Values
from benchmarks.ours import OURS, fill_scopes, open_ours, reading_arm
from benchmarks.payloads import MAIN, SPARE_SIZES
from benchmarks.peers import (
    C_CLIENT,
    C_CLIENT_PIPELINED,
    COREDIS,
    GLIDE,
    PIPELINED,
    REDIS_PY,
    reading_arms,
)

__all__ = ["ROWS"]


async def _measure(bench: Bench, *, size: int, everybody: bool) -> Samples:
    values = Values(size)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        await fill_scopes(spell, values)
        peers = await reading_arms(stack, bench, values)
        arms = [reading_arm(spell, values), *(peers if everybody else peers[:1])]
        return await bench.interleave(arms)


def _row(name: str, loop: str) -> Row:
    others = (PIPELINED, COREDIS, GLIDE, C_CLIENT, C_CLIENT_PIPELINED)
    return Row(
        name,
        partial(_measure, size=MAIN, everybody=True),
        (
            Pair(name, OURS, REDIS_PY, "ops/s"),
            *[Pair(f"{name}: against {peer}", OURS, peer, "ops/s") for peer in others],
        ),
        loop,
    )


def _spare(label: str, size: int) -> Row:
    name = f"get_50_asyncio: {label}"
    measure = partial(_measure, size=size, everybody=False)
    return Row(name, measure, (Pair(name, OURS, REDIS_PY, "ops/s"),))


ROWS = (
    _row("get_50_asyncio", "asyncio"),
    _row("get_50_uvloop", "uvloop"),
    *[_spare(label, size) for label, size in SPARE_SIZES.items()],
)
