"""Who reads along while a scope is put back: watches, caches, timelines, agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgpack
import pytest
from fix_restored import Restoring
from fix_state import Raw, Store, until
from fix_watch import BEGINNING, nothing_more, take, told

from llmspell_dist import ConflictError, NearCache, Options, Spell, StateManager, blocking, connect
from llmspell_dist.agents.model import AgentState
from llmspell_dist.changes import Op
from llmspell_dist.correlation import EntryKind
from llmspell_dist.hooks import CachingHook
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import Modified
from llmspell_dist.redis.commits import change
from llmspell_dist.revision import Revision
from llmspell_dist.watch import buffer as buffers

pytestmark = pytest.mark.integration
ALICE, BOB = "agent:alice", "agent:bob"


# --- watches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tell", [True, False], ids=["told", "bell-alone"])
async def test_a_watch_begins_anew(state: StateManager, restoring: Restoring, tell: bool) -> None:
    """A reset, what is there, and then what happens: once, in order, without an error."""
    await state.set(ALICE, "a", 1)
    await state.set(ALICE, "b", 1)
    kept = restoring.keep(ALICE)
    async with state.watch(ALICE) as watch, state.watch(ALICE, prefix="b") as some:
        await state.set(ALICE, "a", 2)
        await state.set(ALICE, "c", 2)
        marker = restoring.begin()
        await state.set(ALICE, "b", 2)
        swapped = restoring.swap(ALICE, kept, tell=tell)
        assert told(await take(watch, 3)) == [("set", "a", 2), ("set", "c", 2), ("set", "b", 2)]
        anew = await take(watch, 3)
        assert told(anew[:1]) == [("reset", "", None)]
        assert sorted(told(anew[1:])) == [("snapshot", "a", 1), ("snapshot", "b", 1)]
        assert {one.revision for one in anew[1:]} == {marker}
        assert watch.revision == swapped
        await state.set(ALICE, "a", 3)
        assert told(await take(watch, 1)) == [("set", "a", 3)]
        assert told(await take(some, 3)) == [
            ("set", "b", 2),
            ("reset", "", None),
            ("snapshot", "b", 1),
        ]
        assert await nothing_more(watch)
        assert await nothing_more(some)


async def test_one_who_comes_back_is_told_too(state: StateManager, restoring: Restoring) -> None:
    """From the first change, from before the restore, from its beginning, from in between."""
    since = [BEGINNING, await state.set(ALICE, "a", 1)]
    kept = restoring.keep(ALICE)
    since.append(await state.set(ALICE, "a", 2))
    since.append(restoring.begin())
    since.append(await state.set(ALICE, "a", 3))
    swapped = restoring.swap(ALICE, kept)
    await state.set(ALICE, "a", 4)
    for place, revision in enumerate(since):
        # What is behind the restore, the snapshot has already.
        earlier = [1, 2, 3][place:] if place < 3 else [3][place - 3 :]
        expected = [("set", "a", value) for value in earlier]
        async with state.watch(ALICE, since=revision) as watch:
            changes = await take(watch, len(expected) + 2)
            assert told(changes) == [*expected, ("reset", "", None), ("snapshot", "a", 4)]
            assert await nothing_more(watch)
    async with state.watch(ALICE, since=swapped) as watch:
        assert told(await take(watch, 1)) == [("set", "a", 4)]
    (restored,) = [one for one in await state.history(ALICE, "a") if one.op == "restored"]
    async with state.watch(ALICE, since=restored) as watch:
        assert told(await take(watch, 1)) == [("set", "a", 4)]


async def test_a_place_moves_only_when_the_snapshot_is_handed_out(
    state: StateManager, restoring: Restoring
) -> None:
    """Who stops in the middle of it begins it again."""
    for key in "abc":
        await state.set(ALICE, key, 1)
    kept = restoring.keep(ALICE)
    last = await state.set(ALICE, "d", 1)
    swapped = restoring.whole(ALICE, kept)
    async with state.watch(ALICE, since=last) as watch:
        assert told(await take(watch, 1)) == [("reset", "", None)]
        for _ in range(2):
            await take(watch, 1)
            assert watch.revision == last
        await take(watch, 1)
        assert watch.revision == swapped


async def test_an_emptied_scope_is_a_reset_alone(state: StateManager, restoring: Restoring) -> None:
    """Also for a prefix that nothing has."""
    await state.set(ALICE, "a", 1)
    async with state.watch(ALICE) as watch:
        swapped = restoring.whole(ALICE, {})
        assert told(await take(watch, 1)) == [("reset", "", None)]
        assert watch.revision == swapped
        await state.set(ALICE, "a", 2)
        assert told(await take(watch, 1)) == [("set", "a", 2)]


async def test_a_large_scope_is_scanned(state: StateManager, restoring: Restoring) -> None:
    """Larger than what is read at once, and with another restore and writes meanwhile."""
    for first in (0, 750):
        await state.set_many(ALICE, {f"k{number}": number for number in range(first, first + 750)})
    kept = restoring.keep(ALICE)
    async with state.watch(ALICE) as watch:
        restoring.whole(ALICE, kept)
        assert told(await take(watch, 1)) == [("reset", "", None)]
        held = {one.key: one.value for one in await take(watch, 700)}
        await state.set(ALICE, "k3", "new")
        restoring.whole(ALICE, kept)
        await state.set(ALICE, "k4", "last")
        resets = 0
        while not resets or held.get("k4") != "last" or len(held) < 1500:
            (one,) = await take(watch, 1)
            if one.op == "reset":
                held, resets = {}, resets + 1
            else:
                held[one.key] = one.value
        assert resets == 1
        assert held == {key: value async for key, value in state.items(ALICE)}


async def test_a_slow_consumer_far_behind_comes_to_the_same(
    state: StateManager, restoring: Restoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffer is full, and the restore lies in pages of the log that it reads on its way."""
    monkeypatch.setattr(buffers, "MAX_ENTRIES", 10)
    await state.set(ALICE, "k", -1)
    kept = restoring.keep(ALICE)
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "k", -2)
        assert told(await take(watch, 1)) == [("set", "k", -2)]
        for number in range(300):
            await state.set(ALICE, "k", number)
        restoring.whole(ALICE, kept)
        for number in range(300, 600):
            await state.set(ALICE, "k", number)
        assert [one.value for one in await take(watch, 300)] == list(range(300))
        assert told(await take(watch, 2)) == [("reset", "", None), ("snapshot", "k", 599)]
        assert await nothing_more(watch)


async def test_waiting_for_a_value_sees_what_was_restored(
    state: StateManager, restoring: Restoring
) -> None:
    """A value that comes back, one that goes; and nobody is told that a key is gone that is not."""
    await state.set(ALICE, "k", "old")
    kept = restoring.keep(ALICE)
    await state.set(ALICE, "k", "new")
    await state.set(ALICE, "late", 1)
    seen: list[Any] = []

    def is_old(value: Any) -> bool:
        seen.append(value)
        return bool(value == "old")

    back = asyncio.create_task(state.wait_for(ALICE, "k", is_old, timeout=10))
    gone = asyncio.create_task(
        state.wait_for(ALICE, "late", lambda value: value is None, timeout=10)
    )
    await until(lambda: seen == ["new"])
    restoring.whole(ALICE, kept)
    assert await back == "old"
    assert await gone is None
    assert set(seen) == {"new", "old"}


async def test_the_blocking_surface_sees_the_same(
    url: str, namespace: str, restoring: Restoring
) -> None:
    """Watch, wait_for, history and the value at a moment."""

    def read() -> None:
        with blocking.connect(url, namespace=namespace) as spell:
            state = spell.state
            first = state.set(ALICE, "k", "old")
            kept = restoring.keep(ALICE)
            with state.watch(ALICE) as watch:
                last = state.set(ALICE, "k", "new")
                swapped = restoring.whole(ALICE, kept)
                changes = [watch.next(10) for _ in range(3)]
                assert [(one.op, one.value) for one in changes if one is not None] == [
                    ("set", "new"),
                    ("reset", None),
                    ("snapshot", "old"),
                ]
                assert watch.revision == swapped
            assert state.wait_for(ALICE, "k", lambda value: value == "old", timeout=5) == "old"
            assert [one.op for one in state.history(ALICE, "k")] == ["restored", "set", "set"]
            assert state.get_at(ALICE, "k", last) == "new"
            assert state.get_at(ALICE, "k", swapped) == state.get_at(ALICE, "k", first) == "old"

    await asyncio.to_thread(read)


# --- the near cache -------------------------------------------------------------------------------


@pytest.fixture
async def pair(url: str, namespace: str) -> AsyncIterator[tuple[Spell, Spell]]:
    """Two clients with a near cache, which keep what they read of a scope."""
    options = Options(namespace=namespace, near_cache=NearCache())
    async with connect(url, options=options) as one, connect(url, options=options) as two:
        for spell in (one, two):
            assert spell.near_cache is not None
            await spell.near_cache.warm(ALICE)
        yield one, two


def caught_up(cached: Any, revision: Revision) -> bool:
    """Whether a near cache knows what was done to a scope up to a revision."""
    return bool(cached.at == revision and not cached.suspect)


@pytest.mark.parametrize("tell", [True, False], ids=["told", "bell-alone"])
async def test_a_near_cache_drops_the_scope(
    pair: tuple[Spell, Spell], restoring: Restoring, tell: bool
) -> None:
    """Whoever keeps it; what was restored is kept in turn, although its revision is older."""
    one, two = pair
    await one.state.set(ALICE, "k", "old")
    kept = restoring.keep(ALICE)
    marker = restoring.begin()
    between = await one.state.set(ALICE, "k", "new")
    await one.state.set(ALICE, "late", 1)
    for spell in pair:
        assert await spell.state.get(ALICE, "k") == "new"
        assert await spell.state.get(ALICE, "late") == 1
    assert marker < between
    swapped = restoring.swap(ALICE, kept, tell=tell)
    for spell in pair:
        near: Any = spell.near_cache
        (cached,) = near._by_hash.values()
        await until(partial(caught_up, cached, swapped))
        assert await spell.state.get(ALICE, "k") == "old"
        assert await spell.state.get(ALICE, "late") is None
        hits = near.stats().hits
        assert await spell.state.get(ALICE, "k") == "old"
        assert near.stats().hits == hits + 1
    await two.state.set(ALICE, "k", "newest")
    (cached,) = one.near_cache._by_hash.values()  # type: ignore[union-attr]
    await until(lambda: cached.at != swapped)
    assert await one.state.get(ALICE, "k") == "newest"


async def test_one_that_restores_tells_its_own_near_cache(
    pair: tuple[Spell, Spell], restoring: Restoring
) -> None:
    """By a change like those of commits: then it does not depend on a message."""
    spell, _ = pair
    near: Any = spell.near_cache
    await spell.state.set(ALICE, "k", "old")
    kept = restoring.keep(ALICE)
    await spell.state.set(ALICE, "k", "new")
    assert await spell.state.get(ALICE, "k") == "new"
    core = spell.state._driver.core
    restoring.whole(ALICE, kept)
    near.wrote(core.commit((core.scope_key(ALICE),), (change(Op.RESTORED, b"", b""),)))
    assert await spell.state.get(ALICE, "k") == "old"


# --- hooks ----------------------------------------------------------------------------------------


async def test_kept_results_of_hooks_go(spell: Spell, restoring: Restoring) -> None:
    """Told by whoever restores, as of other writes of this client."""
    await spell.state.set(ALICE, "k", "old")
    kept = restoring.keep(ALICE)
    await spell.state.set(ALICE, "k", "new")
    spell.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
    assert await spell.state.get(ALICE, "k") == "new"
    restoring.whole(ALICE, kept)
    assert await spell.state.get(ALICE, "k") == "new"  # nobody has told yet
    core = spell.state._driver.core
    lanes: Any = spell.state._driver.lanes
    lanes._near.wrote(core.commit((core.scope_key(ALICE),), (change(Op.RESTORED, b"", b""),)))
    assert await spell.state.get(ALICE, "k") == "old"


async def test_hooks_see_what_a_watch_gives_out(spell: Spell, restoring: Restoring) -> None:
    """The snapshot after a restore passes them as changes do."""
    await spell.state.set(ALICE, "k", "secret")
    kept = restoring.keep(ALICE)

    async def mask(ctx: Any) -> Any:
        return Modified({"value": "masked"}) if ctx.operation_type == "watch" else None

    spell.hooks.register(P.AFTER_STATE_READ, mask)
    async with spell.state.watch(ALICE) as watch:
        restoring.whole(ALICE, kept)
        assert told(await take(watch, 2)) == [("reset", "", None), ("snapshot", "k", "masked")]


# --- timelines ------------------------------------------------------------------------------------


async def test_a_timeline_names_the_restore(
    spell: Spell, restoring: Restoring, raw: Raw, store: Store
) -> None:
    """It was done in a correlation, as any commit."""
    await spell.state.set(ALICE, "k", 1)
    kept = restoring.keep(ALICE)
    swapped = restoring.whole(ALICE, kept, meta={"c": "repair", "a": "operator"})
    raw("RPUSH", store.space.correlation_log("0", "repair"), swapped.packed)
    timeline = await spell.correlation.timeline("repair")
    (entry,) = timeline
    assert (entry.kind, entry.type) == (EntryKind.CHANGE, "state.restored")
    assert (entry.source, entry.target) == ("operator", ALICE)
    (logged,) = entry.detail.changes
    assert logged.op == Op.RESTORED


# --- the log itself -------------------------------------------------------------------------------


async def test_the_log_lists_the_beginning_and_each_scope(
    spell: Spell, restoring: Restoring
) -> None:
    """The beginning is of no scope; the change of a scope says by which restore."""
    await spell.state.set(ALICE, "k", 1)
    kept = restoring.keep(ALICE)
    marker = restoring.begin()
    swapped = restoring.swap(ALICE, kept)
    _, first, second = await spell.log.entries()
    assert (first.revision, second.revision) == (marker, swapped)
    (begun,), (done,) = first.changes, second.changes
    assert (begun.op, begun.scope, begun.key) == (Op.RESTORED, "", "")
    assert (done.op, done.scope, done.key) == (Op.RESTORED, ALICE, "")
    assert done.payload is not None
    said = msgpack.unpackb(done.payload)
    assert (said["r"], said["n"]) == (marker.packed, 1)


# --- agents ---------------------------------------------------------------------------------------


async def test_an_agent_that_was_restored_is_read_and_saved(
    spell: Spell, restoring: Restoring
) -> None:
    """What was loaded before cannot be saved over it; what is loaded after can."""
    agents = spell.agents
    state = AgentState.new("alice", "researcher")
    state.add_message("user", "first")
    await agents.save(state)
    kept = restoring.keep(ALICE)
    handle = agents.agent("alice")
    await handle.refresh()
    await handle.add_message("user", "lost")
    newer = await agents.load("alice")
    restoring.whole(ALICE, kept)
    newer.context["a"] = 1
    with pytest.raises(ConflictError):
        await agents.save(newer)
    assert await agents.load("alice") == state
    # The handle does not take what it had for what is there.
    await handle.add_message("user", "second")
    await handle.set_context(b=2)
    handle.state.metadata.tags.append("x")
    with pytest.raises(ConflictError):
        await handle.save()
    await handle.refresh()
    assert [one.content for one in handle.state.conversation] == ["first", "second"]
    assert handle.state == await agents.load("alice")
    handle.state.metadata.tags.append("x")
    await handle.save()
    assert handle.state == await agents.load("alice")


async def test_an_agent_is_forked_from_around_a_restore(spell: Spell, restoring: Restoring) -> None:
    """As it was before, in between, and after."""
    agents = spell.agents
    state = AgentState.new("alice", "researcher")
    state.context["n"] = "kept"
    await agents.save(state)
    kept = restoring.keep(ALICE)
    state.context["n"] = "newer"
    last = await agents.save(state)
    marker = restoring.begin()
    swapped = restoring.swap(ALICE, kept)
    for number, (at, expected) in enumerate(
        [(last, "newer"), (marker, "newer"), (swapped, "kept")]
    ):
        await agents.fork("alice", f"f{number}", at=at)
        assert (await agents.load(f"f{number}")).context == {"n": expected}
