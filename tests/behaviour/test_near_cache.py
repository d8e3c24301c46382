"""The near cache: reads from memory that are never older than what the reader may know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from fix_state import Raw, Store, sweep_all, until

from llmspell_dist import (
    InvalidArgumentError,
    NearCache,
    NearCacheStats,
    Options,
    Scope,
    Spell,
    StateClass,
    connect,
)
from llmspell_dist.cache.near import Near
from llmspell_dist.cache.scope import CachedScope

pytestmark = pytest.mark.integration

ALICE, BOB = "agent:alice", "agent:bob"
Open = Callable[..., Any]


@pytest.fixture
async def cached(url: str, namespace: str) -> AsyncIterator[Spell]:
    """A client with a near cache, which keeps reads of the scope alice already."""
    options = Options(namespace=namespace, near_cache=NearCache())
    async with connect(url, options=options) as spell:
        await near(spell).warm(ALICE)
        yield spell


def near(spell: Spell) -> Near:
    """Return the near cache of a client."""
    assert spell.near_cache is not None
    return spell.near_cache


def counted(spell: Spell) -> NearCacheStats:
    """Return its counters."""
    return near(spell).stats()


def kept(spell: Spell, scope: str = ALICE) -> Any:
    """Return what the near cache of a client holds of a scope."""
    return near(spell)._by_hash[spell.state._driver.core.scope_key(scope).hash]


async def heard(spell: Spell, scope: str = ALICE) -> None:
    """Return once the client has heard of every commit to a scope so far."""
    now = (await spell.state.stat(scope)).revision
    held = kept(spell, scope)
    await until(lambda: now is None or (held.at is not None and held.at >= now))
    assert not held.suspect


async def hits(spell: Spell, key: str, value: Any, scope: str = ALICE) -> bool:
    """Whether a read is served from memory, and with what.

    A read that is not is kept, unless it is told meanwhile that the key changed: who counts on that
    waits until it was `heard`.
    """
    before = counted(spell).hits
    assert await spell.state.get(scope, key) == value
    return counted(spell).hits == before + 1


async def written(spell: Spell, value: Any, key: str = "k") -> None:
    """Set a key, or delete it: for None."""
    if value is None:
        await spell.state.delete(ALICE, key)
    else:
        await spell.state.set(ALICE, key, value)


@pytest.fixture
def not_told(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, messages are late."""

    def begin() -> None:
        for name in ("rang", "told", "missed"):
            monkeypatch.setattr(CachedScope, name, lambda *_: None)

    return begin


class Reading:
    """A read of a key by a client with a near cache, step by step."""

    def __init__(self, spell: Spell, key: str = "k") -> None:
        steps = near(spell).read(ALICE, key)
        assert steps is not None
        self._steps: Any = steps
        self._spell = spell
        self._sent: Any = next(steps)

    async def answer(self) -> None:
        """Let the server carry it out; the reply is on its way."""
        self._reply = await self._spell._lanes.execute(self._sent)

    def end(self) -> Any:
        """Return what the reader is given, once the reply has arrived."""
        with pytest.raises(StopIteration) as stopped:
            self._steps.send(self._reply)
        return near(self._spell).given(stopped.value.value, None, None)


# --- what is served -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, 5, 2**70, 1.5, "text", b"bytes", {"a": [1]}, [1, 2], (1, 2), {1, 2}, "x" * 40_000],
    ids=lambda value: type(value).__name__,
)
async def test_a_second_read_comes_from_memory(cached: Spell, value: Any) -> None:
    """Equal to what was stored, and the caller's own."""
    await cached.state.set(ALICE, "k", value)
    await heard(cached)
    assert not await hits(cached, "k", value)
    assert await hits(cached, "k", value)
    got = await cached.state.get(ALICE, "k")
    if isinstance(got, list | dict):
        got.clear()
    assert await hits(cached, "k", value)
    assert type(await cached.state.get(Scope.parse(ALICE), "k")) is type(value)


async def test_absence_lists_and_maps_are_kept_too(cached: Spell) -> None:
    """A key without a value, and values whose elements lie one by one."""
    assert not await hits(cached, "none", None)
    assert await hits(cached, "none", None)
    assert await cached.state.get(ALICE, "none", "default") == "default"
    assert not await cached.state.exists(ALICE, "none")
    await cached.state.append(ALICE, "list", 1, 2)
    await cached.state.merge(ALICE, "map", {"a": 1})
    await heard(cached)
    for key, value in (("list", [1, 2]), ("map", {"a": 1})):
        assert not await hits(cached, key, value)
        assert await hits(cached, key, value)


@dataclass
class Mood:
    """A model of the user's."""

    is_now: str


async def test_models_come_as_models(cached: Spell) -> None:
    """From memory too."""
    await cached.state.set(ALICE, "mood", Mood("calm"))
    await heard(cached)
    for _ in range(3):
        assert await cached.state.get(ALICE, "mood", as_type=Mood) == Mood("calm")
    assert counted(cached).hits == 2


async def test_many_keys_are_read_from_memory_as_far_as_they_are_there(cached: Spell) -> None:
    """The others in one round trip, and are then there too."""
    await cached.state.set_many(ALICE, {"a": 1, "b": [2], "c": 3})
    await heard(cached)
    assert await cached.state.get(ALICE, "a") == 1
    everything = {"a": 1, "b": [2], "c": 3}
    assert await cached.state.get_many(ALICE, ["a", "b", "c", "d"]) == everything
    assert (counted(cached).hits, counted(cached).misses) == (1, 4)
    assert await cached.state.get_many(ALICE, ["a", "b", "c", "d"]) == everything
    assert (counted(cached).hits, counted(cached).misses) == (5, 4)


async def test_keys_in_another_normal_form_are_one_key(cached: Spell) -> None:
    """Written under one spelling and read under the other, the value is never stale."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for number in range(4):
        await cached.state.set(ALICE, (composed, decomposed)[number % 2], number)
        for key in (composed, decomposed, composed, decomposed):
            assert await cached.state.get(ALICE, key) == number


async def test_scopes_that_no_pattern_names_are_not_kept(
    url: str, namespace: str, raw: Raw, store: Store
) -> None:
    """Nothing is subscribed for them."""
    options = Options(namespace=namespace, near_cache=NearCache(scopes=("user:*",)))
    async with connect(url, options=options) as spell:
        await spell.state.set(ALICE, "k", 1)
        for _ in range(3):
            assert await spell.state.get(ALICE, "k") == 1
        assert counted(spell) == NearCacheStats(0, 0, 0, 0, 0, 0, 0, 0)
        assert raw("PUBSUB", "NUMSUB", store.hash_of(ALICE))[1] == 0


async def test_without_the_option_there_is_no_cache(spell: Spell) -> None:
    """And no cost."""
    assert spell.near_cache is None


async def test_sensitive_values_are_not_left_in_memory(url: str, namespace: str) -> None:
    """They are encrypted at rest, and so are read anew each time."""

    class Reverses:
        def encrypt(self, plain: bytes, *, associated_data: bytes) -> bytes:
            assert associated_data
            return plain[::-1]

        def decrypt(self, hidden: bytes, *, associated_data: bytes) -> bytes:
            assert associated_data
            return hidden[::-1]

    options = Options(namespace=namespace, near_cache=NearCache(), cipher=Reverses())
    async with connect(url, options=options) as spell:
        await near(spell).warm(ALICE)
        await spell.state.set(ALICE, "k", "secret", state_class=StateClass.SENSITIVE)
        for _ in range(3):
            assert not await hits(spell, "k", "secret")
        assert counted(spell).entries == 0


# --- who changes it -------------------------------------------------------------------------------


async def test_own_writes_are_seen_at_once(cached: Spell) -> None:
    """By whatever path they are written."""
    state = cached.state

    async def check(key: str, value: Any) -> None:
        for _ in range(2):
            assert await state.get(ALICE, key) == value

    for number in range(20):
        await check("k", number - 1 if number else None)
        await state.set(ALICE, "k", number)
        await check("k", number)
    await state.set(ALICE, "k", 1, ttl=1000)
    await check("k", 1)
    assert await state.increment(ALICE, "k", 4) == 5
    await check("k", 5)
    await state.update(ALICE, "k", lambda value: value + 1)
    await check("k", 6)
    async with state.transaction() as tx:
        tx.set(ALICE, "k", await tx.get(ALICE, "k") + 1)
    await check("k", 7)
    await state.append(ALICE, "list", 1)
    await check("list", [1])
    await state.append(ALICE, "list", 2)
    await check("list", [1, 2])
    await state.merge(ALICE, "map", {"a": 1})
    await check("map", {"a": 1})
    await state.set_many(ALICE, {"k": 8, "list": 9})
    await check("k", 8)
    await state.delete(ALICE, "k")
    await check("k", None)
    await check("list", 9)
    await state.clear(ALICE)
    await check("list", None)
    await state.set(BOB, "k", 10)
    await state.copy_scope(BOB, ALICE)
    await check("k", 10)
    await state.move_scope(ALICE, BOB)
    await check("k", None)
    async with cached.leases.acquire(ALICE) as lease:
        await lease.state.set(ALICE, "k", 11)
        await check("k", 11)
        assert await lease.state.get(ALICE, "k") == 11


async def test_what_another_client_writes_is_seen(cached: Spell, spell: Spell) -> None:
    """Within the time that a message takes; all the keys of one commit."""
    await spell.state.set_many(ALICE, {"a": 1, "b": 1})
    for number in range(2, 30):
        assert await cached.state.get(ALICE, "a") in (number - 1, number)
        assert await cached.state.get(ALICE, "b") in (number - 1, number)
        await spell.state.set_many(ALICE, {"a": number, "b": number})

        async def seen(number: int = number) -> bool:
            got = [await cached.state.get(ALICE, key) for key in ("a", "b")]
            return got == [number, number]

        await until(seen)
    invalidated = counted(cached).invalidations
    await cached.state.get(ALICE, "a")
    await spell.state.clear(ALICE)
    await until(lambda: counted(cached).invalidations > invalidated)
    assert await cached.state.get(ALICE, "a") is None


async def test_only_what_changed_is_dropped(cached: Spell, spell: Spell) -> None:
    """The rest goes on being served."""
    await spell.state.set_many(ALICE, {"a": 1, "b": 1})
    await heard(cached)
    assert await cached.state.get_many(ALICE, ["a", "b"]) == {"a": 1, "b": 1}
    await spell.state.set(ALICE, "a", 2)
    await heard(cached)
    assert counted(cached).invalidations == 1
    assert await hits(cached, "b", 1)
    assert not await hits(cached, "a", 2)


async def test_a_large_commit_drops_the_scope(cached: Spell, spell: Spell) -> None:
    """Its message does not say which keys."""
    await spell.state.set_many(ALICE, {"a": 1, "b": 1})
    await heard(cached)
    assert await cached.state.get_many(ALICE, ["a", "b"]) == {"a": 1, "b": 1}
    assert counted(cached).entries == 2
    await spell.state.set(ALICE, "large", "x" * 30_000)
    await until(lambda: counted(cached).entries == 0)


async def test_a_read_that_a_write_overtakes_is_not_kept(cached: Spell, spell: Spell) -> None:
    """Its reply is older than the change that was heard of while it was on its way."""
    await spell.state.set(ALICE, "k", "old")
    read = Reading(cached)
    await read.answer()
    await spell.state.set(ALICE, "k", "new")
    await heard(cached)
    assert read.end() == "old"  # the read began before the write
    assert counted(cached).entries == 0
    assert await cached.state.get(ALICE, "k") == "new"


@pytest.mark.parametrize("changed", [("old", "new"), ("old", None), (None, "new")])
@pytest.mark.parametrize("newer_first", [True, False])
async def test_of_two_replies_the_newer_is_held(
    cached: Spell,
    spell: Spell,
    not_told: Callable[[], None],
    changed: tuple[str | None, str | None],
    newer_first: bool,
) -> None:
    """In whichever order they are looked at, and though a key without a value has no revision."""
    before, now = changed
    if before is not None:
        await spell.state.set(ALICE, "k", before)
    await heard(cached)
    first, second = Reading(cached), Reading(cached)
    not_told()
    await first.answer()
    await written(spell, now)
    await second.answer()
    for reading in (second, first) if newer_first else (first, second):
        reading.end()
    assert await hits(cached, "k", now)


@pytest.mark.parametrize(("before", "now"), [("old", "new"), ("old", None), (None, "new")])
async def test_what_a_reader_was_given_keeps_older_replies_out(
    cached: Spell,
    spell: Spell,
    not_told: Callable[[], None],
    before: str | None,
    now: str | None,
) -> None:
    """Also if its own reply is not kept: it would see the value go back until a message comes."""
    if before is not None:
        await spell.state.set(ALICE, "k", before)
    await heard(cached)
    newer = Reading(cached)
    kept(cached).change("k")  # as for a write of this process: what was being read is not kept
    older = Reading(cached)
    await older.answer()
    not_told()
    await written(spell, now)
    await newer.answer()
    assert newer.end() == now
    assert older.end() == before
    assert not await hits(cached, "k", now)
    assert await hits(cached, "k", now)


async def test_a_reply_too_large_to_be_kept_keeps_older_ones_out(
    cached: Spell, spell: Spell, not_told: Callable[[], None]
) -> None:
    """As one that is kept does."""
    await spell.state.set(ALICE, "k", "old")
    await heard(cached)
    newer, older = Reading(cached), Reading(cached)
    await older.answer()
    large = "x" * (NearCache().max_value_bytes + 1)
    not_told()
    await spell.state.set(ALICE, "k", large)
    await newer.answer()
    assert newer.end() == large
    assert older.end() == "old"
    assert counted(cached).entries == 0


async def test_many_overlapping_reads_are_kept_in_the_end(cached: Spell, spell: Spell) -> None:
    """One that was overtaken does not hand its lot on to those that came after it."""
    for value in ("one", None):
        await written(spell, value)
        await heard(cached)
        reading = Reading(cached)
        kept(cached).change("k")
        for _ in range(5):
            following = Reading(cached)
            await reading.answer()
            assert reading.end() == value
            reading = following
        await reading.answer()
        reading.end()
        assert await hits(cached, "k", value)
        near(cached).clear()


async def test_nothing_is_served_between_a_bell_and_what_follows(cached: Spell) -> None:
    """Something was changed, and nobody knows what."""
    await cached.state.set(ALICE, "k", 1)
    await heard(cached)
    assert not await hits(cached, "k", 1)
    assert await hits(cached, "k", 1)
    revision = await cached.state.set(BOB, "other", 1)
    scope = kept(cached)
    scope.rang(revision)
    assert not await hits(cached, "k", 1)
    scope.missed(revision)
    assert counted(cached).entries == 0


def larger(number: int, value: int | None) -> int:
    """Return the larger of two."""
    return max(value or 0, number)


async def test_two_clients_and_random_operations(url: str, namespace: str) -> None:
    """No reader ever goes back to an older value, nor misses its own write."""
    chance = random.Random(5)
    options = Options(namespace=namespace, near_cache=NearCache(max_entries=20))
    async with connect(url, options=options) as one, connect(url, options=options) as two:
        keys = [f"k{number}" for number in range(8)]
        last: dict[tuple[int, str], int] = {}
        number = 0

        async def work(place: int, spell: Spell) -> None:
            nonlocal number
            for _ in range(400):
                key = chance.choice(keys)
                what = chance.random()
                if what < 0.2:
                    number += 1
                    written = number
                    mine = await spell.state.update(ALICE, key, partial(larger, written))
                    read = await spell.state.get(ALICE, key)
                    assert read >= mine, "an own write was not seen"
                    last[place, key] = max(read, last.get((place, key), 0))
                elif what < 0.25:
                    await spell.state.set_many(BOB, {"x": 1, "y": [2]})
                else:
                    read = await spell.state.get(ALICE, key) or 0
                    assert read >= last.get((place, key), 0), "a reader went back"
                    last[place, key] = read

        await asyncio.gather(work(0, one), work(1, two))
        assert counted(one).hits > 50
        for key in keys:
            value = await one.state.get_record(ALICE, key)
            for spell in (one, two):

                async def settled(spell: Spell = spell, key: str = key, value: Any = value) -> bool:
                    return bool(await spell.state.get(ALICE, key) == (value and value.value))

                await until(settled)


# --- time and room --------------------------------------------------------------------------------


async def test_a_value_is_served_for_its_time_at_most(cached: Spell, monkeypatch: Any) -> None:
    """By the clock of the process, from when its read was sent, also if no message comes."""
    now = [1000.0]
    monkeypatch.setattr(near(cached), "_now", lambda: now[0])
    await cached.state.set(ALICE, "k", 1)
    await heard(cached)
    assert not await hits(cached, "k", 1)
    now[0] += 29.9
    assert await hits(cached, "k", 1)
    now[0] += 0.2
    assert not await hits(cached, "k", 1)
    assert await hits(cached, "k", 1)


async def test_a_value_with_an_expiry_is_not_served_after_it(cached: Spell, raw: Raw) -> None:
    """Judged by the server's clock, before the sweeper removed it."""
    await cached.state.set(ALICE, "k", 1, ttl=0.15)
    await cached.state.get(ALICE, "k")
    until_ms = raw.now_ms() + 200

    await until(lambda: raw.now_ms() > until_ms)
    assert await cached.state.get(ALICE, "k") is None
    await cached.state.set(ALICE, "k", 2, ttl=1000)
    await heard(cached)
    assert not await hits(cached, "k", 2)
    assert await hits(cached, "k", 2)
    await sweep_all(cached)
    assert await cached.state.get(ALICE, "k") == 2


async def test_room_is_bounded_and_the_least_recently_used_go(url: str, namespace: str) -> None:
    """By number, and by bytes; large values are not kept."""
    limits = NearCache(max_entries=3, max_value_bytes=5000)
    async with connect(url, options=Options(namespace=namespace, near_cache=limits)) as spell:
        await near(spell).warm(ALICE)
        await spell.state.set_many(ALICE, {f"k{i}": i for i in range(5)})
        await heard(spell)
        for key in ("k0", "k1", "k2", "k0", "k3"):
            await spell.state.get(ALICE, key)
        assert (counted(spell).entries, counted(spell).evictions) == (3, 1)
        assert await hits(spell, "k0", 0)
        assert not await hits(spell, "k1", 1)
        await spell.state.set(ALICE, "large", "x" * 6000)
        await heard(spell)
        assert not await hits(spell, "large", "x" * 6000)
        assert not await hits(spell, "large", "x" * 6000)
    limits = NearCache(max_bytes=3000)
    async with connect(url, options=Options(namespace=namespace, near_cache=limits)) as spell:
        await near(spell).warm(ALICE)
        for number in range(20):
            await spell.state.set(ALICE, f"b{number}", "x" * 500)
            await spell.state.get(ALICE, f"b{number}")
            assert counted(spell).bytes <= 3000
        assert counted(spell).evictions > 0


async def test_scopes_are_bounded_and_the_evicted_are_unsubscribed(
    url: str, namespace: str, raw: Raw, store: Store
) -> None:
    """The one that was used last longest ago."""
    options = Options(namespace=namespace, near_cache=NearCache(max_scopes=2))
    async with connect(url, options=options) as spell:
        for name in ("agent:1", "agent:2", "agent:3"):
            await near(spell).warm(name)
            await spell.state.set(name, "k", 1)
            await heard(spell, name)
            await spell.state.get(name, "k")
        assert counted(spell).scopes == 2
        await until(lambda: raw("PUBSUB", "NUMSUB", store.hash_of("agent:1"))[1] == 0)
        assert raw("PUBSUB", "NUMSUB", store.hash_of("agent:3"))[1] == 1
        assert await hits(spell, "k", 1, "agent:3")
        assert not await hits(spell, "k", 1, "agent:1")


async def test_a_read_that_outlives_its_scope_is_not_kept(url: str, namespace: str) -> None:
    """Nobody could find it, and nothing would drop it."""
    options = Options(namespace=namespace, near_cache=NearCache(max_scopes=1))
    async with connect(url, options=options) as spell:
        await near(spell).warm("agent:1")
        reading = asyncio.ensure_future(spell.state.get("agent:1", "k"))
        await asyncio.sleep(0)  # it is sent
        warming = asyncio.ensure_future(near(spell).warm("agent:2"))
        assert await reading is None
        await warming
        assert counted(spell).scopes == 1
        assert counted(spell).entries == 0


async def test_a_scope_that_makes_room_while_it_subscribes_is_left(
    url: str, namespace: str, raw: Raw, store: Store
) -> None:
    """Without an error, and without a subscription; the other one is kept."""
    options = Options(namespace=namespace, near_cache=NearCache(max_scopes=1))
    async with connect(url, options=options) as spell:
        for _ in range(5):
            async with asyncio.timeout(10):
                await asyncio.gather(near(spell).warm("agent:1"), near(spell).warm("agent:2"))
        assert counted(spell).scopes == 1
        await until(lambda: raw("PUBSUB", "NUMSUB", store.hash_of("agent:1"))[1] == 0)
        assert raw("PUBSUB", "NUMSUB", store.hash_of("agent:2"))[1] == 1


async def test_clear_drops_everything(cached: Spell) -> None:
    """For whoever knows better."""
    await cached.state.set(ALICE, "k", 1)
    await heard(cached)
    await cached.state.get(ALICE, "k")
    near(cached).clear()
    assert counted(cached).entries == 0
    assert not await hits(cached, "k", 1)


async def test_the_first_read_subscribes(url: str, namespace: str) -> None:
    """It is not kept; what is read once messages come, is."""
    options = Options(namespace=namespace, near_cache=NearCache())
    async with connect(url, options=options) as spell:
        await spell.state.set(ALICE, "k", 1)
        assert not await hits(spell, "k", 1)

        async def served() -> bool:
            return await hits(spell, "k", 1)

        await until(served)


def test_bad_settings_are_refused() -> None:
    """With the field that is wrong."""
    bad: tuple[dict[str, Any], ...] = (
        {"scopes": ()},
        {"scopes": ["agent:*"]},
        {"scopes": ("",)},
        {"max_staleness": 0},
        {"max_staleness": float("nan")},
        {"max_entries": 0},
        {"max_bytes": 5},
        {"max_value_bytes": 0},
        {"max_scopes": 0},
    )
    for wrong in bad:
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            NearCache(**wrong)
    with pytest.raises(InvalidArgumentError, match="near_cache must be a NearCache or None"):
        Options(near_cache=True)  # type: ignore[arg-type]
