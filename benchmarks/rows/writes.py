"""50 coroutines of one process write small values: ours a full commit, the peers a bare HSET."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from benchmarks.harness import Bench, Pair, Row, Samples
from benchmarks.layout import Values
from benchmarks.ours import OURS, check_written, entries_added, open_ours, writing_arm
from benchmarks.payloads import MAIN, SPARE_SIZES
from benchmarks.peers import (
    C_CLIENT,
    C_CLIENT_PIPELINED,
    COREDIS,
    GLIDE,
    PIPELINED,
    REDIS_PY,
    check_hashes,
    writing_arms,
)

__all__ = ["ROWS"]


async def _measure(bench: Bench, *, size: int, everybody: bool) -> Samples:
    values = Values(size)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        peers = await writing_arms(stack, bench, values)
        commits: list[int] = []
        before = entries_added(bench.server)
        arms = [writing_arm(spell, values, commits), *(peers if everybody else peers[:1])]
        samples = await bench.interleave(arms)
        check_hashes(bench.server, values)
        await check_written(spell, bench.server, values, commits=sum(commits), before=before)
        return samples


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
    name = f"set_50_asyncio: {label}"
    measure = partial(_measure, size=size, everybody=False)
    return Row(name, measure, (Pair(name, OURS, REDIS_PY, "ops/s"),))


ROWS = (
    _row("set_50_asyncio", "asyncio"),
    _row("set_50_uvloop", "uvloop"),
    *[_spare(label, size) for label, size in SPARE_SIZES.items()],
)
