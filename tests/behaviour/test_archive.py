"""The archive of the change log: what is shipped, and what can be read back from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_archive import Archive, archive_of, logged
from fix_backup_store import AwayKeys
from fix_leases import hasten
from fix_restored import Restoring
from fix_s3 import Place, folder_place
from fix_state import Raw, Store, until

from llmspell_dist import InvalidArgumentError, Revision, Spell, StateClass, StateManager
from llmspell_dist.backup.archive import (
    Branch,
    Gap,
    SegmentSource,
    Shipper,
    Timeline,
    reader,
    source,
)
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupFormatError,
    BackupInProgressError,
    BackupKeyError,
    BackupKeyUnavailableError,
    PointNotCoveredError,
    TargetError,
    TargetPermissionError,
)
from llmspell_dist.backup.items import Elements, Logged, Record, unpack_items
from llmspell_dist.backup.targets.base import ObjectInfo, Target
from llmspell_dist.errors import (
    LeaseLostError,
    SpellError,
    StoreAuthenticationError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.revision import BEGINNING
from llmspell_dist.security.keyring import FileKeys

pytestmark = pytest.mark.integration
ALICE, BOB = "agent:alice", "agent:bob"
Archives = Callable[..., Archive]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder: the targets' own tests hold them equal."""
    return folder_place(tmp_path / "backups")


async def _write(state: StateManager, count: int, first: int = 0) -> Revision:
    revision = BEGINNING
    for number in range(first, first + count):
        revision = await state.set(ALICE, f"k{number % 7}", number)
    return revision


def _ms(raw: Raw) -> int:
    """Return the server's time."""
    seconds, micros = raw("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


# --- what is shipped ------------------------------------------------------------------------------


async def test_everything_of_the_log_is_stored(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """In order, byte for byte, over several segments; an idle log stores nothing more."""
    shipper = archive.shipper(spell, segment_bytes=4096)
    await shipper.once()
    assert shipper.stats.segments == 0
    first = await _write(spell.state, 1)
    await _write(spell.state, 300)
    stats = await shipper.once()
    assert stats.segments > 1
    assert (stats.entries, stats.pending, stats.errors) == (301, 0, 0)
    await spell.state.append(BOB, "l", 1, 2)
    await spell.state.delete(ALICE, "k1")
    await shipper.once()
    segments = shipper.stats.segments
    await shipper.once()
    assert shipper.stats.segments == segments
    entries = logged(raw, store)
    assert archive.entries(None, entries[-1][0]) == entries
    assert archive.entries(first, entries[-1][0]) == entries[1:]
    assert archive.entries(first, entries[-2][0]) == entries[1:-1]
    assert archive.ranges() == [(BEGINNING, entries[-1][0])]
    assert archive.problems() == []
    assert shipper.stats.positions == {"0": entries[-1][0]}


async def test_the_log_is_kept_until_it_is_stored(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """The hold stands at the last entry that is stored."""
    shipper = archive.shipper(spell)
    await _write(spell.state, 3)
    await shipper.once()
    raw("HSET", store.space.ctl("0"), "retention", "1 0 1000")
    shipped = shipper.stats.positions["0"]
    last = await _write(spell.state, 5)
    await spell.log.trim()
    stat = await spell.log.stat()
    assert stat.holds["archive"] == stat.floor == shipped
    assert stat.entries == 6
    await shipper.once()
    await spell.log.trim()
    stat = await spell.log.stat()
    assert (stat.entries, stat.holds["archive"]) == (1, last)
    await shipper.forget()
    assert (await spell.log.stat()).holds == {}


async def test_another_process_goes_on_where_one_stopped(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """One timeline, and each segment names the one before it."""
    await archive.shipper(spell).once()
    for number in range(3):
        await _write(spell.state, 4, number * 4)
        await archive.shipper(spell).once()
    entries = logged(raw, store)
    assert len(archive.reader.timelines()) == 1
    assert archive.entries(None, entries[-1][0]) == entries
    names = archive.reader.segments(archive.timeline, "0")
    headers = [archive.reader.header(name) for name in names]
    assert [one.previous for one in headers] == ["", names[0].digest, names[1].digest]
    assert [one.entries for one in headers] == [4, 4, 4]


async def test_it_begins_with_what_the_log_has(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """What was trimmed before is not said to be covered, also if nothing is left."""
    await _write(spell.state, 3)
    raw("XTRIM", store.space.log("0"), "MAXLEN", "=", 0)
    shipper = archive.shipper(spell)
    await shipper.once()
    (before,) = [shipper.stats.positions["0"]]
    assert before > BEGINNING
    last = await _write(spell.state, 3)
    await shipper.once()
    assert archive.ranges() == [(before, last)]
    assert shipper.stats.gaps == 0
    assert len(archive.entries(before, last)) == 3
    with pytest.raises(PointNotCoveredError, match="not all from 0-0"):
        archive.entries(None, last)


async def test_values_that_the_log_lacks_are_attached(
    spell: Spell, archive: Archive, store: Store
) -> None:
    """Bulk values, and lists that were adopted; not ephemeral ones."""
    state = spell.state
    await archive.shipper(spell).once()
    await state.set(ALICE, "bulk", "b" * 100, state_class=StateClass.BULK)
    await state.set(ALICE, "cache", "c" * 100, state_class=StateClass.EPHEMERAL)
    await state.set(ALICE, "plain", 1)
    await state.append(BOB, "l", *range(50))
    await state.copy_scope(BOB, "agent:copy")
    last = store.meta("agent:copy").revision
    assert last is not None
    await archive.shipper(spell).once()
    found = archive.attached(None, last)
    assert [(scope, key) for scope, key, _ in found] == [(ALICE, "bulk"), ("agent:copy", "l")]
    assert found[0][2] == store.field(ALICE, "bulk")
    elements = [one for one in archive.items(None, last) if isinstance(one, Elements)]
    assert sum(len(one.parts) for one in elements) == 50


async def test_a_value_that_is_gone_is_said_to_be(spell: Spell, archive: Archive) -> None:
    """It was written again before it could be read; the later one is attached."""
    state = spell.state
    shipper = archive.shipper(spell, segment_bytes=1024)
    await shipper.once()
    first = await state.set(ALICE, "bulk", 1, state_class=StateClass.BULK)
    await state.set(ALICE, "pad", "x" * 2000)
    for number in range(300):
        await state.set(ALICE, f"pad{number}", "x" * 500)
    last = await state.set(ALICE, "bulk", 2, state_class=StateClass.BULK)
    await shipper.once()
    ranges = archive.reader.segments(archive.timeline, "0")
    assert len(ranges) > 1
    assert (ALICE, "bulk", None) in archive.attached(None, ranges[0].last)
    assert first < ranges[0].last
    (*_, newest) = [one for one in archive.attached(None, last) if one[1] == "bulk"]
    assert newest[2] is not None
    assert shipper.stats.inexact == 1


async def test_much_that_is_attached_makes_parts(spell: Spell, archive: Archive) -> None:
    """Of objects with a bound; they are found by what names them."""
    state = spell.state
    await archive.shipper(spell).once()
    for _ in range(20):
        await state.append(ALICE, "l", *["x" * 30_000] * 20)
    await state.copy_scope(ALICE, BOB)
    last = (await state.stat(BOB)).revision
    assert last is not None
    await archive.shipper(spell, segment_bytes=1024).once()
    headers = [
        archive.reader.header(name) for name in archive.reader.segments(archive.timeline, "0")
    ]
    assert any(one.parts for one in headers)
    elements = [one for one in archive.items(None, last) if isinstance(one, Elements)]
    assert sum(len(one.parts) for one in elements) == 400
    assert archive.problems() == []


async def test_what_a_restore_put_back_is_attached_for_moments_after_it(
    spell: Spell, archive: Archive, restoring: Restoring
) -> None:
    """Not for one between its beginning and the swap, although its records are older."""
    state = spell.state
    await archive.shipper(spell).once()
    await state.set(ALICE, "k", 1)
    kept = restoring.keep(ALICE)
    await state.set(ALICE, "k", 2)
    marker = restoring.begin()
    between = await state.set(ALICE, "other", 3)
    swapped = restoring.swap(ALICE, kept)
    await archive.shipper(spell).once()
    assert [one[:2] for one in archive.attached(None, swapped)] == [(ALICE, "k")]
    assert archive.attached(None, between) == []
    assert archive.attached(None, marker) == []
    assert len(archive.entries(None, between)) == 4


async def test_an_entry_that_cannot_be_read_is_stored_as_it_is(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """One damaged entry must not stop the archive."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 2)
    raw("XADD", store.space.log("0"), "*", "c", b"\1damaged", "m", b"", "o", bytes(14))
    last = await _write(spell.state, 2)
    await shipper.once()
    entries = logged(raw, store)
    assert archive.entries(None, last) == entries
    assert len(entries) == 5


# --- encryption -----------------------------------------------------------------------------------


async def test_segments_are_encrypted(
    spell: Spell, archives: Archives, tmp_path: Path, place: Place
) -> None:
    """With one data key a day and timeline, also over restarts; not without the key."""
    (tmp_path / "keys").mkdir()
    provider = FileKeys(tmp_path / "keys")
    provider.generate()
    archive = archives(keys=provider)
    await archive.shipper(spell).once()
    last = BEGINNING
    for number in range(3):
        last = await spell.state.set(ALICE, "secret", f"very secret {number}")
        await archives(keys=provider).shipper(spell).once()
    assert len(archive.entries(None, last)) == 3
    target = place.open()
    stored = [target.get(info.name) for info in target.list("")]
    assert not any(b"very secret" in one for one in stored)
    keys = list(target.list(archive.repository.layout.keys))
    assert len(keys) == 1
    with pytest.raises(BackupKeyError):
        archives().entries(None, last)


async def test_who_begins_while_the_key_provider_is_away_opens_no_timeline(
    spell: Spell, archives: Archives, tmp_path: Path
) -> None:
    """It goes on when the provider is there again, and nothing is missing."""
    provider = FileKeys(tmp_path / "keys")
    provider.generate()
    first = archives(keys=provider)
    await first.shipper(spell).once()
    await _write(spell.state, 3)
    await first.shipper(spell).once()
    keys = AwayKeys(provider)
    shipper = archives(keys=keys).shipper(spell, interval_s=0.01)
    with pytest.raises(BackupKeyUnavailableError):
        await shipper.once()
    stop = asyncio.Event()
    running = asyncio.create_task(shipper.run(stop))
    await until(lambda: shipper.stats.errors > 0)
    last = await _write(spell.state, 3)
    keys.away = False
    await until(lambda: shipper.stats.positions.get("0") == last)
    stop.set()
    await running
    assert len(first.reader.timelines()) == 1
    assert len(first.entries(None, last)) == 6


async def test_s3_is_a_place_for_it(
    spell: Spell, s3_place: Place, tmp_path: Path, store: Store
) -> None:
    """Encrypted, over restarts."""
    (tmp_path / "keys").mkdir()
    provider = FileKeys(tmp_path / "keys")
    provider.generate()
    archive = archive_of(s3_place, store.space.namespace, keys=provider)
    await archive.shipper(spell).once()
    for number in range(3):
        await _write(spell.state, 20, number)
        await archive.shipper(spell, segment_bytes=1024).once()
    entries = logged(store.raw, store)
    assert archive.entries(None, entries[-1][0]) == entries
    assert archive.problems() == []
    archive.repository.target.close()


# --- running --------------------------------------------------------------------------------------


async def test_it_follows_and_ships_the_rest_when_it_is_stopped(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """Every interval, and at a clean stop without waiting for it."""
    stop = asyncio.Event()
    shipper = archive.shipper(spell, interval_s=0.01)
    await shipper.once()
    running = asyncio.create_task(shipper.run(stop))
    last = await _write(spell.state, 50)
    await until(lambda: shipper.stats.positions.get("0") == last)
    stop.set()
    await running
    slow = archive.shipper(spell, interval_s=3600)
    stop = asyncio.Event()
    running = asyncio.create_task(slow.run(stop))
    await until(lambda: slow.stats.positions.get("0") == last)
    last = await _write(spell.state, 5)
    stop.set()
    await running
    assert slow.stats.positions["0"] == last
    entries = logged(raw, store)
    assert archive.entries(None, last) == entries
    assert 0 <= slow.stats.segment_lag_s < 60
    assert slow.lag_s < 60


async def test_it_can_be_cancelled(spell: Spell, archive: Archive) -> None:
    """What was stored counts; the rest is kept for whoever comes next."""
    shipper = archive.shipper(spell, interval_s=0.01)
    await shipper.once()
    running = asyncio.create_task(shipper.run(asyncio.Event()))
    await _write(spell.state, 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    last = await _write(spell.state, 1)
    await archive.shipper(spell).once()
    assert len(archive.entries(None, last)) == 21


async def test_one_at_a_time_by_its_guard(spell: Spell, archive: Archive) -> None:
    """The guard is entered for as long as it ships."""
    seen: list[str] = []

    @asynccontextmanager
    async def guard() -> Any:
        seen.append("in")
        try:
            yield
        finally:
            seen.append("out")

    shipper = archive.shipper(spell, guard=guard)
    await shipper.once()
    await _write(spell.state, 1)
    await shipper.once()
    assert seen == ["in", "out"] * 2
    assert shipper.stats.segments == 1


@pytest.mark.parametrize("how", ["broken", "lost"])
async def test_a_turn_that_is_taken_away_is_waited_for_again(
    spell: Spell, archive: Archive, raw: Raw, store: Store, how: str
) -> None:
    """By an operator, or by a server that has lost its data: the shipper itself goes on."""
    turns, taken = "custom:turns", []

    def guard() -> Any:
        taken.append(1)
        return spell.leases.acquire(turns, name="archive")

    shipper = archive.shipper(spell, guard=guard, interval_s=0.01)
    stop = asyncio.Event()
    running = asyncio.create_task(shipper.run(stop))
    first = await _write(spell.state, 3)
    await until(lambda: shipper.stats.positions.get("0", BEGINNING) >= first)
    if how == "broken":
        await spell.leases.break_lease(turns, name="archive", reason="a test")
    else:
        raw("DEL", *store.all_keys())
    hasten(spell)  # it notices at its next renewal
    await until(lambda: len(taken) > 1 and shipper.stats.shipping)
    segments = shipper.stats.segments
    while shipper.stats.segments == segments:  # what it finds after a loss may be in its gap
        await _write(spell.state, 1)
    last = await _write(spell.state, 3)
    await until(lambda: shipper.stats.positions["0"] >= last)
    stop.set()
    await running
    assert not shipper.stats.shipping
    assert archive.ranges(shipper.stats.timeline)[-1][1] == last
    assert archive.problems() == []


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StoreTimeoutError("redis:1", "no answer in time"), True),
        (StoreUnavailableError("redis:1", "cut", may_have_happened=True), True),
        (LeaseLostError(ALICE, "archive", "the server lost it", 1), True),
        (StoreAuthenticationError("redis:1", "WRONGPASS"), False),
    ],
    ids=["timeout", "cut", "lost", "credentials"],
)
async def test_a_first_turn_is_waited_for_through_what_passes(
    spell: Spell, archive: Archive, error: SpellError, passes: bool
) -> None:
    """Who never had one goes on waiting, unless it was never going to be right."""
    failures = [error, error]

    @asynccontextmanager
    async def guard() -> Any:
        if failures:
            raise failures.pop()
        yield

    shipper = archive.shipper(spell, guard=guard, interval_s=0.01)
    last = await _write(spell.state, 1)
    stop = asyncio.Event()
    running = asyncio.create_task(shipper.run(stop))
    if not passes:
        with pytest.raises(type(error)):
            await running
        return
    await until(lambda: running.done() or shipper.stats.positions.get("0") == last)
    stop.set()
    await running
    assert shipper.stats.errors == 2


async def test_one_who_waits_for_its_turn_can_be_told_to_end(
    spell: Spell, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one goes on; who is told before it began ships what is left, if it may."""
    last_wait_s = "llmspell_dist.backup.archive.shipper._LAST_WAIT_S"
    monkeypatch.setattr(last_wait_s, 0.1)

    def guard() -> Any:
        return spell.leases.acquire("custom:turns", name="archive")

    first, second = (archive.shipper(spell, guard=guard, interval_s=0.01) for _ in range(2))
    stop, told = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(first.run(stop))
    await until(lambda: first.stats.shipping)
    told.set()
    await asyncio.create_task(second.run(told))
    assert not second.stats.shipping
    last = await _write(spell.state, 1)
    await until(lambda: first.stats.positions.get("0") == last)
    stop.set()
    await running
    monkeypatch.setattr(last_wait_s, 30.0)
    last = await _write(spell.state, 1)
    await asyncio.create_task(second.run(told))
    assert second.stats.positions == {"0": last}


async def test_of_two_who_ship_one_is_refused(
    spell: Spell, archive: Archive, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a guard: what both store is the same, and nothing is lost."""
    one, two = archive.shipper(spell), archive.shipper(spell)
    await one.once()
    await two.once()
    last = await _write(spell.state, 4)
    unchanged = one._where.unchanged

    async def in_between(*arguments: Any) -> bool:
        await two.once()
        return await unchanged(*arguments)

    monkeypatch.setattr(one._where, "unchanged", in_between)
    with pytest.raises(BackupInProgressError):
        await one.once()
    monkeypatch.undo()
    await _write(spell.state, 2)
    await one.once()
    entries = logged(raw, store)
    assert archive.entries(None, entries[-1][0]) == entries
    assert last < entries[-1][0]
    assert archive.problems() == []


def test_bad_settings_are_refused(archive: Archive) -> None:
    """Before anything is done."""
    for options in ({"interval_s": 0}, {"segment_bytes": 10}):
        with pytest.raises(InvalidArgumentError):
            Shipper(None, archive.repository, **options)  # type: ignore[arg-type]


# --- a target that fails --------------------------------------------------------------------------


class Failing:
    """A target that fails as a test wants it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.failures: list[Exception] = []
        self.after: list[Exception] = []
        """Raised once the object is stored: as if the answer were lost."""
        self.write_only = False
        self.unreadable: dict[str, Exception] = {}
        """By the name of an object: what reading it raises."""
        self.puts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def put(self, name: str, data: Any, *, only_new: bool = False) -> bool:
        if self.failures:
            raise self.failures.pop(0)
        done = self._target.put(name, data, only_new=only_new)
        self.puts.append(name)
        if self.after:
            raise self.after.pop(0)
        return done

    def _check(self, doing: str) -> None:
        if self.write_only:
            raise TargetPermissionError("test", "", doing, "denied")

    def get(self, name: str) -> bytes:
        self._check("get")
        if name in self.unreadable:
            raise self.unreadable[name]
        return self._target.get(name)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        self._check("list")
        return self._target.list(prefix, after=after)

    def head(self, name: str) -> ObjectInfo | None:
        self._check("head")
        return self._target.head(name)


@pytest.fixture
def failing(archive: Archive) -> Failing:
    """The archive's target, made to fail."""
    target = Failing(archive.repository.target)
    archive.repository.target = target
    archive.repository.keystore._target = target
    return target


def _gone() -> TargetError:
    return TargetError("test", "x", "put", "it is away", 3)


async def test_a_target_that_is_away_is_waited_for(
    spell: Spell, archive: Archive, failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """The position is held, the failure is logged once, and nothing is missing."""
    shipper = archive.shipper(spell, interval_s=0.01)
    await shipper.once()
    failing.failures = [_gone(), _gone()]
    last = await _write(spell.state, 5)
    stop = asyncio.Event()
    with caplog.at_level(logging.WARNING, logger="llmspell_dist.backup"):
        running = asyncio.create_task(shipper.run(stop))
        await until(lambda: shipper.stats.positions.get("0") == last)
    assert shipper.stats.errors == 2
    assert "it is away" in shipper.stats.last_error
    assert len([one for one in caplog.records if "it is away" in one.message]) == 1
    stop.set()
    await running
    assert len(archive.entries(None, last)) == 5


async def test_once_raises_what_fails(spell: Spell, archive: Archive, failing: Failing) -> None:
    """And goes on from there the next time."""
    shipper = archive.shipper(spell)
    await shipper.once()
    last = await _write(spell.state, 5)
    failing.failures = [_gone()]
    with pytest.raises(TargetError):
        await shipper.once()
    await shipper.once()
    assert len(archive.entries(None, last)) == 5


async def test_what_is_stored_twice_is_read_once(
    spell: Spell, archive: Archive, failing: Failing, raw: Raw, store: Store
) -> None:
    """The answer was lost after the segment was stored: the next one covers it again, and more."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 3)
    failing.after = [_gone()]
    with pytest.raises(TargetError):
        await shipper.once()
    await _write(spell.state, 3)
    await shipper.once()
    last = await _write(spell.state, 1)
    await shipper.once()
    assert len(archive.reader.segments(archive.timeline, "0")) == 3
    assert archive.entries(None, last) == logged(raw, store)
    offers = SegmentSource(archive.repository)
    ((stretch,),) = (await offers.stretches()).values()
    found = [
        item.revision
        async for name, content in offers.read(stretch)
        for item in unpack_items(content, name)
        if isinstance(item, Logged)
    ]
    assert found == [revision.packed for revision, *_ in logged(raw, store)]
    assert archive.problems() == []
    assert len(archive.reader.timelines()) == 1


async def test_one_who_comes_after_a_death_takes_over_what_was_stored(
    spell: Spell, archive: Archive, failing: Failing, raw: Raw, store: Store
) -> None:
    """The target is further than the server says, and the log has that entry: no new timeline."""
    await archive.shipper(spell).once()
    await _write(spell.state, 3)
    failing.after = [_gone()]
    with pytest.raises(TargetError):
        await archive.shipper(spell).once()
    last = await _write(spell.state, 3)
    await archive.shipper(spell).once()
    names = archive.reader.segments(archive.timeline, "0")
    assert [archive.reader.header(name).entries for name in names] == [3, 3]
    assert archive.entries(None, last) == logged(raw, store)
    assert len(archive.reader.timelines()) == 1


async def test_write_only_credentials_are_enough(
    spell: Spell, archive: Archive, failing: Failing, raw: Raw, store: Store
) -> None:
    """Who cannot read the archive opens a timeline at each start; readers follow through all."""
    failing.write_only = True
    last = BEGINNING
    await archive.shipper(spell).once()
    for number in range(3):
        await _write(spell.state, 3, number)
        shipper = archive.shipper(spell)
        await shipper.once()
        last = await _write(spell.state, 2, number)
        await shipper.once()
    failing.write_only = False
    timelines = archive.reader.timelines()
    assert [one.parent for one in timelines] == ["", *(one.id for one in timelines[:-1])]
    assert len(timelines) == 4
    assert archive.entries(None, last) == logged(raw, store)


# --- gaps and damage ------------------------------------------------------------------------------


async def test_a_hold_that_broke_leaves_a_gap_that_is_said(
    spell: Spell, archive: Archive, raw: Raw, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The archive goes on behind it; somebody is told that a new base is needed."""
    gaps: list[Gap] = []
    shipper = archive.shipper(spell, on_gap=gaps.append)
    await shipper.once()
    before = await _write(spell.state, 3)
    await shipper.once()
    raw("HSET", store.space.ctl("0"), "retention", "3 0 10")
    await _write(spell.state, 30)
    for _ in range(2):
        await spell.log.trim()
    assert (await spell.log.stat()).broken == {"archive": before}
    floor = (await spell.log.stat()).floor
    assert floor is not None
    with caplog.at_level(logging.WARNING, logger="llmspell_dist.backup"):
        await shipper.once()
    last = await _write(spell.state, 2)
    await shipper.once()
    assert [(one.after, one.upto) for one in gaps] == [(before, floor)]
    assert "cap" in gaps[0].reason
    assert "new full backup" in caplog.text
    assert shipper.stats.base_needed
    assert shipper.stats.gaps == 1
    assert [upto for _, upto in archive.ranges()] == [before, last]
    assert archive.ranges()[1][0] == floor
    with pytest.raises(PointNotCoveredError):
        archive.entries(None, last)
    assert len(archive.entries(None, before)) == 3
    assert archive.entries(floor, last) == logged(raw, store)[-len(archive.entries(floor, last)) :]
    headers = [archive.reader.header(one) for one in archive.reader.segments(archive.timeline, "0")]
    assert [one.gap_after for one in headers] == [None, before, None]
    assert len(archive.reader.timelines()) == 1
    stat = await spell.log.stat()
    assert (stat.broken, stat.holds) == ({}, {"archive": last})


async def test_a_hold_that_broke_in_time_is_put_back(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """Nothing was trimmed yet that is not stored."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 3)
    await shipper.once()
    ctl = store.space.ctl("0")
    raw("HSET", ctl, "broken:archive", raw("HGET", ctl, "hold:archive"))
    raw("HDEL", ctl, "hold:archive")
    last = await _write(spell.state, 2)
    await shipper.once()
    stat = await spell.log.stat()
    assert (stat.broken, stat.holds) == ({}, {"archive": last})
    assert shipper.stats.gaps == 0
    assert archive.entries(None, last) == logged(raw, store)


async def test_a_log_that_lost_entries_opens_a_timeline(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """Both can be read: what was before is common, what came then is not mixed."""
    shipper = archive.shipper(spell)
    await shipper.once()
    common = await _write(spell.state, 3)
    await shipper.once()
    lost = await _write(spell.state, 4)
    await shipper.once()
    old = archive.timeline
    kept = archive.entries(None, lost)
    log = store.space.log("0")
    for revision, *_ in kept[3:]:
        raw("XDEL", log, str(revision))
    new = await _write(spell.state, 5)
    await shipper.once()
    assert shipper.stats.timelines == 1
    first, second = archive.reader.timelines()
    assert (first.id, second.parent) == (old, old)
    assert second.shards["0"].revision == common
    assert second.id == archive.timeline == shipper.stats.timeline
    assert archive.entries(None, lost, old) == kept
    assert archive.entries(None, new) == logged(raw, store)
    assert archive.entries(None, common) == kept[:3]
    assert archive.ranges() == [(BEGINNING, new)]
    with pytest.raises(PointNotCoveredError):
        archive.entries(None, new, old)


@pytest.mark.parametrize("denied", [False, True], ids=["just-now", "denied"])
async def test_earlier_segments_that_cannot_be_read_just_now_are_no_gap(  # noqa: PLR0917
    spell: Spell, archive: Archive, failing: Failing, raw: Raw, store: Store, denied: bool
) -> None:
    """What another process looks for after a lost write; who may not read gives up, and says so."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 3)
    await shipper.once()
    common = await _write(spell.state, 3)
    await shipper.once()
    lost = await _write(spell.state, 4)
    await shipper.once()
    for revision, *_ in archive.entries(common, lost):
        raw("XDEL", store.space.log("0"), str(revision))
    new = await _write(spell.state, 5)
    earlier = archive.reader.segments(archive.timeline, "0")[1]
    name = archive.repository.layout.segment(earlier)
    kind = TargetPermissionError if denied else TargetError
    failing.unreadable[name] = kind("test", name, "get", "500", 4)
    another = archive.shipper(spell)
    if not denied:
        with pytest.raises(TargetError):
            await another.once()
        assert len(archive.reader.timelines()) == 1
        failing.unreadable.clear()
    await another.once()
    assert len(archive.reader.timelines()) == 2
    assert another.stats.base_needed is denied
    if not denied:
        assert archive.reader.timelines()[1].shards["0"].revision == common
        assert archive.ranges() == [(BEGINNING, new)]


async def test_where_pasts_part_is_found_however_long_nothing_was_written(
    spell: Spell, archive: Archive, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment over an idle night begins far before the one behind it, and counts all the same."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 3)
    await shipper.once()
    await until(lambda: _ms(raw) > shipper.stats.positions["0"].ms)
    common = await _write(spell.state, 3)
    await shipper.once()
    await until(lambda: _ms(raw) > common.ms)
    lost = await _write(spell.state, 4)
    await shipper.once()
    # By so much the last segment's beginning may lie back; that of the one before lies further.
    monkeypatch.setattr(reader, "_LONGEST_MS", lost.ms - common.ms)
    for revision, *_ in archive.entries(common, lost):
        raw("XDEL", store.space.log("0"), str(revision))
    new = await _write(spell.state, 5)
    another = archive.shipper(spell)
    await another.once()
    assert not another.stats.base_needed
    assert archive.reader.timelines()[1].shards["0"].revision == common
    assert archive.ranges() == [(BEGINNING, new)]


async def test_a_commit_after_a_long_silence_is_known_to_be_of_its_timeline(
    spell: Spell, archive: Archive, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segment began long before it; a backup of that commit is a base of this timeline."""
    shipper = archive.shipper(spell)
    await shipper.once()
    await _write(spell.state, 3)
    await until(lambda: _ms(raw) > logged(raw, store)[-1][0].ms)
    await _write(spell.state, 1)
    at, *_, operation = logged(raw, store)[-1]
    await shipper.once()
    await until(lambda: _ms(raw) > at.ms)
    await _write(spell.state, 2)
    await shipper.once()
    monkeypatch.setattr(reader, "_LONGEST_MS", 0)
    assert archive.reader.holds(archive.timeline, "0", at, operation)
    assert not archive.reader.holds(archive.timeline, "0", at, bytes(14))


@pytest.mark.parametrize("fresh", [False, True], ids=["same-process", "another-process"])
async def test_a_server_that_went_back_is_noticed(
    spell: Spell, archive: Archive, raw: Raw, store: Store, fresh: bool
) -> None:
    """With its settings: only the process, or the target, knows of what it has lost."""
    shipper = archive.shipper(spell)
    await shipper.once()
    common = await _write(spell.state, 3)
    await shipper.once()
    ctl, log = store.space.ctl("0"), store.space.log("0")
    position = raw("HGET", ctl, "archive")
    lost = await _write(spell.state, 4)
    await shipper.once()
    old = archive.timeline
    kept = archive.entries(None, lost)
    raw("HSET", ctl, "archive", position, "hold:archive", str(common))
    for revision, *_ in kept[3:]:
        raw("XDEL", log, str(revision))
    new = await _write(spell.state, 5)
    shipper = archive.shipper(spell) if fresh else shipper
    await shipper.once()
    last = await _write(spell.state, 1)
    await shipper.once()
    assert [one.parent for one in archive.reader.timelines()] == ["", old]
    assert archive.entries(None, last) == logged(raw, store)
    assert archive.entries(None, lost, old) == kept
    assert new < last


async def test_a_server_that_lost_everything_begins_a_timeline(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """Nothing is common, so a new base is needed."""
    shipper = archive.shipper(spell)
    await shipper.once()
    last = await _write(spell.state, 3)
    await shipper.once()
    for key in store.all_keys():
        raw("DEL", key)
    new = await _write(spell.state, 3)
    await archive.shipper(spell).once()
    first, second = archive.reader.timelines()
    assert second.parent == first.id
    assert second.shards["0"].revision is None
    assert len(archive.entries(None, last, first.id)) == 3
    assert archive.ranges()[-1][1] == new


async def test_damage_is_found(
    spell: Spell, archive: Archive, place: Place, tmp_path: Path
) -> None:
    """A segment that is missing, one in the place of another, one cut off."""
    shipper = archive.shipper(spell)
    await shipper.once()
    ends = []
    for number in range(4):
        ends.append(await _write(spell.state, 3, number))
        await shipper.once()
    names = archive.reader.segments(archive.timeline, "0")
    layout, target = archive.repository.layout, archive.repository.target
    second = layout.segment(names[1])
    data = target.get(second)
    target.delete([second])
    assert [one.name for one in archive.problems()] == [layout.segment(names[2])]
    with pytest.raises(PointNotCoveredError):
        archive.entries(None, ends[3])
    target.put(second, target.get(layout.segment(names[2])))
    assert second in {one.name for one in archive.problems()}
    with pytest.raises(BackupDamagedError):
        archive.entries(None, ends[3])
    target.put(second, data[:-1])
    assert [one.name for one in archive.problems()] == [second]
    target.put(second, data)
    moved = layout.segment(names[1]._replace(last=ends[2]))
    target.put(moved, data)
    assert [one.name for one in archive.problems()] == [moved]


async def test_an_archive_that_cannot_be_read_is_gone_on_with(
    spell: Spell, archive: Archive, raw: Raw, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Its newest segment is damaged: the next process opens a timeline, and nothing is missing."""
    await archive.shipper(spell).once()
    await _write(spell.state, 3)
    await archive.shipper(spell).once()
    layout, target = archive.repository.layout, archive.repository.target
    (name,) = archive.reader.segments(archive.timeline, "0")
    data = target.get(layout.segment(name))
    target.put(layout.segment(name), data[:-1])
    last = await _write(spell.state, 3)
    with caplog.at_level(logging.WARNING, logger="llmspell_dist.backup"):
        await archive.shipper(spell).once()
    assert layout.segment(name) in caplog.text
    assert len(archive.reader.timelines()) == 2
    target.put(layout.segment(name), data)
    assert archive.entries(None, last) == logged(raw, store)


# --- what restores get ----------------------------------------------------------------------------


async def test_stretches_for_restores(
    spell: Spell, archive: Archive, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the present timeline and of what it comes from, without what was lost."""
    monkeypatch.setattr(source, "TOGETHER", 2)
    offers = SegmentSource(archive.repository)
    assert await offers.stretches() == {}
    shipper = archive.shipper(spell)
    await shipper.once()
    common = BEGINNING
    for number in range(3):
        common = await _write(spell.state, 3, number)
        await shipper.once()
    lost = await _write(spell.state, 4)
    kept = logged(raw, store)
    position = raw("HGET", store.space.ctl("0"), "archive")
    await shipper.once()
    old = archive.timeline
    for revision, *_ in kept[9:]:
        raw("XDEL", store.space.log("0"), str(revision))
    raw("HSET", store.space.ctl("0"), "archive", position, "hold:archive", str(common))
    last = await _write(spell.state, 5)
    await shipper.once()
    assert archive.timeline != old

    async def read(timeline: str | None) -> list[bytes]:
        found: dict[bytes, None] = {}
        (stretches,) = (await offers.stretches(timeline)).values()
        assert len(stretches) > 1
        for one in stretches:
            async for name, content in offers.read(one):
                for item in unpack_items(content, name):
                    if isinstance(item, Logged):
                        found[item.revision] = None
        assert list(found) == sorted(found)
        return list(found)

    now = [revision.packed for revision, *_ in logged(raw, store)]
    assert await read(None) == await read(archive.timeline) == now
    assert await read(old) == [revision.packed for revision, *_ in kept]
    holds = archive.reader.holds
    operation = {revision: operation for revision, _, _, operation in kept}
    assert holds(archive.timeline, "0", common, operation[common])
    assert not holds(archive.timeline, "0", common, bytes(14))
    assert not holds(archive.timeline, "0", lost, operation[lost])
    assert holds(old, "0", lost, operation[lost])
    assert not holds(old, "0", last, bytes(14))


async def test_a_branch_inside_a_segment_cuts_it(
    spell: Spell, archive: Archive, raw: Raw, store: Store
) -> None:
    """What the parent's last segment has behind the branch belongs to the past that was lost."""
    shipper = archive.shipper(spell)
    await shipper.once()
    branch = await _write(spell.state, 3)
    await spell.state.set(ALICE, "bulk", 1, state_class=StateClass.BULK)
    last = await _write(spell.state, 3)
    await shipper.once()
    entries = logged(raw, store)
    parent = archive.timeline
    note = Timeline.new("a test", parent, {"0": Branch(str(branch), "")}, "")
    archive.repository.target.put(archive.repository.layout.timeline(note.id), note.packed())
    assert archive.ranges(note.id) == [(BEGINNING, branch)]
    assert archive.entries(None, branch, note.id) == entries[:3]
    assert archive.attached(None, branch, note.id) == []
    with pytest.raises(PointNotCoveredError):
        archive.entries(None, last, note.id)
    offers = SegmentSource(archive.repository)
    ((stretch,),) = (await offers.stretches(note.id)).values()
    contents = [content async for content in offers.read(stretch)]
    items = [item for name, content in contents for item in unpack_items(content, name)]
    found = [item.revision for item in items if isinstance(item, Logged)]
    assert found == [revision.packed for revision, *_ in entries[:3]]
    assert not any(isinstance(item, Record) for item in items)
    whole = [content async for content in offers.read((await offers.stretches(parent))["0"][0])]
    again = b"".join(source.packed(unpack_items(whole[0][1], "x")))
    assert again == whole[0][1]


# --- notes of timelines ---------------------------------------------------------------------------


def test_a_timeline_stands_behind_the_one_that_it_leaves(tmp_path: Path) -> None:
    """Also if the clock of the machine that opened it is behind: the last one goes on now."""
    archive = archive_of(folder_place(tmp_path / "b"), "ns")
    opened = {"f" * 8: "12:00", "e" * 8: "11:50", "d" * 8: "11:50", "c" * 8: "11:40"}
    parent = ""
    for number, time in opened.items():
        at = f"2026-11-26T{time}:00+00:00"
        note = Timeline(id=number, opened=at, reason="failover", parent=parent)
        archive.repository.target.put(archive.repository.layout.timeline(number), note.packed())
        parent = number
    assert [one.id for one in archive.reader.timelines()] == list(opened)
    assert archive.reader.lineage() == list(reversed(opened))


def test_a_note_that_is_damaged_or_newer_is_named(tmp_path: Path) -> None:
    """By the object's name."""
    archive = archive_of(folder_place(tmp_path / "b"), "ns")
    layout, target = archive.repository.layout, archive.repository.target
    note = Timeline.new("why", "", {}, "7.0")
    raw = note.packed()
    assert Timeline.unpack(raw, "x") == note
    name = layout.timeline(note.id)
    for damaged in (b"", b"{}", raw[:-10], raw.replace(b'"reason"', b'"other"'), b"[1]"):
        target.put(name, damaged)
        with pytest.raises(BackupDamagedError, match=note.id):
            archive.reader.timelines()
    target.put(name, raw.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(BackupFormatError, match=note.id):
        archive.reader.timelines()
    target.put(layout.timeline("0" * 8), raw)
    target.put(name, raw)
    with pytest.raises(BackupDamagedError, match="00000000"):
        archive.reader.timelines()
