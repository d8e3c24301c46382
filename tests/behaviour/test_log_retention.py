"""The change log: kept by age and number, held back by holds, up to a cap."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from fix_state import Store, until

from llmspell_dist import InvalidArgumentError, Options, Retention, Revision, connect
from llmspell_dist.client import Spell

pytestmark = pytest.mark.integration
S = "agent:alice"


@pytest.fixture
async def short(url: str, namespace: str) -> AsyncIterator[Spell]:
    """A client whose log keeps 10 entries, 50 for a hold."""
    retention = Retention(max_age=None, max_entries=10, cap_entries=50)
    async with connect(url, options=Options(namespace=namespace, retention=retention)) as spell:
        yield spell


async def write(spell: Spell, count: int) -> list[Revision]:
    """Set one key so many times."""
    return [await spell.state.set(S, "k", i) for i in range(count)]


async def test_one_commit_is_one_entry_in_order(spell: Spell) -> None:
    """Forward from any revision, or the newest first."""
    revisions = await write(spell, 5)
    await spell.state.set_many(S, {"a": 1, "b": 2})
    entries = await spell.log.entries()
    assert [entry.revision for entry in entries[:5]] == revisions
    assert [change.key for change in entries[5].changes] == ["a", "b"]
    after = await spell.log.entries(after=revisions[2], limit=2)
    assert [entry.revision for entry in after] == revisions[3:]
    newest = await spell.log.entries(newest_first=True, limit=2)
    assert [entry.revision for entry in newest] == [entries[5].revision, revisions[4]]
    chain = [entry.changes[0].previous for entry in entries[:5]]
    assert chain == [None, *revisions[:4]]
    scope_chain = [entry.changes[0].previous_in_scope for entry in entries]
    assert scope_chain == [None, *revisions]


async def test_stat_tells_how_far_the_log_reaches(short: Spell) -> None:
    """Length, oldest and newest entry, holds."""
    empty = await short.log.stat()
    assert (empty.entries, empty.floor, empty.last, empty.holds) == (0, None, None, {})
    revisions = await write(short, 3)
    stat = await short.log.stat()
    assert (stat.entries, stat.floor, stat.last) == (3, revisions[0], revisions[2])


async def test_only_so_many_entries_are_kept(short: Spell) -> None:
    """The newest ones; trimming again finds nothing."""
    revisions = await write(short, 30)
    assert await short.log.trim() == 20
    stat = await short.log.stat()
    assert (stat.entries, stat.floor) == (10, revisions[20])
    assert await short.log.trim() == 0
    assert await short.state.get(S, "k") == 29


async def test_entries_are_kept_for_so_long(
    url: str, namespace: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole nodes of the stream go when all in them is too old."""
    retention = Retention(max_age=timedelta(seconds=1), max_entries=100_000)
    monkeypatch.setattr(Retention, "max_age_ms", property(lambda _: 1))
    async with connect(url, options=Options(namespace=namespace, retention=retention)) as spell:
        last = (await write(spell, 300))[-1]
        await until(lambda: store.raw.now_ms() > last.ms + 2)
        removed = await spell.log.trim()
        assert 200 <= removed <= 300
        assert (await spell.log.stat()).entries == 300 - removed


async def test_a_hold_keeps_what_somebody_still_needs(short: Spell) -> None:
    """From its position on, until it moves or is released."""
    revisions = await write(short, 30)
    await short.log.hold("archiver", at=revisions[5])
    await short.log.hold("snapshot", at=revisions[12])
    assert await short.log.trim() == 5
    stat = await short.log.stat()
    assert stat.floor == revisions[5]
    assert stat.holds == {"archiver": revisions[5], "snapshot": revisions[12]}
    await short.log.hold("archiver", at=revisions[15])
    assert await short.log.trim() == 7
    assert (await short.log.stat()).floor == revisions[12]
    await short.log.release("snapshot")
    assert await short.log.trim() == 3
    await short.log.release("archiver")
    await short.log.release("never")
    assert await short.log.trim() == 5
    assert (await short.log.stat()).holds == {}


async def test_a_hold_without_a_position_begins_at_the_newest_entry(short: Spell) -> None:
    """In an empty log at its beginning."""
    await short.log.hold("early")
    revisions = await write(short, 20)
    assert await short.log.trim() == 0
    await short.log.release("early")
    await short.log.hold("late")
    await write(short, 20)
    await short.log.trim()
    assert (await short.log.stat()).floor == revisions[-1]


async def test_at_the_cap_a_hold_breaks_and_is_shown(
    short: Spell, caplog: pytest.LogCaptureFixture
) -> None:
    """The slowest first; warnings come before, at 50 and 80 percent."""
    revisions = await write(short, 30)
    await short.log.hold("slow", at=revisions[0])
    await short.log.hold("fast", at=revisions[28])
    with caplog.at_level(logging.WARNING, "llmspell_dist"):
        await short.log.trim()
        assert "60 % of its cap" in caplog.text
        revisions += await write(short, 15)
        caplog.clear()
        await short.log.trim()
        assert "90 % of its cap" in caplog.text
        revisions += await write(short, 10)
        caplog.clear()
        await short.log.trim()
        assert "hold slow broke" in caplog.text
    stat = await short.log.stat()
    assert stat.holds == {"fast": revisions[28]}
    assert stat.broken == {"slow": revisions[0]}
    assert stat.floor == revisions[28]
    await short.log.hold("slow", at=revisions[40])
    assert (await short.log.stat()).broken == {}


async def test_trimming_up_to_a_hold_is_done_in_one_go(url: str, namespace: str) -> None:
    """However much waits: the calls are bounded, their number is not."""
    retention = Retention(max_age=None, max_entries=10)
    async with connect(url, options=Options(namespace=namespace, retention=retention)) as spell:
        from asyncio import gather

        await gather(*[spell.state.set(S, "k", i) for i in range(2500)])
        await spell.log.hold("reader")
        assert await spell.log.trim() == 2490
        assert (await spell.log.stat()).entries == 10


async def test_a_hold_needs_a_printable_name(spell: Spell) -> None:
    """Of up to 64 ASCII characters."""
    bad: list[Any] = ["", "x" * 65, "a\nb", "é", 5, None]
    for name in bad:
        with pytest.raises(InvalidArgumentError, match="name"):
            await spell.log.hold(name)
        with pytest.raises(InvalidArgumentError, match="name"):
            await spell.log.release(name)


async def test_positions_are_revisions(spell: Spell, store: Store) -> None:
    """Anything else would stop every later trimming."""
    before = store.dump(without=())
    bad: list[Any] = ["1-1", 5, b"1-1"]
    for position in bad:
        with pytest.raises(InvalidArgumentError, match="at"):
            await spell.log.hold("h", at=position)
        with pytest.raises(InvalidArgumentError, match="after"):
            await spell.log.entries(after=position)
    for limit in (0, 1001, "5"):
        with pytest.raises(InvalidArgumentError, match="limit"):
            await spell.log.entries(limit=limit)  # type: ignore[arg-type]
    assert store.dump(without=()) == before


async def test_retention_prints_as_a_sentence() -> None:
    """For logs and statistics."""
    assert str(Retention(max_age=None, max_entries=10, cap_entries=50)) == (
        "keep the last 10 entries; for a hold at most 50"
    )
