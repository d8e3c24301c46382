"""A backup is the state as of one moment, and a restore brings exactly that moment back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from fix_backup_store import AwayKeys
from fix_ledger import Ledger, differing, everything, write
from fix_state import until

from llmspell_dist import ConflictError, Spell, StateClass, connect
from llmspell_dist.backup import creating, scanning, segments
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupKeyError,
    BackupKeyUnavailableError,
    BackupNotFoundError,
    BaseMissingError,
    PointNotCoveredError,
    RestoreRefusedError,
)
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError, StaleFencingTokenError
from llmspell_dist.security.keyring import EnvironmentKeys, FileKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]


@pytest.fixture
async def kept(spell: Spell, tmp_path: Path) -> AsyncIterator[BackupStore]:
    """Encrypted backups in a folder."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    async with spell.backups.to(f"file://{tmp_path}/backups", keys=keys) as kept:
        yield kept


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 10))]
)
async def test_a_backup_is_of_one_moment_while_writers_go_on(  # noqa: PLR0917 - fixtures
    spell: Spell,
    kept: BackupStore,
    url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Every kind of value, deletions, several scopes in one commit: as of the backup's revision."""
    # So that a scan takes many turns, and catches scopes in the middle of changes.
    monkeypatch.setattr(scanning, "PAGE_BYTES", 400)
    monkeypatch.setattr(scanning, "WHOLE_BYTES", 300)
    monkeypatch.setattr(segments, "PAGE_BYTES", 8000)
    ledger, rng, stop = Ledger(), random.Random(seed), asyncio.Event()
    writers = [
        asyncio.create_task(write(spell, ledger, random.Random(rng.random()), stop))
        for _ in range(3)
    ]
    await ledger.reached(150)
    full = await kept.create()
    following = await kept.create(type="incremental")
    differential = await kept.create(type="differential")
    stop.set()
    await asyncio.gather(*writers)
    assert full.stats.entries > 10
    assert full.revision is not None
    for info in (full, following, differential):
        other = f"{namespace}-{info.type}"
        report = await kept.restore(info.id, namespace=other)
        assert report.revision == info.revision
        assert {(one.scope, one.key) for one in report.inexact} <= {
            (one.scope, one.key) for one in await kept.inexact(info.id)
        } | {(one.scope, one.key) for one in await kept.inexact(full.id)}
        async with connect(url, namespace=other) as restored:
            wrong = differing(await everything(restored), ledger.at(info.revision))
        # A value of the class Bulk that is changed all the time may be missed: that is said.
        assert wrong.keys() <= {(one.scope, one.key) for one in report.inexact}
        assert all(":bulk:" in key for _, key in wrong)
    # Any commit in between, from the backups and from the log that the server still has.
    later = [one[0] for one in ledger.done if one[0] > full.revision]
    for moment in rng.sample(later, 3):
        report = await kept.restore(moment, namespace=f"{namespace}-moment")
        bulk = {(one.scope, one.key) for one in report.inexact}
        async with connect(url, namespace=f"{namespace}-moment") as restored:
            found, right = await everything(restored), ledger.at(moment)
        for scope, key in bulk:
            assert ":bulk:" in key
            found.get(scope, {}).pop(key, None)
            right.get(scope, {}).pop(key, None)
        assert differing(found, right) == {}


async def test_clears_moves_copies_and_expiries_come_out_right(
    spell: Spell, kept: BackupStore, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to whole scopes between the scan of a scope and the backup's moment."""
    state = spell.state
    for scope in ("agent:cleared", "agent:moved", "agent:copied", "agent:again", "agent:gone"):
        await state.set(scope, "v", scope)
        await state.append(scope, "l", 1, 2)
        await state.merge(scope, "m", {"a": 1})
        await state.set(scope, "large", "y" * 600_000)
    await state.set("agent:gone", "short", 1, ttl=timedelta(milliseconds=1))
    real = scanning.Scanner.run

    async def run(self: scanning.Scanner) -> AsyncIterator[None]:
        async for turn in real(self):
            yield turn
        await state.clear("agent:cleared")
        await state.move_scope("agent:moved", "agent:new")
        await state.copy_scope("agent:copied", "agent:copy")
        await state.clear("agent:again")
        await state.set("agent:again", "v", 2)
        await state.append("agent:again", "l", 9)
        await state.append("agent:copied", "l", 3)
        await state.expire("agent:copied", "v", timedelta(hours=1))

    monkeypatch.setattr(scanning.Scanner, "run", run)
    info = await kept.create()
    monkeypatch.undo()
    right = await everything(spell)
    assert not await kept.inexact(info.id)
    await kept.restore(info.id, namespace=f"{namespace}-there")
    async with connect(url, namespace=f"{namespace}-there") as there:
        assert await everything(there) == right
        record = await there.state.get_record("agent:copied", "v")
        assert record is not None
        assert record.expires is not None


async def test_a_scope_that_was_restored_during_the_backup_is_in_it_as_restored(
    spell: Spell, kept: BackupStore, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log does not hold what a restore brought; the backup does."""
    await spell.state.set("agent:a", "v", 1)
    await spell.state.append("agent:a", "l", 1, 2)
    first = await kept.create()
    await spell.state.set("agent:a", "v", 2)
    real = scanning.Scanner.run

    async def run(self: scanning.Scanner) -> AsyncIterator[None]:
        async for turn in real(self):
            yield turn
        monkeypatch.undo()
        await kept.restore(first.id, rollback=False)

    monkeypatch.setattr(scanning.Scanner, "run", run)
    info = await kept.create()
    await spell.state.set("agent:a", "v", 3)
    incremental = await kept.create(type="incremental")
    for one, value in ((info, 1), (incremental, 3)):
        await kept.restore(one.id, namespace=f"{namespace}-{value}")
        async with connect(url, namespace=f"{namespace}-{value}") as there:
            assert await there.state.get_all("agent:a") == {"v": value, "l": [1, 2]}


async def test_values_that_the_log_does_not_hold_are_read_again(
    spell: Spell, kept: BackupStore, url: str, namespace: str
) -> None:
    """Bulk, Ephemeral, large, converted: in an incremental backup too."""
    state = spell.state
    await state.set("agent:a", "plain", [1, 2])
    base = await kept.create()
    await state.set("agent:a", "bulk", "b" * 1000, state_class=StateClass.BULK)
    await state.set("agent:a", "cache", "e" * 1000, state_class=StateClass.EPHEMERAL)
    await state.set("agent:a", "large", "l" * 700_000)
    await state.append("agent:a", "plain", 3)
    await state.copy_scope("agent:a", "agent:b")
    info = await kept.create(type="incremental")
    assert info.parent == base.id
    assert not await kept.inexact(info.id)
    right = await everything(spell)
    report = await kept.restore("latest", namespace=f"{namespace}-there")
    assert not report.inexact
    async with connect(url, namespace=f"{namespace}-there") as there:
        assert await everything(there) == right


# ---------------------------------------------------------------- restoring in place


async def test_a_restore_is_that_moment_and_has_a_way_back(spell: Spell, kept: BackupStore) -> None:
    """Later keys and scopes go; what was replaced can be had back, up to the commit before."""
    state = spell.state
    old = await state.set("agent:a", "v", 1)
    await state.set("agent:a", "deleted", 1)
    info = await kept.create()
    await state.set("agent:a", "v", 2)
    await state.delete("agent:a", "deleted")
    await state.set("agent:a", "later", 1)
    await state.set("agent:later", "v", 1)
    before = await everything(spell)
    report = await kept.restore(info.id)
    assert await everything(spell) == {"agent:a": {"deleted": 1, "v": 1}}
    assert report.emptied == ("agent:later",)
    assert report.scopes == 1
    with pytest.raises(ConflictError):
        await state.compare_and_set("agent:a", "v", 9, expected=old)
    assert report.rollback is not None
    await kept.restore(report.rollback)
    assert await everything(spell) == before


async def test_only_what_was_asked_for_is_restored(spell: Spell, kept: BackupStore) -> None:
    """One scope, a glob, one key, into another scope; everything else stays."""
    state = spell.state
    for scope in ("agent:a", "agent:b", "session:s"):
        await state.set(scope, "v", 1)
        await state.append(scope, "l", 1)
    info = await kept.create()
    for scope in ("agent:a", "agent:b", "session:s"):
        await state.set(scope, "v", 2)
        await state.append(scope, "l", 2)
    await kept.restore(info.id, scopes="agent:a")
    assert await state.get_all("agent:a") == {"v": 1, "l": [1]}
    assert await state.get_all("agent:b") == {"v": 2, "l": [1, 2]}
    await kept.restore(info.id, scopes="agent:b", key="l")
    assert await state.get_all("agent:b") == {"v": 2, "l": [1]}
    await kept.restore(info.id, scopes="session:s", into="session:copy")
    assert await state.get_all("session:copy") == {"v": 1, "l": [1]}
    assert await state.get_all("session:s") == {"v": 2, "l": [1, 2]}
    await kept.restore(info.id, scopes=["agent:*"])
    assert await state.get_all("agent:b") == {"v": 1, "l": [1]}
    assert await state.get_all("session:s") == {"v": 2, "l": [1, 2]}


async def test_a_backup_of_some_scopes_touches_no_others(spell: Spell, kept: BackupStore) -> None:
    """Neither when it is made nor when it is restored."""
    state = spell.state
    await state.set("agent:a", "v", 1)
    await state.set("session:s", "v", 1)
    info = await kept.create(scopes="agent:*")
    await state.set("agent:a", "v", 2)
    await state.set("session:s", "v", 2)
    await kept.restore(info.id)
    assert await everything(spell) == {"agent:a": {"v": 1}, "session:s": {"v": 2}}


async def test_scopes_that_are_left_out_are_touched_by_nothing(
    spell: Spell, kept: BackupStore
) -> None:
    """Neither when it is made, nor when it is restored, nor by the way back."""
    state, all_of_it = spell.state, await kept.create()
    names = ("agent:a", "tool:t", "tool:u")

    async def write(value: int) -> None:
        for name in names:
            await state.set(name, "v", value)

    await write(1)
    info = await kept.create(scopes="!tool:*")
    assert (info.stats.scopes, info.stats.records) == (1, 1)
    await write(2)
    done = await kept.restore(info.id)
    assert await everything(spell) == {name: {"v": 1 if name == "agent:a" else 2} for name in names}
    with pytest.raises(RestoreRefusedError, match="holds only"):
        await kept.restore(info.id, scopes="tool:t")
    with pytest.raises(RestoreRefusedError, match="holds only"):
        await kept.restore(info.id, scopes=["agent:*"])
    await write(3)
    await kept.rollback(done)
    assert await everything(spell) == {name: {"v": 2 if name == "agent:a" else 3} for name in names}
    await kept.restore(all_of_it.id, scopes=["tool:*", "!tool:u"])
    assert await everything(spell) == {"agent:a": {"v": 2}, "tool:u": {"v": 3}}


async def test_a_leased_scope_is_refused_unless_forced(spell: Spell, kept: BackupStore) -> None:
    """Forced, its holder writes no more."""
    state = spell.state
    await state.set("agent:a", "v", 1)
    info = await kept.create()
    lease = await spell.leases.acquire("agent:a", owner="worker", on_lost="event")
    await lease.state.set("agent:a", "v", 2)
    with pytest.raises(RestoreRefusedError, match="worker"):
        await kept.restore(info.id)
    assert await state.get("agent:a", "v") == 2
    await kept.restore(info.id, force=True)
    with pytest.raises(StaleFencingTokenError):
        await lease.state.set("agent:a", "v", 3)
    with pytest.raises(LeaseNotHeldError):
        await lease.release()
    assert await state.get("agent:a", "v") == 1


async def test_ttls_are_absolute_or_remaining(spell: Spell, kept: BackupStore) -> None:
    """What has expired since does not come back, unless it is to have the rest of its time."""
    state = spell.state
    await state.set("agent:a", "long", 1, ttl=timedelta(hours=1))
    await state.set("agent:a", "short", 1, ttl=timedelta(milliseconds=300))
    info = await kept.create()
    record = await state.get_record("agent:a", "long")
    assert record is not None

    async def gone() -> bool:
        return not await state.exists("agent:a", "short")

    await until(gone)
    await kept.restore(info.id, rollback=False)
    again = await state.get_record("agent:a", "long")
    assert again is not None
    assert again.expires == record.expires
    assert await state.get("agent:a", "short") is None
    await kept.restore(info.id, ttl="remaining", rollback=False)
    assert await state.get("agent:a", "short") == 1


# ---------------------------------------------------------------- what is refused


async def test_a_moment_that_nothing_covers_is_refused(spell: Spell, kept: BackupStore) -> None:
    """With what is covered; nothing changes."""
    first = await spell.state.set("agent:a", "v", 1)
    with pytest.raises(PointNotCoveredError, match="no full backup"):
        await kept.restore()
    await spell.state.set("agent:a", "v", 2)
    info = await kept.create()
    with pytest.raises(PointNotCoveredError, match="oldest full backup"):
        await kept.restore(first)
    with pytest.raises(BackupNotFoundError):
        await kept.restore("20200101T000000Z-00000000")
    with pytest.raises(InvalidArgumentError, match="offset"):
        await kept.restore("2026-11-26T14:05:00")
    with pytest.raises(InvalidArgumentError, match="exactly one scope"):
        await kept.restore(info.id, key="v")
    assert await spell.state.get("agent:a", "v") == 2


async def test_backups_are_listed_in_the_order_of_their_chains(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the clock of who made the second was behind."""
    await spell.state.set("agent:a", "v", 1)
    full = await kept.create()
    with monkeypatch.context() as behind:
        behind.setattr(creating, "datetime", _HourBehind)
        child = await kept.create(type="incremental")
    assert child.created < full.created
    assert [one.id for one in await kept.list()] == [full.id, child.id]


class _HourBehind(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) - timedelta(hours=1)


async def test_without_its_key_an_encrypted_backup_cannot_be_read(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """It can be listed; a restore says which key is missing, and changes nothing."""
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:a", "v", 2)
    async with spell.backups.to(f"file://{tmp_path}/backups") as keyless:
        assert [one.id for one in await keyless.list()] == [info.id]
        with pytest.raises(BackupKeyError):
            await keyless.restore(info.id)
    assert await spell.state.get("agent:a", "v") == 2


async def test_a_key_provider_that_is_away_is_not_taken_for_a_missing_parent(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """An incremental backup says so and can be made later; a full one needs no earlier one."""
    older, place = EnvironmentKeys("K", environ={"K": "ab" * 32}), f"file://{tmp_path}/backups"
    async with spell.backups.to(place, keys=older) as earlier:
        await earlier.create(keep_log=True)
    await spell.state.set("agent:a", "v", 1)
    full = await kept.create(keep_log=True)
    await spell.state.set("agent:a", "v", 2)
    keys = AwayKeys(FileKeys(tmp_path / "keys"), wraps=True)
    async with spell.backups.to(place, keys=keys, older_keys=[older]) as later:
        with pytest.raises(BackupKeyUnavailableError):
            await later.create(type="incremental")
        keys.away = False
        assert (await later.create(type="incremental")).parent == full.id
    keys.away = True
    async with spell.backups.to(place, keys=keys) as later:
        assert (await later.create()).parent is None


async def test_a_damaged_object_is_refused_and_named(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """Whichever it is; nothing changes."""
    await spell.state.set("agent:a", "v", 1)
    info = await kept.create()
    await spell.state.set("agent:a", "v", 2)
    for ref in info.manifest.objects:
        (path,) = (tmp_path / "backups").rglob(ref.digest)
        whole = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(whole[:-1] + bytes((whole[-1] ^ 1,)))
        if ref.kind == "records":
            with pytest.raises(BackupDamagedError, match=ref.digest):
                await kept.restore(info.id)
        path.unlink()
        if ref.kind == "records":
            with pytest.raises(BackupDamagedError, match=ref.digest):
                await kept.restore(info.id)
        path.write_bytes(whole)
    assert await spell.state.get("agent:a", "v") == 2


async def test_an_incremental_backup_needs_the_log_since_its_parent(
    spell: Spell, kept: BackupStore
) -> None:
    """Trimmed away, that is said: take a full one."""
    with pytest.raises(BaseMissingError):
        await kept.create(type="incremental")
    await spell.state.set("agent:a", "v", 0)
    await kept.create()
    for turn in range(5):
        await spell.state.set("agent:a", "v", turn)
    core = spell._driver.core
    from llmspell_dist.redis.commands import Command
    from llmspell_dist.redis.resp import pack

    request = pack(b"XTRIM", core.keyspace.log("0"), b"MAXLEN", 1)
    await spell._driver.execute(Command(request, "XTRIM"))
    with pytest.raises(BaseMissingError, match="full backup"):
        await kept.create(type="incremental")


async def test_what_has_not_changed_is_not_stored_twice(spell: Spell, kept: BackupStore) -> None:
    """A second full backup uses the objects of the first."""
    await spell.state.set_many(
        "agent:a", {f"k{n}": random.Random(n).randbytes(500) for n in range(1000)}
    )
    first = await kept.create()
    second = await kept.create()
    assert first.stats.reused_bytes == 0
    assert second.stats.reused_bytes > 0.9 * first.stats.stored_bytes
    assert second.stats.stored_bytes < 0.2 * first.stats.stored_bytes
    anew = await kept.create(reuse=False)
    assert anew.stats.reused_bytes == 0
    assert {ref.key for ref in anew.manifest.objects}.isdisjoint(
        ref.key for ref in first.manifest.objects
    )


async def test_no_hold_stays_behind(spell: Spell, kept: BackupStore, tmp_path: Path) -> None:
    """After a backup, after one that failed, and of one that was killed once the next runs."""
    await spell.state.set("agent:a", "v", 1)
    await kept.create()
    assert not (await spell.log.stat()).holds
    await spell.log.hold("backup:20200101T000000Z-00000000")
    await kept.create()
    assert not (await spell.log.stat()).holds


async def test_events_and_the_history_of_hooks_come_back(spell: Spell, kept: BackupStore) -> None:
    """With their queues, as they were when the backup was made; what came later goes."""
    await spell.state.set("agent:a", "v", 1)
    async with spell.events.subscribe("order.*", durable="orders"):
        pass
    await spell.events.publish("order.new", {"n": 1})
    info = await kept.create(include=["events", "hooks", "correlations"])
    async with spell.events.subscribe("order.*", durable="later"):
        pass
    await spell.events.publish("order.new", {"n": 2})
    await kept.restore(info.id, include=["events", "hooks", "correlations"])
    assert [one.name for one in await spell.events.subscriptions()] == ["orders"]
    async with spell.events.subscribe("order.*", durable="orders") as again:
        async for event in again:
            assert event.data == {"n": 1}
            break
    other = await kept.create()
    with pytest.raises(RestoreRefusedError, match="without events"):
        await kept.restore(other.id, include=["events"])


async def test_a_backup_of_some_scopes_empties_no_others(spell: Spell, kept: BackupStore) -> None:
    """Whoever asks it for a scope that it does not hold is refused, and nothing changes."""
    for scope in ("agent:a", "agent:b"):
        await spell.state.set(scope, "v", 1)
    info = await kept.create(scopes=["agent:a"])
    for asked in ("agent:b", "agent:*", "agent:?"):
        with pytest.raises(RestoreRefusedError):
            await kept.restore(info.id, scopes=[asked])
    assert await spell.state.get("agent:b", "v") == 1
    await kept.restore(info.id, scopes=["agent:a"])


async def test_an_encrypted_backup_uses_nothing_of_one_that_is_not(
    spell: Spell, tmp_path: Path
) -> None:
    """Nor one of another key: what it names is encrypted by keys of its own provider."""
    await spell.state.set("agent:a", "v", "a secret")
    place = f"file://{tmp_path}/mixed"
    first, second = FileKeys(tmp_path / "first"), FileKeys(tmp_path / "second")
    first.generate()
    second.generate()
    known: set[str] = set()
    for keys in (None, first, second, None):
        async with spell.backups.to(place, keys=keys, plaintext=keys is None) as backups:
            manifest = (await backups.create()).manifest
            assert {bool(ref.key) for ref in manifest.objects} == {keys is not None}
            if keys is not None:
                assert known.isdisjoint(ref.key for ref in manifest.objects)
                known |= {ref.key for ref in manifest.objects}


async def test_a_full_backup_can_be_made_after_one_that_is_damaged(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """It stores what it needs itself."""
    await spell.state.set("agent:a", "v", 1)
    damaged = (await kept.create()).manifest
    (index,) = damaged.objects_of("index")
    (path,) = (tmp_path / "backups").rglob(index.digest)
    path.unlink()
    info = await kept.create()
    assert (await kept.verify(info.id, level="full")).ok


async def test_a_key_that_looks_like_a_glob_is_the_one_that_is_restored(
    spell: Spell, kept: BackupStore
) -> None:
    """No other key comes with it, and it does not go."""
    keys = {"[x]": 1, "a*": 1, "ab": 1}
    await spell.state.set_many("agent:a", keys)
    info = await kept.create()
    await spell.state.set_many("agent:a", dict.fromkeys(keys, 2))
    for key in ("[x]", "a*"):
        assert (await kept.restore(info.id, scopes="agent:a", key=key)).records == 1
    assert await spell.state.get_all("agent:a") == {"[x]": 1, "a*": 1, "ab": 2}


async def test_a_report_counts_what_was_put_back(spell: Spell, kept: BackupStore) -> None:
    """Not what was read: the log adds keys to those of the backup, and takes some away."""
    await spell.state.set_many("agent:a", {"stays": 1, "goes": 2})
    await kept.create()
    await spell.state.set_many("agent:a", {"comes": 3, "too": 4})
    await spell.state.delete("agent:a", "goes")
    good = await spell.state.set("agent:b", "n", 1)
    await spell.state.clear("agent:a")
    report = await kept.restore(good)
    assert (report.scopes, report.records) == (2, 4)
    await spell.state.clear("agent:a")
    assert (await kept.restore(good, scopes="agent:a", key="comes")).records == 1
    assert (await kept.restore(good, scopes="agent:a", key="goes")).records == 0
