"""The sidecar: requests a second, one caller's latency, idle memory."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.harness import Arm, Bench, Pair, Row, Samples, one_by_one
from benchmarks.http_load import load, loader
from benchmarks.layout import Values
from benchmarks.ours import NAMESPACE, OURS, open_ours
from benchmarks.payloads import MAIN
from benchmarks.server import free_port

__all__ = ["ROWS", "running_sidecar"]

_SCOPE, _KEY = "agent:bench", "message"
_SIDECAR = "sidecar"
_EMPTY = "empty Starlette route on Granian"
_ACCESS = '[anonymous]\ngrants = [{ scopes = ["agent:*"], verbs = ["read", "write"] }]\n'
_CONNECTIONS = 32
_LIMIT = 90e6
_START_S = 20


@asynccontextmanager
async def _process(port: int, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server until the block ends; it begins once it listens."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if not name.startswith("LLMSPELL_")},
    )
    try:
        until = monotonic() + _START_S
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, f"{command[0]} has ended"
                assert monotonic() < until, f"{command[0]} does not listen"
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def running_sidecar(bench: Bench) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a sidecar with an access file, so that each request's rights are looked up."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llmspell-bench-") as folder:
        access = Path(folder, "access.toml")
        access.write_text(_ACCESS, encoding="utf-8")  # noqa: ASYNC240 - before anything runs
        command = (sys.executable, "-m", "llmspell_dist.cli", "sidecar")
        options = ("--url", bench.server.url, "--namespace", NAMESPACE, "--access", str(access))
        async with _process(port, *command, *options, "--bind", f"127.0.0.1:{port}") as process:
            yield f"http://127.0.0.1:{port}", process


@asynccontextmanager
async def _empty() -> AsyncIterator[str]:
    port = free_port()
    command = (sys.executable, "-m", "granian", "--interface", "asgi", "--workers", "1")
    options = ("--loop", "uvloop", "--port", str(port), "benchmarks.empty_app:app")
    async with _process(port, *command, *options):
        yield f"http://127.0.0.1:{port}/"


async def _get(bench: Bench) -> Samples:
    """Each sample is a second of wrk: as many connections to the one and to the other."""
    seconds = bench.scale(2, 1)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        await spell.state.set(_SCOPE, _KEY, Values(MAIN).objects[0])
        base, _ = await stack.enter_async_context(running_sidecar(bench))
        empty = await stack.enter_async_context(_empty())

        def of(url: str) -> Callable[[int], Awaitable[float]]:
            async def work(count: int) -> float:
                found = await asyncio.to_thread(load, url, _CONNECTIONS, seconds)
                return found.per_second / 1000 * count

            return work

        bench.note(f"requests to the sidecar come from {loader()}")
        arms = [
            Arm(_SIDECAR, of(f"{base}/v1/state/{_SCOPE}/{_KEY}"), fixed=1),
            Arm(_EMPTY, of(empty), fixed=1),
        ]
        for arm in arms:
            await arm.work(1)  # warm
        return await bench.interleave(arms, rounds=1 if bench.quick else bench.rounds)


async def _latency(bench: Bench) -> Samples:
    """One caller: the median over HTTP by wrk, against the library in this process."""
    seconds = bench.scale(2, 1)
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        await spell.state.set(_SCOPE, _KEY, Values(MAIN).objects[0])
        base, _ = await stack.enter_async_context(running_sidecar(bench))

        async def remote(count: int) -> float:
            url = f"{base}/v1/state/{_SCOPE}/{_KEY}"
            found = await asyncio.to_thread(load, url, 1, seconds)
            return found.median_us * count

        async def ours(_: int, __: int) -> None:
            await spell.state.get(_SCOPE, _KEY)

        arms = [
            Arm(_SIDECAR, remote, fixed=1),
            Arm(OURS, lambda count: one_by_one(count, ours)),
        ]
        await remote(1)
        return await bench.interleave(arms, rounds=1 if bench.quick else bench.rounds)


async def _memory(bench: Bench) -> Samples:
    """Measure the resident memory of a sidecar that has served a few requests and rests."""
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(open_ours(bench.server))
        await spell.state.set(_SCOPE, _KEY, Values(MAIN).objects[0])

        async def resident(count: int) -> float:
            async with running_sidecar(bench) as (base, process):
                url = f"{base}/v1/state/{_SCOPE}/{_KEY}"
                await asyncio.to_thread(load, url, 1, 1)
                return psutil.Process(process.pid).memory_info().rss * count

        async def limit(count: int) -> float:
            return _LIMIT * count

        arms = [Arm("idle sidecar", resident, fixed=1), Arm("90 MB", limit, fixed=1)]
        return await bench.interleave(arms, rounds=1 if bench.quick else min(3, bench.rounds))


ROWS = (
    Row("sidecar_get", _get, (Pair("sidecar_get", _SIDECAR, _EMPTY, "k/s"),), "uvloop"),
    Row("sidecar_latency", _latency, (Pair("sidecar_latency", _SIDECAR, OURS),), "uvloop"),
    Row("sidecar_memory", _memory, (Pair("sidecar_memory", "idle sidecar", "90 MB", "MB"),)),
)
