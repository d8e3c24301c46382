"""Pruning, gc and verification of real backups, with leases, hooks and events."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_events import take

from llmspell_dist import blocking
from llmspell_dist.backup.errors import BackupInProgressError, BaseMissingError
from llmspell_dist.backup.progress import Phase, Progress
from llmspell_dist.backup.retention import RetentionPolicy
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.backup.upkeep import Upkeep
from llmspell_dist.classes import StateClass
from llmspell_dist.client import Spell
from llmspell_dist.errors import InvalidArgumentError

pytestmark = [pytest.mark.integration, pytest.mark.backup]

LATER = datetime.now(UTC) + timedelta(days=30)


@pytest.fixture
async def kept(spell: Spell, tmp_path: Path) -> AsyncIterator[BackupStore]:
    """Backups in a folder."""
    async with spell.backups.to(f"file://{tmp_path}") as opened:
        yield opened


def upkeep(kept: BackupStore, **more: Any) -> Upkeep:
    """Return what keeps them in order."""
    return Upkeep(kept._repository, kept._running, kept._notices, **more)


async def work(spell: Spell, seed: int, count: int = 60) -> None:
    """Change state in all the ways that there are."""
    draw = random.Random(seed)
    state = spell.state
    for n in range(count):
        scope, other = (f"session:s{draw.randrange(4)}" for _ in range(2))
        key = f"k{draw.randrange(6)}"
        match draw.randrange(12):
            case 0 | 1 | 2:
                ttl = draw.choice([None, 100.0])
                await state.set(scope, f"v{key}", {"n": n}, ttl=ttl)
            case 3:
                await state.increment(scope, f"n{key}")
            case 4:
                await state.append(scope, f"l{key}", n)
            case 5:
                await state.merge(scope, f"m{key}", {f"f{n}": n})
            case 6:
                await state.delete(scope, f"v{key}")
            case 7:
                await state.clear(scope)
            case 8:
                async with state.transaction() as tx:
                    tx.set(scope, "a", n)
                    tx.set(scope, "b", n)
                    tx.set(other, "a", n)
            case 9:
                await state.set(
                    scope, f"b{key}", "x" * draw.randrange(600), state_class=StateClass.BULK
                )
            case 10:
                await state.set(scope, f"e{key}", n, state_class=StateClass.EPHEMERAL)
            case _:
                await state.set(scope, "large", "y" * 600_000)


async def test_real_backups_verify_at_every_level_while_others_write(
    spell: Spell, kept: BackupStore
) -> None:
    """Whatever was done: nothing is found that is not there."""
    await work(spell, 1)
    for number in range(3):
        writing = asyncio.create_task(work(spell, 10 + number))
        kind = "full" if number == 0 else ("incremental", "differential")[number % 2]
        try:
            await kept.create(type=kind)
        finally:
            await writing
    await kept.create(scopes=["session:s1"])
    await kept.create(classes=["bulk"])
    seen: list[Progress] = []
    for level in ("structure", "hashes", "full"):
        report = await upkeep(kept).verify(level=level, progress=seen.append)
        assert report.ok, str(report)
        assert len(report.backups) == 5
        assert seen[-1].phase is Phase.COMPLETED
        assert seen[-1].bytes == report.bytes
    assert seen[-1].bytes == seen[-1].total_bytes


async def test_a_restored_scope_verifies_in_the_next_backup(
    spell: Spell, kept: BackupStore
) -> None:
    """Records that came by a restore, and the entries of the log that say so."""
    await work(spell, 2)
    first = await kept.create()
    await work(spell, 3)
    await kept.restore(first.id)
    await work(spell, 4, 10)
    await kept.create(type="incremental")
    await kept.create()
    report = await upkeep(kept).verify(level="full")
    assert report.ok, str(report)


async def test_pruning_shows_first_and_removes_on_confirm(spell: Spell, kept: BackupStore) -> None:
    """What is shown is what goes; hooks and subscribers are told."""
    made = []
    for number in range(3):
        await spell.state.set("user:1", "k", number)
        made.append((await kept.create()).id)
    keeper = upkeep(kept)
    shown = await keeper.prune("last=2")
    assert [one.id for one in shown.goes] == made[:1]
    assert shown.report is None
    assert len(await kept.list()) == 3
    async with spell.events.subscribe("cleanup.*") as told:
        done = await keeper.prune("last=2", confirm=True, plan=shown)
        assert done.report is not None
        assert done.report.backups == made[:1]
        assert not done.report.left
        assert done.as_data()["backups"] == made[:1]
        assert str(done).startswith("1 backup, ")
        started, completed = await take(told, 2)
        assert (started.type, completed.type) == ("cleanup.started", "cleanup.completed")
        assert completed.data["freed_bytes"] == done.report.freed > 0
    assert [one.id for one in await kept.list()] == made[1:]
    assert (await keeper.verify(level="full")).ok
    with pytest.raises(InvalidArgumentError):
        await keeper.prune(3, confirm=True)  # type: ignore[arg-type]


async def test_nothing_is_pruned_while_a_backup_runs(spell: Spell, kept: BackupStore) -> None:
    """And the other way round."""
    await kept.create()
    keeper = upkeep(kept)
    async with kept._running.one_of_many("20260101T000000Z-00000000", "backup"):
        with pytest.raises(BackupInProgressError):
            await keeper.prune("last=1", confirm=True)
        with pytest.raises(BackupInProgressError):
            await keeper.collect(confirm=True)
        assert (await keeper.prune("last=1")).report is None


async def test_a_backup_whose_parent_is_pruned_meanwhile_does_not_come_to_exist(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who has no lease: a child alone would list, and not restore."""
    await spell.state.set("user:1", "k", 1)
    first = await kept.create()
    repository = kept._repository
    check = repository.check_reused

    def pruning(stored: Any) -> None:
        repository.target.delete([repository.layout.manifest(first.id)])
        check(stored)

    monkeypatch.setattr(repository, "check_reused", pruning)
    with pytest.raises(BaseMissingError, match="pruned meanwhile"):
        await kept.create(type="incremental", parent=first.id)
    assert await kept.list() == []


async def test_what_a_killed_backup_left_is_collected(spell: Spell, kept: BackupStore) -> None:
    """Its note is young, but its lease says that it is gone."""
    await spell.state.set("user:1", "k", "v")
    await kept.create()
    repository = kept._repository
    repository.started("20260101T000000Z-0000000a", {})
    repository.store("records", b"orphan", "0", repository.begin())
    keeper = upkeep(kept, now=lambda: LATER)
    shown = await keeper.collect()
    assert (len(shown.objects), len(shown.notes), shown.removed) == (1, 1, 0)
    done = await keeper.collect(confirm=True)
    assert done.removed == 2
    assert not await keeper.collect()
    assert (await keeper.verify(level="full")).ok


async def test_pruning_that_is_cancelled_stops_before_its_next_step(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when the lease is lost: its thread goes no further, and has ended."""
    made = []
    for number in range(4):
        await spell.state.set("user:1", "k", number)
        made.append((await kept.create()).id)
    target = kept._repository.target
    begun, go_on = threading.Event(), threading.Event()
    delete, deleted = target.delete, []

    def waiting(names: Any) -> None:
        begun.set()
        go_on.wait(30)
        delete(names)
        deleted.append(names)

    monkeypatch.setattr(target, "delete", waiting)
    pruning = asyncio.create_task(upkeep(kept).prune("last=1", confirm=True))
    await asyncio.to_thread(begun.wait, 30)
    pruning.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await pruning
    assert len(deleted) == 1
    assert [one.id for one in await kept.list()] == made[1:]
    assert (await upkeep(kept).verify()).ok
    assert (await upkeep(kept).collect(grace=timedelta(hours=1))).removed == 0


async def test_the_archive_verifies_and_is_pruned_with_the_backups(
    spell: Spell, kept: BackupStore
) -> None:
    """What lies before the oldest backup that stays goes; every moment since can be restored."""
    shipper = kept.archive()
    moments = []
    for number in range(4):
        await work(spell, 20 + number, 25)
        await shipper.once()
        if number < 2:
            await kept.create()
        await work(spell, 30 + number, 25)
        await shipper.once()
        moments.append(await spell.state.set("user:1", "n", number))
    await shipper.once()
    report = await kept.verify(level="full")
    assert report.ok, str(report)
    assert report.segments >= 8
    done = await kept.prune("last=1", confirm=True)
    assert done.report is not None
    assert done.report.segments >= 2
    for level in ("structure", "full"):
        report = await kept.verify(level=level)
        assert report.ok, str(report)
    assert report.segments >= 5
    assert not await kept.gc()
    for number in (1, 3, 2):
        await kept.restore(moments[number], rollback=False)
        assert await spell.state.get("user:1", "n") == number


async def test_the_blocking_surface_does_the_same(
    spell: Spell, url: str, namespace: str, tmp_path: Path
) -> None:
    """Prune, gc and verify; on a server that several clients reach."""

    def work() -> None:
        with blocking.connect(url, namespace=namespace) as client:
            kept = client.backups.to(f"file://{tmp_path}")
            for number in range(2):
                client.state.set("user:1", "k", number)
                kept.create()
            seen: list[Progress] = []
            assert kept.verify(level="full", progress=seen.append).ok
            assert seen
            shown = kept.prune("last=1")
            assert len(shown.goes) == len(shown.stays) == 1
            assert kept.prune("last=1", confirm=True, plan=shown).report is not None
            assert len(kept.list()) == 1
            assert not kept.gc(confirm=True)
            kept.close()

    await asyncio.to_thread(work)


async def test_a_policy_may_be_a_value(spell: Spell, kept: BackupStore) -> None:
    """As well as its short form."""
    await spell.state.set("user:1", "k", 1)
    await kept.create()
    policy = RetentionPolicy.parse("last=1")
    assert not await kept.prune(policy)
    assert (await kept.verify(level="structure")).ok
    assert not await kept.gc()
