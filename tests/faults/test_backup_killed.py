"""Whatever works on backups is killed at any moment: what lists restores, the next run cleans."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time
from typing import Any

import pytest
from fix_faults import client, environment
from fix_lease_faults import at_most, chance, report
from fix_ledger import Ledger, differing, everything, write
from fix_servers import Server
from fix_state import Store, sweep_all, until

from llmspell_dist import Retention
from llmspell_dist.backup import running
from llmspell_dist.backup.recovering import Recovery

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.needs("process"),
    pytest.mark.one_server,
]
PROGRAM = Path(__file__).parent / "backup_process.py"
OPERATIONS = ("full", "incremental", "archive", "restore", "prune", "gc")
RESTORED = ("custom:r1", "custom:r2")
POLICY = "last=3"


class Deaths:
    """The process that works on backups, and its children's deaths."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self.steps: dict[str, int] = {}
        """By operation, how many steps it has when nobody kills it."""
        self.given_up = 0

    async def close(self) -> None:
        """End it: it makes no more."""
        self._in.close()
        await self._process.communicate()

    async def run(self, operation: str, steps: int, argument: str = "-") -> bool:
        """Carry an operation out, or die in it; whether it died."""
        self._in.write(f"{operation} {steps} {argument}\n".encode())
        line = await self._out.readline()
        assert line == b"begun\n", line
        line = await self._out.readline()
        if line.startswith(b"done"):
            self.steps[operation] = int(line.split()[1])
            assert await self._out.readline() == b"ended\n"
            return False
        if line.startswith((b"failed LeaseLostError", b"failed BackupInProgressError")):
            self.given_up += 1  # the machine is slow, or somebody's death not long ago
            line = await self._out.readline()
            assert line == b"ended\n"
            return False
        assert line == b"ended\n", f"{operation}: {line.decode()}"
        return True


async def put_variant(state: Any, number: int) -> None:
    """Make the scopes that are restored something that can be told from any other time."""
    for scope in RESTORED:
        async with state.transaction() as tx:
            for key in range(40):
                tx.set(scope, f"k{key}", number)
            tx.set(scope, f"only{number % 3}", number)
            for other in range(3):
                if other != number % 3:
                    tx.delete(scope, f"only{other}")


def is_whole(found: dict[str, Any]) -> bool:
    """Whether a scope is of one variant."""
    numbers = set(found.values())
    if not found:
        return True
    number = min(numbers)
    right = {**dict.fromkeys((f"k{key}" for key in range(40)), number)}
    return found == {**right, f"only{number % 3}": number}


class Campaign:
    """Backups under deaths, compared with what the writers know."""

    def __init__(self, spell: Any, url: str, namespace: str, folders: list[str]) -> None:
        self.spell = spell
        self.url, self.namespace = url, namespace
        self.ledger = Ledger()
        self.main, self.base = (spell.backups.to(folder) for folder in folders)
        self.checked: Counter[str] = Counter()

    async def restored(self, store: Any, at: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Restore a moment elsewhere, and return what is there then."""
        there = f"{self.namespace}-there"
        done = await store.restore(at, namespace=there, rollback=False)
        async with client(Named(self.url), there) as other:
            return done, await everything(other)

    async def check_backup(self, store: Any, info: Any) -> None:
        """Restore a backup: it is its moment."""
        done, found = await self.restored(store, info.id)
        self.checked[info.type.value] += 1
        for scope in RESTORED:
            assert is_whole(found.pop(scope, {})), f"{info.id}: {scope} is mixed"
        if store is self.main:
            right = self.ledger.at(info.revision)
            for one in done.inexact:
                found.get(one.scope, {}).pop(one.key, None)
                right.get(one.scope, {}).pop(one.key, None)
            assert differing(found, right) == {}, info.id

    async def check(self, *, everything_listed: bool) -> None:
        """Look at all that a death could have harmed."""
        for scope in RESTORED:
            assert is_whole(await self.spell.state.get_all(scope)), f"{scope} is half restored"
        for store in (self.main, self.base):
            if everything_listed:
                for info in await store.list():
                    await self.check_backup(store, info)


class Named:
    """Something with a URL."""

    def __init__(self, url: str) -> None:
        self.url = url


async def campaign(  # noqa: C901 - its parts share the figures
    server: Server, namespace: str, store: Store, folder: Path, deaths: int
) -> dict[str, Any]:
    """Kill each operation so many times; return the figures."""
    drawn = chance("backups killed")
    folders = [f"file://{folder}/main", f"file://{folder}/base"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), server.url, namespace, *folders),
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    killer = Deaths(process)
    died: Counter[str] = Counter()
    try:
        async with client(server, namespace) as spell:
            one = Campaign(spell, server.url, namespace, folders)
            await put_variant(spell.state, 0)
            then = (await one.base.create(scopes=RESTORED)).id

            async def do(operation: str, steps: int) -> bool:
                argument = {"restore": then, "prune": POLICY}.get(operation, "-")
                # Few writers: each has keys of its own.
                stop, writer = asyncio.Event(), random.Random(drawn.randrange(4))
                writing = asyncio.create_task(write(spell, one.ledger, writer, stop))
                dead = await killer.run(operation, steps, argument)
                stop.set()
                await writing
                return dead

            async def undisturbed(operation: str) -> None:
                for _ in range(5):
                    given_up = killer.given_up
                    assert not await do(operation, 0)
                    if killer.given_up == given_up:
                        return
                raise AssertionError("this machine is too slow for this TTL")

            async def strike(number: int, operation: str) -> None:
                await put_variant(spell.state, number)
                if operation == "prune" and len(await one.main.list()) < 5:
                    for _ in range(2):
                        await undisturbed("full")
                if await do(operation, drawn.randrange(1, killer.steps[operation] + 2)):
                    died[operation] += 1
                await one.check(everything_listed=number % 6 == 0)

            for operation in (*OPERATIONS, "incremental", "full", "prune"):
                await undisturbed(operation)
            number = 0
            for number in range(1, deaths * len(OPERATIONS) + 1):
                await strike(number, OPERATIONS[number % len(OPERATIONS)])
            # How many steps there are hangs on the time: some may have come through each time.
            for operation in [one for one in OPERATIONS for _ in range(10)]:
                if not died[operation]:
                    number += 1
                    await strike(number, operation)
            await one.check(everything_listed=True)
            await clean_again(one, store, folder)
            return {
                "died": dict(died),
                "restored": dict(one.checked),
                "commits": len(one.ledger.done),
                "steps": killer.steps,
                "given_up": killer.given_up,
            }
    finally:
        await killer.close()


def make_old(folder: Path) -> None:
    """Let what they did not end to write be an hour old."""
    for file in folder.rglob("~tmp/*"):
        os.utime(file, (time() - 3600, time() - 3600))


async def clean_again(one: Campaign, store: Store, folder: Path) -> None:
    """The next run cleans up: nothing is left of those that were killed."""
    spell = one.spell
    for kept in (one.main, one.base):
        await kept.create()
        await kept.prune("last=2 min=2", confirm=True)
        make_old(folder)
        kept._upkeep._now = lambda: datetime.now(UTC) + timedelta(hours=1)
        await kept.gc(confirm=True, grace=timedelta(minutes=1))
        for info in await kept.list():
            await one.check_backup(kept, info)
        left = await kept.gc(grace=timedelta(minutes=1))
        assert (left.objects, left.notes, left.unfinished) == ([], [], [])
        assert (await kept.verify(level="full")).findings == []
    await sweep_all(spell)
    assert not [key for key in store.all_keys() if b":restore" in key], "staging is left"
    stat = await spell.log.stat()
    assert set(stat.holds) <= {"archive"}
    await one.main.archive().once()
    retention = Retention(max_age=None, max_entries=10)
    store.raw("HSET", store.space.ctl("0"), "retention", retention.stored)
    await spell.log.trim()
    assert (await spell.log.stat()).entries < 100, "the log is kept by somebody"


@pytest.fixture
def hasty_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead laid down goes soon; what they held is short in their own process."""
    monkeypatch.setattr(running, "QUIET_MS", 1)


@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("hasty_cleaning")
@pytest.mark.parametrize("deaths", [2, pytest.param(17, marks=pytest.mark.slow)])
async def test_deaths_at_any_step_leave_only_what_restores(
    server: Server, namespace: str, store: Store, tmp_path: Path, deaths: int
) -> None:
    """Of backups, archiving, restores, pruning and collecting, so often each; writers go on."""
    figures = await campaign(server, namespace, store, tmp_path, deaths)
    killed = sum(figures["died"].values())
    report("backups killed", **figures, half_or_wrong=at_most(killed))
    assert all(figures["died"][operation] for operation in OPERATIONS), "some were never killed"


@pytest.mark.usefixtures("hasty_cleaning")
async def test_what_a_dead_restore_laid_down_goes_with_the_next_run(
    server: Server, namespace: str, store: Store, tmp_path: Path
) -> None:
    """Of a backup or of a restore; one that is heard of stays."""
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as kept,
    ):
        await put_variant(spell.state, 1)
        made = await kept.create()

        async def nothing(_: Recovery) -> None:
            raise asyncio.CancelledError

        for run in (kept.create, kept.restore):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Recovery, "put_in_place", nothing)
                patch.setattr(Recovery, "abandon", nothing)
                with pytest.raises(asyncio.CancelledError):
                    await kept.restore(made.id, rollback=False)
            assert [key for key in store.all_keys() if b":restore" in key]
            last = store.raw.now_ms()
            await until(lambda: store.raw.now_ms() > last + 5)  # noqa: B023
            await run()
            await sweep_all(spell)
            assert not [key for key in store.all_keys() if b":restore" in key]
