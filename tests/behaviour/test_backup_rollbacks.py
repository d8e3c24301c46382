"""Undoing a restore: what it replaced comes back, and nothing else changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fix_ledger import everything

from llmspell_dist import LeaseRequiredError, Spell, StateClass, connect
from llmspell_dist.backup import BackupStore
from llmspell_dist.backup.errors import PointNotCoveredError, RestoreRefusedError
from llmspell_dist.backup.progress import Phase, Progress

pytestmark = [pytest.mark.integration, pytest.mark.backup]


@pytest.fixture
async def kept(spell: Spell, tmp_path: Path) -> AsyncIterator[BackupStore]:
    """Backups in a folder."""
    async with spell.backups.to(f"file://{tmp_path}/backups") as kept:
        yield kept


async def test_the_phases_are_told_in_their_order(spell: Spell, kept: BackupStore) -> None:
    """Those of rs-llmspell; an undone restore ends as rolled back, a refused one as failed."""
    told: list[Progress] = []

    def phases() -> list[Phase]:
        seen = list(dict.fromkeys(one.phase for one in told))
        told.clear()
        return seen

    await spell.state.set("agent:alice", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:alice", "v", 2)
    done = await kept.restore(info.id, progress=told.append)
    begun = [
        *(Phase.PREPARING, Phase.VALIDATING_BACKUPS, Phase.RESTORING_DATA),
        *(Phase.VERIFYING_RESTORE, Phase.CREATING_ROLLBACK_POINT, Phase.SWAPPING),
    ]
    assert phases() == [*begun, Phase.COMPLETED]
    await kept.rollback(done, progress=told.append)
    assert phases() == [*begun, Phase.ROLLED_BACK]
    async with spell.leases.acquire("agent:alice", name="main"):
        with pytest.raises(RestoreRefusedError):
            await kept.restore(info.id, progress=told.append)
    assert phases()[-1] is Phase.FAILED


async def test_it_touches_only_what_the_restore_was_asked_for(
    spell: Spell, kept: BackupStore
) -> None:
    """Scopes outside of it stay as they are, however many the restore had."""
    state = spell.state
    for n in range(3):
        await state.set(f"session:{n}", "v", 1)
    await state.set("agent:innocent", "v", 1)
    info = await kept.create()
    for n in range(3):
        await state.set(f"session:{n}", "v", 2)
    report = await kept.restore(info.id, scopes="session:*")
    await state.set("agent:innocent", "v", 2)
    await state.set("agent:new", "v", 1)
    await kept.rollback(report)
    assert await state.get("session:0", "v") == 2
    assert await state.get("agent:innocent", "v") == 2
    assert await state.get("agent:new", "v") == 1


async def test_a_backup_that_no_restore_made_is_no_way_back(
    spell: Spell, kept: BackupStore
) -> None:
    """It would bring back all of it; nothing is changed."""
    await spell.state.set("agent:a", "k", 1)
    made = await kept.create()
    await spell.state.set("agent:a", "k", 2)
    with pytest.raises(RestoreRefusedError, match=f"{made.id} is no way back of a restore"):
        await kept.rollback(made.id)
    assert await spell.state.get("agent:a", "k") == 2
    report = await kept.restore(made.id)
    await kept.rollback(report.rollback or "")
    assert await spell.state.get("agent:a", "k") == 2


async def test_what_came_where_nothing_was_goes_again(spell: Spell, kept: BackupStore) -> None:
    """A scope that was cleared, one that the restore made, one beside others."""
    state = spell.state
    await state.set("agent:a", "v", 1)
    await state.set("agent:b", "v", 1)
    info = await kept.create()
    await state.clear("agent:a")
    before = await everything(spell)
    for scope, into in (("agent:a", None), ("agent:b", "agent:copy")):
        report = await kept.restore(info.id, scopes=scope, into=into)
        assert await everything(spell) != before
        await kept.rollback(report)
        assert await everything(spell) == before


async def test_a_restore_into_another_namespace_is_undone_there(
    spell: Spell, kept: BackupStore, url: str, namespace: str
) -> None:
    """Whoever has its report need not connect to it."""
    other = f"{namespace}-other"
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    async with connect(url, namespace=other) as there:
        await there.state.set("agent:a", "v", "theirs")
        await there.state.set("agent:later", "v", "theirs")
        report = await kept.restore(info.id, namespace=other)
        assert await everything(there) == {"agent:a": {"v": 1}}
        await kept.rollback(report)
        assert await everything(there) == {
            "agent:a": {"v": "theirs"},
            "agent:later": {"v": "theirs"},
        }
    assert await spell.state.get("agent:a", "v") == 1


async def test_a_key_that_was_put_back_can_be_taken_back(spell: Spell, kept: BackupStore) -> None:
    """Up to the very commit before."""
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:a", "v", 2)
    report = await kept.restore(info.id, scopes="agent:a", key="v")
    assert await spell.state.get("agent:a", "v") == 1
    await kept.rollback(report)
    assert await spell.state.get("agent:a", "v") == 2


async def test_a_key_of_a_leased_scope_is_refused_unless_forced(
    spell: Spell, kept: BackupStore
) -> None:
    """As a whole scope is."""
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:a", "v", 2)
    async with spell.leases.acquire("agent:a", owner="worker"):
        with pytest.raises(RestoreRefusedError, match="worker"):
            await kept.restore(info.id, scopes="agent:a", key="v")
        assert await spell.state.get("agent:a", "v") == 2
        await kept.restore(info.id, scopes="agent:a", key="v", force=True)
    assert await spell.state.get("agent:a", "v") == 1


async def test_a_key_of_a_scope_that_was_not_there_is_deleted(
    spell: Spell, kept: BackupStore
) -> None:
    """It was not there at the moment."""
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:later", "v", 1)
    await spell.state.set("agent:later", "w", 1)
    await kept.restore(info.id, scopes="agent:later", key="v")
    assert await spell.state.get_all("agent:later") == {"w": 1}


async def test_a_backup_of_some_classes_never_removes_others(
    spell: Spell, kept: BackupStore
) -> None:
    """In place, by one key, into a scope that has keys: refused; elsewhere it comes back."""
    state = spell.state
    await state.set("agent:a", "critical", 1, state_class=StateClass.CRITICAL)
    await state.set("agent:a", "plain", 1)
    await state.set("agent:b", "plain", 1)
    info = await kept.create(classes=["critical"])
    before = await everything(spell)
    for asked in (
        {"scopes": "agent:a"},
        {"scopes": "agent:a", "key": "plain"},
        {"scopes": "agent:a", "into": "agent:a"},
        {"scopes": "agent:a", "into": "agent:b"},
    ):
        with pytest.raises(RestoreRefusedError, match="classes"):
            await kept.restore(info.id, **asked)  # type: ignore[arg-type]
    assert await everything(spell) == before
    await state.set("agent:a", "critical", 2, state_class=StateClass.CRITICAL)
    await kept.restore(info.id, scopes="agent:a", key="critical")
    await kept.restore(info.id, scopes="agent:a", into="agent:new")
    assert await state.get_all("agent:a") == {"critical": 1, "plain": 1}
    assert await state.get_all("agent:new") == {"critical": 1}


async def test_a_glob_is_covered_only_by_itself(spell: Spell, kept: BackupStore) -> None:
    """A backup of ``agent:?`` says nothing of all that ``agent:*`` means."""
    await spell.state.set("agent:long", "v", 1)
    await spell.state.set("agent:a", "v", 1)
    await kept.create(scopes="agent:?")
    for moment in (None, "latest"):
        with pytest.raises(RestoreRefusedError):
            await kept.restore((await kept.list())[0].id, scopes="agent:*")
        with pytest.raises(PointNotCoveredError, match="no backup holds"):
            await kept.restore(moment, scopes="agent:*")
    assert await spell.state.get("agent:long", "v") == 1


async def test_what_a_scope_demands_is_that_of_the_moment(spell: Spell, kept: BackupStore) -> None:
    """Also of a moment behind a restore that brought the demand back."""
    await spell.state.set("agent:a", "v", 1)
    await spell.leases.require("agent:a")
    info = await kept.create()
    async with spell.leases.acquire("agent:a") as lease:
        await spell.leases.unrequire("agent:a", lease=lease)
    await kept.restore(info.id, rollback=False)
    async with spell.leases.acquire("agent:a") as lease:
        moment = await lease.state.set("agent:a", "w", 1)
        await lease.state.set("agent:a", "w", 2)
    await kept.restore(moment, rollback=False)
    assert await spell.state.get_all("agent:a") == {"v": 1, "w": 1}
    with pytest.raises(LeaseRequiredError):
        await spell.state.set("agent:a", "v", 2)
