"""A backup and the archive lead to any moment since, also when the server's log is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fix_archive import Archive
from fix_ledger import Ledger, differing, everything, write
from fix_state import Store, until

from llmspell_dist import Revision, Spell, StateClass, connect
from llmspell_dist.backup import making
from llmspell_dist.backup.archive import Gap
from llmspell_dist.backup.errors import PointNotCoveredError, TargetError
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.security.keyring import FileKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]
ALICE = "agent:alice"


@pytest.fixture
async def kept(spell: Spell, tmp_path: Path) -> AsyncIterator[BackupStore]:
    """Encrypted backups in a folder."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    async with spell.backups.to(f"file://{tmp_path}/backups", keys=keys) as kept:
        yield kept


@pytest.fixture
def archive(kept: BackupStore) -> Archive:
    """The archive in the same place."""
    archive = Archive(kept._repository)
    archive.kept = kept
    return archive


Restored = Callable[..., Any]


@pytest.fixture
def restored(kept: BackupStore, url: str, namespace: str) -> Restored:
    """A function that gives the report, and what another namespace holds after a restore."""
    other = f"{namespace}-other"

    async def restore(at: Any, **options: Any) -> Any:
        report = await kept.restore(at, namespace=other, **options)
        async with connect(url, namespace=other) as spell:
            return report, await everything(spell)

    return restore


def trim(store: Store) -> None:
    """Leave one entry of the log."""
    store.raw("XTRIM", store.space.log("0"), "MAXLEN", "=", 1)


@pytest.mark.parametrize("seed", range(2))
async def test_any_moment_since_a_backup_comes_back(
    spell: Spell,
    archive: Archive,
    restored: Restored,
    store: Store,
    seed: int,
) -> None:
    """Every kind of value, deletions, several scopes in one commit; the log was trimmed away."""
    ledger, rng, stop = Ledger(), random.Random(seed), asyncio.Event()
    shipper = archive.shipper(spell, interval_s=0.01, segment_bytes=2048)
    shipping = asyncio.create_task(shipper.run(end := asyncio.Event()))
    writers = [
        asyncio.create_task(write(spell, ledger, random.Random(rng.random()), stop))
        for _ in range(3)
    ]
    await until(lambda: len(ledger.done) > 50, within_s=20)
    info = await archive.kept.create()
    assert info.revision is not None
    begun = len(ledger.done)
    await until(lambda: len(ledger.done) > begun + 300, within_s=20)
    stop.set()
    await asyncio.gather(*writers)
    end.set()
    await shipping
    trim(store)
    later = [one[0] for one in ledger.done if one[0] > info.revision]
    for moment in [*rng.sample(later, 6), max(later)]:
        report, found = await restored(moment)
        assert report.revision == moment
        assert any(source.startswith("archive") for source in report.sources)
        right = ledger.at(moment)
        for one in report.inexact:
            assert ":bulk:" in one.key
            found.get(one.scope, {}).pop(one.key, None)
            right.get(one.scope, {}).pop(one.key, None)
        assert differing(found, right) == {}


async def test_both_pasts_of_a_server_that_lost_writes_come_back(
    spell: Spell,
    kept: BackupStore,
    archive: Archive,
    restored: Restored,
    store: Store,
) -> None:
    """The one that goes on by default, the one that was lost by its timeline."""
    state, shipper = spell.state, archive.shipper(spell)
    await state.set(ALICE, "k", "base")
    await state.set(ALICE, "bulk", "base", state_class=StateClass.BULK)
    await shipper.once()
    await kept.create()
    await state.set(ALICE, "k", "common")
    await shipper.once()
    raw = store.raw
    before = {key: raw("DUMP", key) for key in store.all_keys()}
    await state.set(ALICE, "k", "lost")
    await state.set(ALICE, "bulk", "lost", state_class=StateClass.BULK)
    lost = await state.set(ALICE, "only", "lost")
    await shipper.once()
    old = archive.timeline
    for key in store.all_keys():
        raw("DEL", key)
    for key, dumped in before.items():
        raw("RESTORE", key, 0, dumped)
    now = await state.set(ALICE, "after", "now")
    await shipper.once()
    assert archive.timeline != old
    last = await state.set(ALICE, "after", "later")
    await shipper.once()
    trim(store)
    _, found = await restored(now)
    assert found == {ALICE: {"k": "common", "bulk": "base", "after": "now"}}
    _, found = await restored(last)
    assert found == {ALICE: {"k": "common", "bulk": "base", "after": "later"}}
    _, found = await restored(lost, timeline=old)
    assert found == {ALICE: {"k": "lost", "bulk": "lost", "only": "lost"}}


async def test_a_moment_in_a_gap_is_refused(
    spell: Spell,
    kept: BackupStore,
    archive: Archive,
    restored: Restored,
    store: Store,
) -> None:
    """And so is one behind it, until there is a backup behind it."""
    state, shipper = spell.state, archive.shipper(spell)
    await state.set(ALICE, "k", 0)
    await shipper.once()
    await kept.create()
    moments: list[Revision] = [await state.set(ALICE, "k", number) for number in range(1, 20)]
    ctl, log = store.space.ctl("0"), store.space.log("0")
    store.raw("HDEL", ctl, "hold:archive")
    store.raw("XTRIM", log, "MAXLEN", "=", 5)
    await shipper.once()
    assert shipper.stats.base_needed
    trim(store)
    for moment in (moments[3], moments[-1]):
        with pytest.raises(PointNotCoveredError):
            await restored(moment)
    await state.set(ALICE, "k", 100)
    await kept.create()
    last = await state.set(ALICE, "k", 101)
    await shipper.once()
    _, found = await restored(last)
    assert found == {ALICE: {"k": 101}}


class Trying:
    """Makes backups, but only from a certain try on; None: never."""

    def __init__(self, kept: BackupStore, from_try: int | None) -> None:
        self._make = kept._maker.make
        self._from_try = from_try
        self.tries = 0

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.tries += 1
        if self._from_try is None or self.tries < self._from_try:
            raise TargetError("test", "x", "put", "it is away")
        return await self._make(*arguments, **options)


async def test_the_full_backup_after_a_gap_is_made_as_soon_as_it_can_be(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place fails a few times: until there is one, no moment behind the gap can be restored."""
    monkeypatch.setattr(making, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(kept._maker, "make", trying := Trying(kept, 3))
    await spell.state.set(ALICE, "k", 1)
    kept._maker.begin_anew(Gap("t", "0", None, Revision(1, 0), "a test"))
    await until(lambda: not kept._maker._tasks)
    assert trying.tries == 3
    (made,) = await kept.list()
    assert (made.manifest.reason, made.manifest.tags) == ("archive", {"gap": "a test"})


async def test_closing_ends_what_tries_to_make_a_full_backup(
    spell: Spell, kept: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, however long the next try is away; nothing is left behind."""
    monkeypatch.setattr(making, "_FIRST_WAIT_S", 3600)
    monkeypatch.setattr(kept._maker, "make", trying := Trying(kept, None))
    kept._maker.begin_anew(Gap("t", "0", None, Revision(1, 0), "a test"))
    await until(lambda: trying.tries == 1)
    assert kept._maker._tasks
    await kept.close()
    assert not kept._maker._tasks
    assert trying.tries == 1


async def test_a_moment_while_a_restore_went_on(
    spell: Spell,
    kept: BackupStore,
    archive: Archive,
    restored: Restored,
    store: Store,
) -> None:
    """What the restore brought is not there before its swap, and is from then on."""
    state, shipper = spell.state, archive.shipper(spell)
    await state.set(ALICE, "k", "kept")
    await state.append(ALICE, "l", 1, 2)
    await shipper.once()
    base = await kept.create()
    before = await state.set(ALICE, "k", "newer")
    await state.append(ALICE, "l", 3)
    await kept.restore(base.id, rollback=False)
    after = await state.set(ALICE, "z", "after")
    await shipper.once()
    entries = store.log()
    swapped = next(
        entry.revision
        for entry in entries
        if any(change.op == 13 and change.scope == ALICE for change in entry.changes)
    )
    marker = next(entry.revision for entry in entries if entry.changes[0].scope == "")
    trim(store)
    for moment, expected in (
        (before, {"k": "newer", "l": [1, 2]}),
        (marker, {"k": "newer", "l": [1, 2, 3]}),
        (swapped, {"k": "kept", "l": [1, 2]}),
        (after, {"k": "kept", "l": [1, 2], "z": "after"}),
    ):
        _, found = await restored(moment)
        assert found.get(ALICE) == expected, moment
