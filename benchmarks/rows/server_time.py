"""Server time of a commit, from ``INFO commandstats``: what a full server has to pay for ours.

Both sides are script calls; nested commands are counted inside their script and not added again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import FIELDS, HASHES, KEYS, SCOPES, VARIANTS, WORKERS, Values
from benchmarks.ours import OURS, check_written, entries_added, open_ours
from benchmarks.payloads import MAIN
from benchmarks.peers import check_hashes, open_redis_py
from benchmarks.server import Server

__all__ = ["ROWS"]

_BARE = "a script with one HSET"
_GROUPED = f"{OURS}, groups of 50"
_SCRIPT = "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return 1"
_SCRIPT_COMMANDS = ("eval", "evalsha", "fcall")


async def _measure(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        spell = await stack.enter_async_context(open_ours(bench.server))
        digest = await plain.script_load(_SCRIPT)
        put, commits, before = spell.state.set, [0], entries_added(bench.server)

        def commit(worker: int, turn: int) -> Awaitable[object]:
            commits[0] += 1
            return put(SCOPES[worker], FIELDS[turn % KEYS], values.objects[turn % VARIANTS])

        def bare(_: int, turn: int) -> Awaitable[object]:
            field, data = FIELDS[turn % KEYS], values.bytes[turn % VARIANTS]
            return plain.evalsha(digest, 1, HASHES[0], field, data)

        server = bench.server
        samples = await bench.interleave(
            [
                _arm(OURS, server, lambda count: one_by_one(count, commit)),
                _arm(_GROUPED, server, lambda count: concurrently(WORKERS, count, commit)),
                _arm(_BARE, server, lambda count: one_by_one(count, bare)),
            ]
        )
        check_hashes(server, values)
        await check_written(spell, server, values, commits=commits[0], before=before)
        return samples


def _arm(name: str, server: Server, run: Callable[[int], Awaitable[None]]) -> Arm:
    async def work(count: int) -> float:
        with server.admin() as admin:
            admin.config_resetstat()
            await run(count)
            stats = admin.info("commandstats")
        spent = sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in _SCRIPT_COMMANDS)
        assert spent, f"{name}: no script call was counted"
        return float(spent)

    return Arm(name, work, step=WORKERS)


ROWS = (
    Row(
        "server_time",
        _measure,
        (
            Pair("server_time_single", OURS, _BARE),
            Pair("server_time_group_50", _GROUPED, _BARE),
        ),
    ),
)
