"""Leases: alone, handed over between processes, waited for, and carried by writes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import redis
from redis.asyncio.lock import Lock

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, concurrently, one_by_one
from benchmarks.layout import FIELDS, KEYS, VARIANTS, WORKERS, Values
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.payloads import MAIN
from benchmarks.peers import REDIS_PY, open_redis_py
from benchmarks.server import Server
from llmspell_dist import blocking

__all__ = ["ROWS"]

_SCOPE = "agent:leased"
_TTL_S = 10
_PINGS = "two pings"
"""What two round trips cost that do nothing: no acquire and release can be faster."""
_PROCESSES, _EACH = 4, 5
_ASKING = ("evalsha", "eval", "ping", "subscribe")
"""What a client sends for leases; commands inside a script are counted with the script."""


# --- alone ---------------------------------------------------------------------------------------


async def _cycle(bench: Bench) -> Samples:
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        plain = await stack.enter_async_context(open_redis_py(bench.server))
        tokens = [0]

        async def ours(_: int, __: int) -> None:
            async with spell.leases.acquire(_SCOPE, ttl=_TTL_S) as lease:
                assert lease.token > tokens[0], "a token that does not grow"
                tokens[0] = lease.token

        async def peer(_: int, __: int) -> None:
            async with Lock(plain, "lock", timeout=_TTL_S):
                pass

        async def bound(_: int, __: int) -> None:
            await spell.ping()
            await spell.ping()

        samples = await bench.interleave(
            [
                Arm(OURS, lambda count: one_by_one(count, ours)),
                Arm(REDIS_PY, lambda count: one_by_one(count, peer)),
                Arm(_PINGS, lambda count: one_by_one(count, bound)),
            ]
        )
        info = await spell.leases.show(_SCOPE)
        assert not info.held
        assert info.token == tokens[0]
        return samples


async def _sync_cycle(bench: Bench) -> Samples:
    server = bench.server
    with (
        blocking.connect(server.url, namespace=NAMESPACE) as spell,
        redis.Redis.from_url(server.url) as plain,
    ):

        async def ours(count: int) -> None:
            for _ in range(count):
                with spell.leases.acquire(_SCOPE, ttl=_TTL_S):
                    pass

        async def peer(count: int) -> None:
            for _ in range(count):
                with plain.lock("lock", timeout=_TTL_S):
                    pass

        return await bench.interleave([Arm(OURS, ours), Arm(REDIS_PY, peer)])


# --- several processes ---------------------------------------------------------------------------


class _Worker:
    """One process of `benchmarks.lease_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, server: Server, waiters: int) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.lease_worker"),
            *(server.url, NAMESPACE, _SCOPE, str(waiters)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            limit=1 << 24,
        )
        worker = cls(process)
        assert await worker.answer() == "ready"
        return worker

    def tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n".encode())

    async def answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "a worker of the benchmark has ended"
        return json.loads(line)

    async def ask(self, order: str) -> Any:
        self.tell(order)
        return await self.answer()

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@asynccontextmanager
async def _workers(server: Server, waiters: int) -> AsyncIterator[list[_Worker]]:
    starting = [_Worker.start(server, waiters) for _ in range(_PROCESSES)]
    workers = await asyncio.gather(*starting)
    try:
        yield workers
    finally:
        await asyncio.gather(*[worker.end() for worker in workers])


async def _hand_over(bench: Bench) -> Samples:
    times = bench.scale(30, 4)
    longest: list[float] = []
    average: list[float] = []
    async with _workers(bench.server, _EACH) as workers:

        async def takes(count: int) -> float:
            answers = await asyncio.gather(*[w.ask(f"take {times}") for w in workers])
            grants = sorted(tuple(grant) for answer in answers for grant in answer)
            assert len(grants) == len({grant[0] for grant in grants}) == 20 * times
            # Without the laps in which the line forms and ends.
            steady = grants[2 * _PROCESSES * _EACH : -_PROCESSES * _EACH]
            over = [later[2] - earlier[3] for earlier, later in pairwise(steady)]
            assert min(over) > 0, "two held it at once"
            waits = [had - asked for _, asked, had, _ in steady]
            longest.append(max(waits) * 1e6)
            average.append(mean(waits) * 1e6)
            return float(median(over) * 1e6 * count)

        async def pings(count: int) -> float:
            return float(median(await workers[0].ask(f"ping {max(50, count)}")) * 1e6 * count)

        samples = await bench.interleave(
            [Arm("hand-over", takes, fixed=1), Arm("one round trip", pings, fixed=1)]
        )
    samples["longest wait"], samples["average wait"] = longest, average
    return samples


async def _waiting(bench: Bench) -> Samples:
    waiters = bench.scale(1000, 40)
    seconds = bench.scale(10, 1)

    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        workers = await stack.enter_async_context(_workers(bench.server, waiters // _PROCESSES))
        admin = stack.enter_context(bench.server.admin())
        lease = await spell.leases.acquire(_SCOPE, ttl=3)

        def asked() -> int:
            stats = admin.info("commandstats")
            return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in _ASKING)

        async def stand(count: int) -> float:
            for worker in workers:
                worker.tell(f"wait {seconds + 5}")
            while (  # noqa: ASYNC110 - no event tells it
                await spell.leases.show(_SCOPE, waiters=0)
            ).waiting < waiters:
                await asyncio.sleep(0.1)
            before = asked()
            await asyncio.sleep(seconds)
            after = asked()
            assert await asyncio.gather(*[worker.answer() for worker in workers]) == [0] * 4
            return float((after - before) / waiters / seconds * count)

        async def limit(count: int) -> float:
            return float(count)

        samples = await bench.interleave(
            [Arm("asked by a waiter in a second", stand, fixed=1), Arm("1", limit, fixed=1)],
            rounds=1 if bench.quick else min(3, bench.rounds),
        )
        await lease.release()
        return samples


# --- carried by writes ---------------------------------------------------------------------------


async def _fenced(bench: Bench) -> Samples:
    values = Values(MAIN)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        lease = await stack.enter_async_context(spell.leases.acquire(_SCOPE, ttl=60))
        arms = []
        for name, state in (("fenced", lease.state), ("unfenced", spell.state)):
            put = state.set

            def write(worker: int, turn: int, put: Any = put) -> Awaitable[object]:
                done: Awaitable[object] = put(
                    _SCOPE, FIELDS[(worker + turn) % KEYS], values.objects[turn % VARIANTS]
                )
                return done

            def alone(count: int, write: Any = write) -> Awaitable[None]:
                return one_by_one(count, write)

            def many(count: int, write: Any = write) -> Awaitable[None]:
                return concurrently(WORKERS, count, write)

            arms += [Arm(name, alone), Arm(f"{name}, {WORKERS} callers", many, step=WORKERS)]
        samples = await bench.interleave(arms)
        assert (await spell.state.stat(_SCOPE)).fence == lease.token
        return samples


ROWS = (
    Row(
        "lease_cycle",
        _cycle,
        (
            Pair("lease_cycle", OURS, REDIS_PY),
            Pair("lease_cycle: two pings of ours, the bound", _PINGS, REDIS_PY),
        ),
    ),
    Row("lease_cycle_uvloop", _cycle, (Pair("lease_cycle: uvloop", OURS, REDIS_PY),), "uvloop"),
    Row("sync_lease_cycle", _sync_cycle, (Pair("lease_cycle: blocking", OURS, REDIS_PY),)),
    Row(
        "lease_hand_over",
        _hand_over,
        (
            Pair("lease_hand_over", "hand-over", "one round trip"),
            Pair("lease_fairness", "longest wait", "average wait"),
        ),
    ),
    Row(
        "lease_waiting",
        _waiting,
        (Pair("lease_waiting", "asked by a waiter in a second", "1", "calls"),),
    ),
    Row(
        "fenced_write",
        _fenced,
        (
            Pair("fenced_write", "fenced", "unfenced"),
            Pair(
                f"fenced_write: {WORKERS} callers",
                f"fenced, {WORKERS} callers",
                f"unfenced, {WORKERS} callers",
            ),
        ),
    ),
)
