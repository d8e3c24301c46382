"""A server that is full, read-only, refuses rights, reaches its cap, or whose clock steps back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fix_faults import Servers, client, hasty, raw_to
from fix_lease_faults import Clock
from fix_ledger import everything
from fix_servers import Server
from fix_state import Store

from llmspell_dist import Retention
from llmspell_dist.backup.creating import Creator
from llmspell_dist.backup.errors import BaseMissingError
from llmspell_dist.backup.recovering import Recovery
from llmspell_dist.errors import SpellError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.needs("process", "config"),
    pytest.mark.one_server,
]
SCOPES = [f"agent:{number}" for number in range(4)]


async def fill(state: Any, what: int) -> None:
    """Give every scope something of one time."""
    for scope in SCOPES:
        async with state.transaction() as tx:
            for key in range(20):
                tx.set(scope, f"k{key}", {"what": what, "text": "x" * 100})


def set_fault(raw: Any, fault: str) -> None:
    """Let the server refuse writes."""
    if fault == "full":
        raw("CONFIG", "SET", "maxmemory", "1")
    elif fault == "read-only":
        raw("REPLICAOF", "127.0.0.1", "1")
    else:
        raw("ACL", "SETUSER", "default", "-hset", "-hdel", "-evalsha", "-eval", "-fcall")


def clear_fault(raw: Any) -> None:
    """Let it be well again."""
    raw("CONFIG", "SET", "maxmemory", "0")
    raw("REPLICAOF", "NO", "ONE")
    raw("ACL", "SETUSER", "default", "+@all")


def striking(step: Any, raw: Any, fault: str, *, before: bool) -> Any:
    """Return a step of a backup or restore that the fault strikes before or behind."""

    async def both(*arguments: Any, **more: Any) -> Any:
        if before:
            set_fault(raw, fault)
        done = await step(*arguments, **more)
        if not before:
            set_fault(raw, fault)
        return done

    return both


@pytest.mark.parametrize("fault", ["full", "read-only", "no right"])
@pytest.mark.parametrize("step", ["_begin", "_scan", "_catch_up", "_seal"])
async def test_a_backup_on_a_server_that_refuses_writes_is_whole_or_not_there(
    own_server: Servers, namespace: str, tmp_path: Path, step: str, fault: str
) -> None:
    """It needs no write but its hold; what it cannot release, the next one does."""
    server = own_server(config={"maxmemory-policy": "noeviction"})
    raw = raw_to(server)
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await fill(spell.state, 1)
        right = await everything(spell)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Creator, step, striking(getattr(Creator, step), raw, fault, before=True))
            error = None
            try:
                with hasty(spell, retry_budget=1.0):
                    await store.create()
            except SpellError as caught:
                error = caught
        clear_fault(raw)
        listed = await store.list()
        # Who cannot release its hold says so, and the backup may be there: it is whole then.
        assert error is not None or len(listed) == 1
        assert error is None or error.code not in {"BACKUP_DAMAGED", "CORRUPT_RECORD"}
        made = await store.create()
        for info in [*listed, made]:
            await store.restore(info.id, namespace=f"{namespace}-there", rollback=False)
            async with client(server, f"{namespace}-there") as there:
                assert await everything(there) == right
    raw.close()


@pytest.mark.parametrize("fault", ["full", "read-only", "no right"])
@pytest.mark.parametrize("step", ["stage", "_checked", "abandon"])
async def test_a_restore_on_a_server_that_refuses_writes_leaves_whole_scopes(
    own_server: Servers, namespace: str, tmp_path: Path, step: str, fault: str
) -> None:
    """Each as it was or as it is restored; the next restore does it, and nothing is left."""
    server = own_server(config={"maxmemory-policy": "noeviction"})
    raw = raw_to(server)
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await fill(spell.state, 1)
        then = await everything(spell)
        info = await store.create()
        await fill(spell.state, 2)
        now = await everything(spell)
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(Recovery, step)
            patch.setattr(Recovery, step, striking(real, raw, fault, before=True))
            error = None
            try:
                with hasty(spell, retry_budget=1.0):
                    await store.restore(info.id, rollback=False)
            except SpellError as caught:
                error = caught
        clear_fault(raw)
        # Who is done and cannot tidy up says so, unless the server lets him.
        assert error is not None or (step, fault) == ("abandon", "full")
        assert error is None or error.code not in {"BACKUP_DAMAGED", "CORRUPT_RECORD"}
        for scope, found in (await everything(spell)).items():
            assert found in (then[scope], now[scope])
        await store.restore(info.id, rollback=False)
        assert await everything(spell) == then
    raw.close()


async def test_a_log_that_reaches_its_cap_during_a_backup_is_noticed(
    server: Server, namespace: str, store: Store, tmp_path: Path
) -> None:
    """The hold breaks, entries are gone: no backup, and the next one is right."""
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as kept,
    ):
        await fill(spell.state, 1)
        retention = Retention(max_age=None, max_entries=5, cap_entries=10)
        store.raw("HSET", store.space.ctl("0"), "retention", retention.stored)
        real = Creator._scan

        async def long(self: Creator, *arguments: Any) -> None:
            await real(self, *arguments)
            for number in range(60):
                await spell.state.set(SCOPES[0], "k0", number)
            await spell.log.trim()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Creator, "_scan", long)
            with pytest.raises(BaseMissingError, match="cap"):
                await kept.create()
        assert await kept.list() == []
        assert not (await spell.log.stat()).holds
        made = await kept.create()
        await kept.restore(made.id, namespace=f"{namespace}-there", rollback=False)
        async with client(server, f"{namespace}-there") as there:
            assert await everything(there) == await everything(spell)


@pytest.mark.parametrize("seconds", [-60, 15])
async def test_a_server_whose_clock_steps_during_a_backup_keeps_the_moment(
    own_server: Servers, namespace: str, clock: Clock, tmp_path: Path, seconds: int
) -> None:
    """Revisions go on growing; full and incremental backups and moments are right."""
    with clock.in_environment():
        server = own_server()
    raw = raw_to(server)
    moments: list[tuple[Any, Any]] = []
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as kept,
    ):
        await fill(spell.state, 1)
        before = int(raw("TIME")[0])

        async def step(*_: Any) -> None:
            clock.jump(seconds)
            await fill(spell.state, 2)
            moments.append(((await spell.log.stat()).last, await everything(spell)))
            await spell.state.set("agent:new", "v", 1)

        real = Creator._scan

        async def stepped(self: Creator, *arguments: Any) -> None:
            await real(self, *arguments)
            await step()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Creator, "_scan", stepped)
            full = await kept.create()
        assert abs(int(raw("TIME")[0]) - before - seconds) < 12, "the clock did not step: void"
        moments.append((full.id, await everything(spell)))
        await fill(spell.state, 3)
        clock.jump(0)
        await spell.state.delete("agent:new", "v")
        following = await kept.create(type="incremental")
        moments.append((following.id, await everything(spell)))
        await kept.archive().once()
        await fill(spell.state, 4)
        moments.append(((await spell.log.stat()).last, await everything(spell)))
        await kept.archive().once()
        assert (await kept.verify(level="full")).findings == []
        for at, right in moments[1:]:
            await kept.restore(at, namespace=f"{namespace}-there", rollback=False)
            async with client(server, f"{namespace}-there") as there:
                assert await everything(there) == right, at
    raw.close()


async def test_a_backup_that_is_cancelled_while_its_manifest_is_written_ends_with_it(
    server: Server, namespace: str, tmp_path: Path
) -> None:
    """Its lease is held until then: nobody prunes meanwhile what the manifest names."""
    async with (
        client(server, namespace) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as kept,
    ):
        await fill(spell.state, 1)
        publish, waiting, gate = kept._repository.publish, threading.Event(), threading.Event()

        def slow(*arguments: Any) -> None:
            waiting.set()
            assert gate.wait(20)
            publish(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept._repository, "publish", slow)
            making = asyncio.create_task(kept.create())
            assert await asyncio.to_thread(waiting.wait, 20)
            making.cancel()
            await spell.state.get(SCOPES[0], "k0")
            assert not making.done(), "it has ended, and the manifest has not"
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await making
        for info in await kept.list():
            await kept.restore(info.id, namespace=f"{namespace}-there", rollback=False)
        assert (await kept.verify()).findings == []
