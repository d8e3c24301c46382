"""A restore that is killed leaves every scope whole, and nothing else for long."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from fix_faults import client, environment
from fix_restore import packed, scan
from fix_servers import Server
from fix_state import Raw, Store, sweep_all, until

from llmspell_dist.backup.restoring import leftovers

pytestmark = [pytest.mark.integration, pytest.mark.backup, pytest.mark.needs("process")]
SCOPES = ("agent:alice", "session:s1", "custom:empty")


def script_calls(raw: Raw) -> int:
    """Return how many scripts the server has run."""
    found = re.search(rb"cmdstat_evalsha:calls=(\d+)", raw("INFO", "commandstats"))
    return int(found[1]) if found else 0


class Deaths:
    """The process that makes restores, and their deaths."""

    def __init__(self, process: asyncio.subprocess.Process, raw: Raw) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out, self._raw = process.stdin, process.stdout, raw

    async def close(self) -> None:
        """End it: it makes no more."""
        self._in.close()
        await self._process.communicate()

    async def die(self, calls: int) -> bool:
        """Begin a restore and kill it behind so many calls; whether it was not done yet."""
        self._in.write(b"s")
        ready, pid = (await self._out.readline()).split()
        assert ready == b"ready"
        last = script_calls(self._raw) + calls
        self._in.write(b"g")
        assert await self._out.readline() == b"begun\n"
        told = asyncio.create_task(self._out.readline())
        await until(lambda: script_calls(self._raw) >= last or told.done(), within_s=20)
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
        line = await told
        if line == b"done\n":
            assert await self._out.readline() == b"ended\n"
        return line == b"ended\n"


async def fill(state: Any) -> None:
    """Put much of everything there."""
    for scope in SCOPES[:2]:
        await state.set_many(scope, {f"k{n}": n for n in range(150)})
        for n in range(10):
            await state.append(scope, f"l{n}", *range(n + 1))
            await state.merge(scope, f"m{n}", {str(i): i for i in range(n + 1)})
        await state.set(scope, "big", "x" * 600_000)


async def change(state: Any) -> None:
    """Make it something else."""
    for scope in SCOPES:
        await state.clear(scope)
        await state.set_many(scope, {f"k{n}": "now" for n in range(0, 200, 2)})
        await state.append(scope, "l1", "now")


async def killed(server: Server, namespace: str, store: Store, file: Path, kills: int) -> None:
    """Kill as many restores, each behind another number of calls."""
    drawn = random.Random(5)
    program = Path(__file__).parent / "restore_process.py"
    async with client(server, namespace) as spell, AsyncExitStack() as stack:
        await fill(spell.state)
        _ = file.write_bytes(packed(scan(store, SCOPES)))  # noqa: ASYNC240 - small
        then = {scope: await spell.state.get_all(scope) for scope in SCOPES}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), server.url, namespace, str(file), *SCOPES[:2]),
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        deaths = Deaths(process, store.raw)
        stack.push_async_callback(deaths.close)
        unfinished = 0
        for _ in range(kills):
            await change(spell.state)
            now = {scope: await spell.state.get_all(scope) for scope in SCOPES}
            unfinished += await deaths.die(drawn.randrange(60))
            for scope in SCOPES:
                assert await spell.state.get_all(scope) in (now[scope], then[scope])
        assert unfinished > kills // 3
        driver = spell.state._driver
        await driver.run(leftovers(driver.core, "0", quiet_ms=-1))
        await sweep_all(spell)
    assert not [key for key in store.all_keys() if b":restore" in key]
    store.check()


@pytest.mark.one_server
async def test_a_restore_that_is_killed_leaves_whole_scopes(
    server: Server, namespace: str, store: Store, tmp_path: Path
) -> None:
    """As they were before it, or as they are restored."""
    await killed(server, namespace, store, tmp_path / "items", 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_hundred_restores_are_killed(
    server: Server, namespace: str, store: Store, tmp_path: Path
) -> None:
    """The same, a hundred times."""
    await killed(server, namespace, store, tmp_path / "items", 100)
