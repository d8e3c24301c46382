"""What cannot be read or done just now is an error: not absence, damage or failure of the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import Unread

from llmspell_dist import Spell
from llmspell_dist.backup.errors import TargetError
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.restoring import abandon as abandon_staged
from llmspell_dist.backup.running import KEPT_FOR_NEXT
from llmspell_dist.backup.schedule_model import BackupSchedule
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.errors import StoreTimeoutError
from llmspell_dist.log import LogSteps
from llmspell_dist.schedule import Every
from llmspell_dist.security.keyring import FileKeys
from llmspell_dist.state.history import History

pytestmark = [pytest.mark.integration, pytest.mark.backup]


def nothing(name: str) -> bool:
    """Whether an object cannot be read: all can."""
    return False


@pytest.fixture
def place(tmp_path: Path) -> Unread:
    """Where backups are kept."""
    return Unread(FolderTarget(tmp_path / "backups"), nothing)


@pytest.fixture
async def kept(spell: Spell, place: Unread, tmp_path: Path) -> AsyncIterator[BackupStore]:
    """Encrypted backups in it."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    async with spell.backups.to(place, keys=keys) as kept:
        yield kept


def manifests(name: str) -> bool:
    """Whether an object is one."""
    return name.endswith("manifest.json")


def silent(*_: Any) -> Any:
    """Steps that a server does not answer."""
    raise StoreTimeoutError("redis://somewhere", "no answer in time")
    yield


async def test_an_incremental_goes_on_from_no_older_one_than_the_newest(
    spell: Spell, kept: BackupStore, place: Unread
) -> None:
    """The log may reach back to the newest alone, so another would be refused, or be too much."""
    await spell.state.set("agent:a", "k", 1)
    first = await kept.create(keep_log=True)
    await spell.state.set("agent:a", "k", 2)
    newest = await kept.create(type="incremental", keep_log=True)
    place.unread = lambda name: newest.id in name
    with pytest.raises(TargetError, match="500 InternalError"):
        await kept.create(type="incremental")
    assert (await kept.create()).id > first.id, "a full one needs none"


async def test_a_schedule_waits_for_the_place_before_it_makes_a_full_one(
    spell: Spell, kept: BackupStore, place: Unread
) -> None:
    """The last attempt makes one all the same: there must be a backup."""
    await spell.state.set("agent:a", "k", 1)
    await kept.create(keep_log=True)
    served = kept.on_schedule(BackupSchedule("nightly", Every(timedelta(days=1))))
    now = datetime.now(UTC)
    place.unread = manifests
    with pytest.raises(TargetError, match="500 InternalError"):
        await served._create(now, last=False)
    assert (await served._create(now, last=True))[1] is BackupType.FULL
    place.unread = nothing
    assert (await served._create(now, last=False))[1] is BackupType.INCREMENTAL


async def test_a_filtered_backup_that_does_not_tell_what_it_holds_may_hold_it(
    spell: Spell, kept: BackupStore, place: Unread
) -> None:
    """The place's error is raised, and not that nothing covers the moment."""
    await spell.state.set("agent:a", "k", 1)
    await kept.create(scopes=["agent:a"])
    await kept.plan(scopes=["agent:a"])
    place.unread = lambda name: "/objects/" in name
    with pytest.raises(TargetError, match="500 InternalError"):
        await kept.plan(scopes=["agent:a"])


async def test_a_backup_that_is_there_is_no_failure_because_its_hold_is(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be let go is removed by the next one."""
    await spell.state.set("agent:a", "k", 1)
    hold = LogSteps.hold_shard

    def held(steps: LogSteps, shard: str, name: str, at: Any) -> Any:
        return silent() if name == KEPT_FOR_NEXT else hold(steps, shard, name, at)

    with monkeypatch.context() as patch:
        patch.setattr(LogSteps, "release", silent)
        patch.setattr(LogSteps, "hold_shard", held)
        made = await kept.create(keep_log=True)
    assert [one.id for one in await kept.list()] == [made.id]
    assert [*(await spell.log.stat()).holds] == [f"backup:{made.id}"]
    await kept.create()
    assert not (await spell.log.stat()).holds


async def test_the_first_error_is_told_and_not_that_of_clearing_up(
    spell: Spell, kept: BackupStore, place: Unread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a backup and of a restore alike."""
    await spell.state.set("agent:a", "k", 1)
    made = await kept.create()

    def full(*_: Any, **__: Any) -> bool:
        raise TargetError(place.label, "x", "put", "507 full")

    with monkeypatch.context() as patch:
        patch.setattr(LogSteps, "release", silent)
        patch.setattr(place, "put", full)
        with pytest.raises(TargetError, match="507 full"):
            await kept.create()
    place.unread = lambda name: "/objects/" in name
    monkeypatch.setattr("llmspell_dist.backup.recovering.abandon", silent)
    with pytest.raises(TargetError, match="500 InternalError"):
        await kept.restore(made.id)


async def test_a_restore_that_is_done_is_no_failure_because_something_was_left(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells its way back, which leads to the last commit before it."""
    await spell.state.set("agent:a", "k", 1)
    made = await kept.create()
    await spell.state.set("agent:a", "k", 2)
    calls = []

    def left(staging: Any) -> Any:
        calls.append(staging.id)
        return silent()

    monkeypatch.setattr("llmspell_dist.backup.recovering.abandon", left)
    report = await kept.restore(made.id)
    assert calls == [report.id]
    assert await spell.state.get("agent:a", "k") == 1
    monkeypatch.setattr("llmspell_dist.backup.recovering.abandon", abandon_staged)
    await kept.restore(report.rollback)
    assert await spell.state.get("agent:a", "k") == 2


async def test_a_drill_that_cannot_look_up_the_past_finds_no_difference(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no result at all: a good backup must not look damaged for good."""
    await spell.state.set("agent:a", "k", 1)
    await kept.create()
    await spell.state.set("agent:a", "k", 2)
    at = (await kept.list())[0].id
    with monkeypatch.context() as patch:
        patch.setattr(History, "get_at", silent)
        with pytest.raises(StoreTimeoutError):
            await kept.drill(at)
    assert not await kept.drills()
    assert (await kept.drill(at)).ok


async def test_verify_finds_a_manifest_that_it_could_not_read_once(
    spell: Spell, kept: BackupStore, place: Unread
) -> None:
    """And does not say of those that need it that it is missing."""
    await spell.state.set("agent:a", "k", 1)
    base = await kept.create()
    await spell.state.set("agent:a", "k", 2)
    await kept.create(type="incremental")
    place.unread = lambda name: base.id in name
    (finding,) = (await kept.verify(level="structure")).findings
    assert (finding.backup_id, "500 InternalError" in finding.reason) == (base.id, True)
