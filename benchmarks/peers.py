"""The clients that we are measured against, each opened the way its own documentation shows.

A peer that is not installed is left out with a note; only rows with a target insist on redis-py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any

import redis
import redis.asyncio

from benchmarks.harness import Arm, Bench, concurrently
from benchmarks.layout import FIELDS, HASHES, KEYS, VARIANTS, WORKERS, Values
from benchmarks.server import Server

__all__ = [
    "COREDIS",
    "C_CLIENT",
    "C_CLIENT_PIPELINED",
    "GLIDE",
    "PIPELINED",
    "REDIS_PY",
    "check_hashes",
    "fill_hashes",
    "open_redis_py",
    "reading_arms",
    "writing_arms",
]

REDIS_PY = "redis-py"
PIPELINED = "redis-py pipelined by 50"
COREDIS = "coredis"
GLIDE = "valkey-glide"
C_CLIENT = "redis-benchmark -c 50"
C_CLIENT_PIPELINED = "redis-benchmark -c 50 -P 50"

Call = Callable[[int, int], Awaitable[object]]


@asynccontextmanager
async def open_redis_py(server: Server) -> AsyncIterator[redis.asyncio.Redis]:
    """Open redis-py's asyncio client with its defaults: a pool, hiredis, bytes as answers."""
    client = redis.asyncio.Redis.from_url(server.url)
    try:
        yield client
    finally:
        await client.aclose()


def fill_hashes(server: Server, values: Values) -> None:
    """Write the plain hashes that the peers read."""
    with server.admin() as admin:
        for hash_name in HASHES:
            admin.hset(hash_name, mapping=dict(zip(FIELDS, values.bytes * KEYS, strict=False)))


def check_hashes(server: Server, values: Values) -> None:
    """Assert that every field which a peer wrote holds one of the written values whole."""
    with server.admin() as admin:
        for hash_name in HASHES:
            for stored in admin.hgetall(hash_name).values():
                assert stored in values.bytes, f"{hash_name}: a value that nobody wrote"


async def reading_arms(stack: AsyncExitStack, bench: Bench, values: Values) -> list[Arm]:
    """Open every peer for 50 concurrent readers and return their arms, redis-py first."""
    fill_hashes(bench.server, values)
    plain = await stack.enter_async_context(open_redis_py(bench.server))

    def hget(worker: int, turn: int) -> Awaitable[object]:
        return plain.hget(HASHES[worker], FIELDS[turn % KEYS])

    async def pipelined(count: int) -> None:
        for turn in range(count // WORKERS):
            async with plain.pipeline(transaction=False) as pipe:
                for worker in range(WORKERS):
                    pipe.hget(HASHES[worker], FIELDS[turn % KEYS])
                await pipe.execute()

    arms = [_fifty(REDIS_PY, hget), Arm(PIPELINED, pipelined, step=WORKERS)]
    for name, client in await _other_clients(stack, bench):

        def get(worker: int, turn: int, client: Any = client) -> Awaitable[object]:
            call: Awaitable[object] = client.hget(HASHES[worker], FIELDS[turn % KEYS])
            return call

        arms.append(_fifty(name, get))
    return arms + _c_client(bench, ["HGET", HASHES[0], FIELDS[0]])


async def writing_arms(stack: AsyncExitStack, bench: Bench, values: Values) -> list[Arm]:
    """Open every peer for 50 concurrent writers and return their arms, redis-py first."""
    plain = await stack.enter_async_context(open_redis_py(bench.server))
    data = values.bytes

    def hset(worker: int, turn: int) -> Awaitable[object]:
        return plain.hset(HASHES[worker], FIELDS[turn % KEYS], data[turn % VARIANTS])

    async def pipelined(count: int) -> None:
        for turn in range(count // WORKERS):
            async with plain.pipeline(transaction=False) as pipe:
                for worker in range(WORKERS):
                    pipe.hset(HASHES[worker], FIELDS[turn % KEYS], data[turn % VARIANTS])
                await pipe.execute()

    arms = [_fifty(REDIS_PY, hset), Arm(PIPELINED, pipelined, step=WORKERS)]
    for name, client in await _other_clients(stack, bench):

        def put(worker: int, turn: int, client: Any = client) -> Awaitable[object]:
            fields = {FIELDS[turn % KEYS]: data[turn % VARIANTS]}
            call: Awaitable[object] = client.hset(HASHES[worker], fields)
            return call

        arms.append(_fifty(name, put))
    return arms + _c_client(bench, ["HSET", "plain:c-client", FIELDS[0], "x" * values.size])


def _fifty(name: str, call: Call) -> Arm:
    async def work(count: int) -> None:
        await concurrently(WORKERS, count, call)

    return Arm(name, work, step=WORKERS)


async def _other_clients(stack: AsyncExitStack, bench: Bench) -> list[tuple[str, Any]]:
    """Open coredis and valkey-glide where they are installed; both know ``hget`` and ``hset``."""
    clients: list[tuple[str, Any]] = []
    if find_spec("coredis"):
        import coredis  # noqa: PLC0415 - an optional peer

        client: Any = coredis.Redis.from_url(bench.server.url)
        clients.append((COREDIS, await stack.enter_async_context(client)))
    else:
        bench.note("coredis is not installed: its lines are left out")
    if bench.server.unix_socket:
        bench.note("valkey-glide knows no unix sockets: its lines are left out")
    elif find_spec("glide"):
        import glide  # noqa: PLC0415 - an optional peer

        address = glide.NodeAddress(bench.server.host, bench.server.port)
        client = await glide.GlideClient.create(glide.GlideClientConfiguration([address]))
        stack.push_async_callback(client.close)
        clients.append((GLIDE, client))
    else:
        bench.note("valkey-glide is not installed: its lines are left out")
    return clients


def _c_client(bench: Bench, command: list[str]) -> list[Arm]:
    """Return redis-benchmark's arms: what a C client gets out of the same server."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        bench.note("redis-benchmark is not on PATH: its lines are left out")
        return []

    def arm(name: str, depth: int, calls: int) -> Arm:
        start = [program, "--csv", "-h", bench.server.host, "-p", str(bench.server.port)]
        if bench.server.unix_socket:
            start += ["-s", bench.server.unix_socket]

        async def work(count: int) -> float:
            arguments = ["-c", str(WORKERS), "-P", str(depth), "-n", str(count)]
            done = subprocess.run(  # noqa: ASYNC221 - nothing else runs during an arm
                [*start, *arguments, *command], capture_output=True, text=True, check=True
            )
            return count * 1e6 / _requests_per_second(done.stdout)

        return Arm(name, work, fixed=calls)

    calls = bench.scale(20_000, 500)
    return [arm(C_CLIENT, 1, calls), arm(C_CLIENT_PIPELINED, WORKERS, calls * 5)]


def _requests_per_second(csv_output: str) -> float:
    """Take requests per second from the last line: ``"name","rps",…`` in every version."""
    return float(csv_output.strip().splitlines()[-1].rsplit('","', 7)[1].strip('"'))
