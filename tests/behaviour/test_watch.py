"""Watching a scope: what comes, in which form, and from where on."""

from __future__ import annotations

import asyncio
import gc
import operator
import time
from functools import partial
from typing import Any

import pytest
from fix_servers import behind
from fix_state import Expiring, Raw, Store, sweep_all, until
from fix_watch import BEGINNING, logged, nothing_more, take, told

from llmspell_dist import (
    KEEP,
    Change,
    ClosedError,
    HistoryDivergedError,
    InvalidArgumentError,
    LimitError,
    Revision,
    Spell,
    SpellError,
    StateClass,
    StateManager,
    WaitTimeoutError,
    Watch,
    WatchTrimmedError,
    connect,
)
from llmspell_dist.watch import buffer as buffers
from llmspell_dist.watch import tail
from llmspell_dist.watch.bell import Told

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]

ALICE, BOB = "agent:alice", "agent:bob"


# --- what comes -----------------------------------------------------------------------------------


async def test_every_kind_of_change_comes_as_history_has_it(state: StateManager) -> None:
    """Set, numbers, lists, maps, expiry, removal, in the order of the commits."""
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "mood", {"is": "curious"})
        await state.increment(ALICE, "count", 2)
        await state.append(ALICE, "list", "a", "b")
        await state.merge(ALICE, "map", {"x": 1, "y": 2})
        await state.merge(ALICE, "map", {"z": 3}, remove=["x"])
        await state.expire(ALICE, "mood", 1000)
        await state.delete(ALICE, "mood")
        changes = await take(watch, 7)
        assert told(changes) == [
            ("set", "mood", {"is": "curious"}),
            ("increment", "count", 2),
            ("append", "list", ("a", "b")),
            ("merge", "map", {"x": 1, "y": 2}),
            ("merge", "map", {"z": 3}),
            ("ttl", "mood", None),
            ("delete", "mood", None),
        ]
        assert changes[4].removed == ("x",)
        assert list(reversed(await state.history(ALICE, "mood"))) == [
            change for change in changes if change.key == "mood"
        ]
        assert watch.revision == changes[-1].revision
        assert await nothing_more(watch)


async def test_a_commit_over_many_keys_and_scopes_comes_as_its_part(
    state: StateManager, store: Store
) -> None:
    """Only the changes of the scope that is watched, each once; the place moves with the last."""
    async with state.watch(ALICE) as watch:
        begun = watch.revision
        async with state.transaction() as tx:
            tx.set(ALICE, "one", 1)
            tx.set(BOB, "other", 0)
            tx.set(ALICE, "two", 2)
            tx.set(BOB, "another", 0)
            tx.set(ALICE, "three", 3)
        (first,) = await take(watch, 1)
        assert watch.revision == begun
        changes = [first, *await take(watch, 2)]
        assert sorted(told(changes)) == [("set", "one", 1), ("set", "three", 3), ("set", "two", 2)]
        assert {change.revision for change in changes} == {tx.revision}
        assert watch.revision == tx.revision
        assert [(c.revision, c.key, 1) for c in changes] == logged(store, ALICE)


async def test_commits_of_one_group_come_in_order(state: StateManager) -> None:
    """Fifty callers at once share script calls; what comes is the log."""
    async with state.watch(ALICE) as watch:
        revisions = await asyncio.gather(*[state.set(ALICE, f"k{i}", i) for i in range(50)])
        changes = await take(watch, 50)
        assert [change.revision for change in changes] == sorted(revisions)
        assert await nothing_more(watch)


async def test_clear_copy_and_move_come(state: StateManager) -> None:
    """A clear is one change without a key; what moves leaves one scope and enters another."""
    await state.set_many(ALICE, {"a": 1, "b": [1, 2]})
    async with state.watch(ALICE) as from_alice, state.watch(BOB) as to_bob:
        await state.move_scope(ALICE, BOB)
        assert sorted(told(await take(from_alice, 2))) == [
            ("delete", "a", None),
            ("delete", "b", None),
        ]
        moved = await take(to_bob, 2)
        assert sorted((c.op, c.key) for c in moved) == [("set", "a"), ("set", "b")]
        await state.copy_scope(BOB, ALICE)
        copied = await take(from_alice, 2)
        assert sorted(c.key for c in copied) == ["a", "b"]
        await state.clear(BOB)
        assert told(await take(to_bob, 1)) == [("clear", "", None)]
        assert await nothing_more(from_alice)


async def test_an_expiry_comes_when_the_sweeper_removes_the_key(
    state: StateManager, spell: Spell, expiring: Expiring
) -> None:
    """As ``expired``; and before the write that finds the key expired."""
    await expiring(ALICE, gone=1, again=1)
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "again", 2)
        await sweep_all(spell)
        changes = await take(watch, 3)
        assert told(changes) == [
            ("expired", "again", None),
            ("set", "again", 2),
            ("expired", "gone", None),
        ]


@pytest.mark.parametrize("size", [10, 20_000, 400_000])
async def test_values_of_any_size_come(state: StateManager, size: int) -> None:
    """What does not fit into a message is read from the log."""
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "text", "x" * size)
        await state.set(ALICE, "after", 1)
        first, second = await take(watch, 2)
        assert (first.key, first.has_value) == ("text", True)
        assert first.value == "x" * size
        assert told([second]) == [("set", "after", 1)]


async def test_what_the_class_keeps_out_of_the_log_comes_without_its_value(
    state: StateManager,
) -> None:
    """That it changed is told all the same."""
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "bulk", "x", state_class=StateClass.BULK)
        (change,) = await take(watch, 1)
        assert (change.op, change.key, change.has_value) == ("set", "bulk", False)


@pytest.mark.library_only("through a sidecar the place moves with signs of life only")
async def test_a_prefix_leaves_the_other_keys_out(state: StateManager) -> None:
    """But not a clear; and the place moves on over what is left out."""
    async with state.watch(ALICE, prefix="in:") as watch:
        await state.set(ALICE, "in:1", 1)
        await state.set(ALICE, "out", 2)
        last = await state.set(ALICE, "in:2", 3)
        await state.set(ALICE, "out", 4)
        assert told(await take(watch, 2)) == [("set", "in:1", 1), ("set", "in:2", 3)]
        assert watch.revision == last
        assert await nothing_more(watch)
        assert watch.revision > last
        await state.clear(ALICE)
        assert told(await take(watch, 1)) == [("clear", "", None)]


async def test_leases_that_are_broken_are_no_changes_of_a_key(spell: Spell) -> None:
    """They stand in the scope's log, and the watch goes on over them."""
    async with spell.state.watch(ALICE) as watch:
        lease = await spell.leases.acquire(ALICE, on_lost="event")
        await spell.leases.break_lease(ALICE, reason="test")
        await spell.state.set(ALICE, "k", 1)
        assert told(await take(watch, 1)) == [("set", "k", 1)]
        assert lease is not None


async def test_watchers_get_values_of_their_own(state: StateManager) -> None:
    """What one does with a value, the other does not see."""
    async with state.watch(ALICE) as one, state.watch(ALICE) as two:
        await state.set(ALICE, "k", {"a": []})
        (first,), (second,) = await take(one, 1), await take(two, 1)
        first.value["a"].append(1)
        assert second.value == {"a": []}


# --- from where on --------------------------------------------------------------------------------


async def test_a_watch_goes_on_after_a_revision_or_a_change(state: StateManager) -> None:
    """Each later change once, as if it had never been away."""
    revisions = [await state.set(ALICE, "k", number) for number in range(10)]
    async with state.watch(ALICE, since=revisions[3]) as watch:
        changes = await take(watch, 6)
        assert [change.value for change in changes] == [4, 5, 6, 7, 8, 9]
        await state.set(ALICE, "k", 10)
        assert [change.value for change in await take(watch, 1)] == [10]
    async with state.watch(ALICE, since=changes[2]) as watch:
        assert [change.value for change in await take(watch, 4)] == [7, 8, 9, 10]
        assert await nothing_more(watch)


async def test_a_watch_goes_on_within_a_commit(state: StateManager) -> None:
    """After a change of a commit over many keys its other changes come, and no change twice."""
    async with state.watch(ALICE) as watch:
        await state.set_many(ALICE, {f"k{i}": i for i in range(5)})
        changes = await take(watch, 5)
    for place, change in enumerate(changes):
        async with state.watch(ALICE, since=change) as watch:
            assert await take(watch, 4 - place) == changes[place + 1 :]
            assert await nothing_more(watch)


async def test_a_revision_of_another_scope_is_a_moment(state: StateManager) -> None:
    """What the scope did after it comes."""
    await state.set(ALICE, "k", 1)
    moment = await state.set(BOB, "k", 0)
    await state.set(ALICE, "k", 2)
    async with state.watch(ALICE, since=moment) as watch:
        assert told(await take(watch, 1)) == [("set", "k", 2)]
        assert await nothing_more(watch)
    last = await state.set(BOB, "k", 0)
    async with state.watch(ALICE, since=last) as watch:
        assert await nothing_more(watch)
        await state.set(ALICE, "k", 3)
        assert told(await take(watch, 1)) == [("set", "k", 3)]


async def test_the_whole_past_comes_from_the_beginning(
    state: StateManager, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages, of revisions and of entries, without the entries of other scopes."""
    monkeypatch.setattr(tail, "PAGE_ENTRIES", 10)
    monkeypatch.setattr(tail, "LOOKED_AT", 25)
    for number in range(60):
        await state.set(ALICE, "k", number)
        await state.set(BOB, "k", number)
    async with state.watch(ALICE, since=BEGINNING) as watch:
        changes = await take(watch, 60)
        assert [change.value for change in changes] == list(range(60))
        assert [(c.revision, c.key, 1) for c in changes] == logged(store, ALICE)
        assert await nothing_more(watch)


async def test_changes_during_the_catching_up_come_too(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that never pauses is caught up with."""
    monkeypatch.setattr(tail, "PAGE_ENTRIES", 5)
    for number in range(30):
        await state.set(ALICE, "k", number)

    async def write() -> None:
        for number in range(30, 100):
            await state.set(ALICE, "k", number)

    async with state.watch(ALICE, since=BEGINNING) as watch:
        writing = asyncio.create_task(write())
        assert [change.value for change in await take(watch, 100)] == list(range(100))
        await writing


def has_begun(watch: Watch) -> bool:
    """Whether a watch knows where it stands."""
    return watch.revision is not None


@pytest.mark.library_only("it looks at subscriptions of this process")
async def test_a_watch_without_a_block_begins_with_its_first_step(state: StateManager) -> None:
    """And ends with its last reference."""
    await state.set(ALICE, "k", 1)
    seen = []
    async for change in state.watch(ALICE, since=BEGINNING):
        seen.append(change.value)
        break
    assert seen == [1]
    watch = state.watch(ALICE)
    assert watch.revision is None
    waiting = asyncio.ensure_future(anext(watch))
    await until(partial(has_begun, watch))
    await state.set(ALICE, "k", 2)
    assert (await waiting).value == 2
    del watch, waiting
    gc.collect()
    feeds = state._watches.feeds  # type: ignore[union-attr]
    await until(lambda: len(feeds) == 0)


# --- a slow consumer, many consumers --------------------------------------------------------------


@pytest.mark.library_only("through a sidecar the buffer is the sidecar's")
async def test_a_slow_consumer_loses_nothing_and_holds_little(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its buffer cannot hold is read from the log."""
    monkeypatch.setattr(buffers, "MAX_ENTRIES", 10)
    async with state.watch(ALICE) as watch:
        for number in range(35):
            await state.set(ALICE, "k", number)
            assert len(watch._buffer._entries) <= 11
        await until(lambda: watch.overflows > 0 or watch._buffer.behind)
        changes = await take(watch, 35)
        assert [change.value for change in changes] == list(range(35))
        assert await nothing_more(watch)
        await state.set(ALICE, "k", "live again")
        assert [c.value for c in await take(watch, 1)] == ["live again"]
        monkeypatch.setattr(buffers, "MAX_BYTES", 1000)
        monkeypatch.setattr(buffers, "MAX_ENTRIES", 1000)
        overflows = watch.overflows
        for number in range(10):
            await state.set(ALICE, "k", str(number) * 500)
        await until(lambda: watch.overflows > overflows or watch._buffer.behind)
        assert [c.value[:1] for c in await take(watch, 10)] == list("0123456789")


@pytest.mark.library_only("it looks at subscriptions of this process")
async def test_watchers_of_a_scope_share_one_subscription(
    spell: Spell, state: StateManager, raw: Raw, store: Store
) -> None:
    """And nothing is subscribed for what nobody watches."""
    channel = store.hash_of(ALICE)
    watches = [state.watch(ALICE) for _ in range(5)]
    for watch in watches:
        await watch.start()
    assert raw("PUBSUB", "NUMSUB", channel)[1] == 1
    await state.set(ALICE, "k", 1)
    assert [told(await take(watch, 1)) for watch in watches] == [[("set", "k", 1)]] * 5
    await watches[0].aclose()
    assert raw("PUBSUB", "NUMSUB", channel)[1] == 1
    await asyncio.gather(*[watch.aclose() for watch in watches])
    assert raw("PUBSUB", "NUMSUB", channel)[1] == 0
    await state.set(ALICE, "k", 2)
    assert raw("PUBSUB", "NUMSUB", channel, store.hash_of(BOB))[1::2] == [0, 0]


@pytest.mark.library_only("it looks into the buffer")
async def test_other_scopes_cost_a_watch_nothing(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a message, and not a request."""
    asked: list[Any] = []
    async with state.watch(ALICE) as watch:
        watches: Any = state._watches
        hub = watches.feeds._hub
        heard, run = hub._wire.pushes, watches.run

        async def counted(steps: Any) -> Any:
            asked.append(steps)
            return await run(steps)

        monkeypatch.setattr(watches, "run", counted)
        await asyncio.gather(*[state.set(f"agent:{i}", "k", i) for i in range(200)])
        assert await nothing_more(watch)
        assert (hub._wire.pushes - heard, asked) == (0, [])
        await state.set(ALICE, "k", 1)
        assert told(await take(watch, 1)) == [("set", "k", 1)]
        assert asked == []


async def test_two_tasks_cannot_iterate_one_watch(state: StateManager) -> None:
    """The second is told so."""
    async with state.watch(ALICE) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        with pytest.raises(InvalidArgumentError, match="one task at a time"):
            await take(watch, 1)
        await state.set(ALICE, "k", 1)
        assert (await waiting).value == 1


async def test_a_step_that_is_cancelled_loses_nothing(state: StateManager) -> None:
    """The next one has what the cancelled one would have had."""
    async with state.watch(ALICE) as watch:
        for number in range(5):
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            assert not waiting.done()
            written = asyncio.ensure_future(state.set(ALICE, "k", number))
            for _ in range(number):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await written
            given = (await take(watch, 1))[0] if waiting.cancelled() else waiting.result()
            assert given.value == number


# --- the end --------------------------------------------------------------------------------------


async def test_a_closed_watch_ends_its_loop(state: StateManager) -> None:
    """Who waits in it goes on after the loop."""
    watch = state.watch(ALICE)
    await watch.start()

    async def follow() -> list[Change]:
        return [change async for change in watch]

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    await watch.aclose()
    assert await following == []
    await watch.aclose()
    with pytest.raises(ClosedError):
        await watch.start()


async def test_closing_the_client_ends_its_watches(url: str, namespace: str) -> None:
    """With an error that says so."""
    async with connect(url, namespace=namespace) as spell:
        watch = spell.state.watch(ALICE)
        await watch.start()
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="the client is closed"):
        await waiting
    with pytest.raises(ClosedError):
        await take(watch, 1)
    await watch.aclose()


# --- a log that does not reach back ---------------------------------------------------------------


async def trimmed(state: StateManager, raw: Raw, store: Store) -> Revision:
    """Write ten changes, and trim all but the last three away; return the first one's revision."""
    first = await state.set(ALICE, "k0", 0)
    for number in range(1, 10):
        await state.set(ALICE, f"k{number}", number)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 3)
    return first


async def test_a_trimmed_log_is_told(state: StateManager, raw: Raw, store: Store) -> None:
    """With where it begins; and again at every further step."""
    first = await trimmed(state, raw, store)
    async with state.watch(ALICE, since=first) as watch:
        with pytest.raises(WatchTrimmedError) as raised:
            await take(watch, 1)
        assert raised.value.since == first
        assert raised.value.floor == store.log()[0].revision
        assert "snapshot" in str(raised.value)
        with pytest.raises(WatchTrimmedError):
            await take(watch, 1)


@pytest.mark.parametrize("large", [False, True], ids=["at once", "scanned"])
async def test_a_trimmed_log_can_be_made_up_for_by_a_snapshot(
    state: StateManager, raw: Raw, store: Store, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reset, then what is there, then each later change once."""
    if large:
        monkeypatch.setattr("llmspell_dist.state.reads.ALL_KEYS", 5)
    first = await trimmed(state, raw, store)
    async with state.watch(ALICE, since=first, on_trimmed="snapshot") as watch:
        changes = await take(watch, 11)
        assert told(changes[:1]) == [("reset", "", None)]
        assert sorted(told(changes[1:])) == [("snapshot", f"k{i}", i) for i in range(10)]
        assert {c.key: c.revision for c in changes[1:]} == {
            entry.key: entry.revision
            for entry in [await state.get_record(ALICE, f"k{i}") for i in range(10)]
            if entry is not None
        }
        assert watch.revision == (await state.stat(ALICE)).revision
        assert await nothing_more(watch)
        await state.set(ALICE, "k1", "later")
        assert told(await take(watch, 1)) == [("set", "k1", "later")]


@pytest.mark.library_only("it steps through a scan")
async def test_a_scan_and_what_happens_meanwhile_are_put_together(
    state: StateManager, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that follows the changes ends up with what is there; no change comes twice."""
    monkeypatch.setattr("llmspell_dist.state.reads.ALL_KEYS", 5)
    monkeypatch.setattr("llmspell_dist.watch.snapshot._PAGE_KEYS", 3)
    first = await trimmed(state, raw, store)
    for number in range(10, 700):  # no longer one listpack: scanned in pages
        await state.set(ALICE, f"k{number}", number)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    model: dict[str, Any] = {}
    appended: list[Any] = []
    async with state.watch(ALICE, since=first, on_trimmed="snapshot") as watch:
        step = 0
        async for change in watch:
            if change.op in ("reset", "clear"):
                model.clear()
            elif change.op in ("set", "snapshot"):
                model[change.key] = change.value
                if change.key == "log":
                    appended = list(change.value)
            elif change.op == "append":
                appended += change.value
                model[change.key] = list(appended)
            elif change.op == "delete":
                model.pop(change.key, None)
            step += 1
            if step < 400 and step % 4 == 0:
                await state.append(ALICE, "log", step)
                await state.set(ALICE, f"k{step}", "new")
                await state.delete(ALICE, f"k{step + 1}")
            if change.key == "last":
                break
            if step >= 400 and watch._scan is None:
                await state.set(ALICE, "last", 1)
    assert model == {key: value async for key, value in state.items(ALICE)}
    assert appended == list(range(4, 400, 4))


@pytest.mark.library_only("it steps through a scan")
@pytest.mark.parametrize("large", [False, True])
async def test_a_time_out_loses_nothing_of_a_snapshot(
    state: StateManager, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Whenever a step is cancelled: the reset comes first, then every key."""
    if large:
        monkeypatch.setattr("llmspell_dist.state.reads.ALL_KEYS", 1)
        monkeypatch.setattr("llmspell_dist.watch.snapshot._PAGE_KEYS", 2)
    since = await state.set(ALICE, "gone", 0)
    await state.delete(ALICE, "gone")
    await state.set_many(ALICE, {f"k{number}": number for number in range(5)})
    await state.set(BOB, "k", 1)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    watch = state.watch(ALICE, since=since, on_trimmed="snapshot")
    run = watch._watches.run
    patience, asked = 0, 0

    async def impatient(steps: Any) -> Any:
        """Give up at the next of all requests."""
        nonlocal asked

        def counted() -> Any:
            nonlocal asked
            reply = None
            while True:
                try:
                    request = steps.send(reply)
                except StopIteration as end:
                    return end.value
                asked += 1
                if asked > patience:
                    raise TimeoutError
                reply = yield request

        return await run(counted())

    ops: list[tuple[str, str]] = []
    async with watch:
        monkeypatch.setattr(watch._watches, "run", impatient)
        while len(ops) < 6:
            try:
                async with asyncio.timeout(10):
                    change = await anext(watch)
            except TimeoutError:
                patience, asked = patience + 1, 0
            else:
                ops.append((change.op, change.key))
    assert ops[0] == ("reset", "")
    assert sorted(ops[1:]) == [("snapshot", f"k{number}") for number in range(5)]
    assert patience > 1


@pytest.mark.library_only("it steps through a scan")
async def test_a_clear_during_a_scan_leaves_no_hole(
    state: StateManager, raw: Raw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written after the clear comes after it, although the scan had seen it."""
    monkeypatch.setattr("llmspell_dist.state.reads.ALL_KEYS", 5)
    first = await trimmed(state, raw, store)
    watch = state.watch(ALICE, since=first, on_trimmed="snapshot")
    everything = watch._watches.reads.everything

    def clear_first(scope: Any, name: str) -> Any:
        yield from state._scopes.clear(ALICE)
        many = {f"n{i}": i for i in range(8)}
        yield from state._writes.set_many(ALICE, many, KEEP, None, 1, None)
        return (yield from everything(scope, name))

    monkeypatch.setattr(watch._watches.reads, "everything", clear_first)
    async with watch:
        changes = await take(watch, 1 + 8 + 1 + 8)
    assert changes[0].op == "reset"
    assert {c.op for c in changes[1:9]} == {"snapshot"}
    assert changes[9].op == "clear"
    assert {c.key for c in changes[10:]} == {f"n{i}" for i in range(8)}


async def test_an_idle_scope_whose_entries_were_trimmed_is_not_trimmed(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """Nothing was missed: the scope is where the watch is."""
    revision = await state.set(ALICE, "k", 1)
    for number in range(5):
        await state.set(BOB, "k", number)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    async with state.watch(ALICE, since=revision) as watch:
        assert await nothing_more(watch)
        await state.set(ALICE, "k", 2)
        assert told(await take(watch, 1)) == [("set", "k", 2)]


async def test_a_change_in_the_middle_of_a_trimmed_commit_is_no_place_to_go_on_from(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """What else that commit did, nobody can tell any more; its revision is one."""
    before = await state.set(ALICE, "first", 0)
    await state.set_many(ALICE, {"a": 1, "b": 2})
    async with state.watch(ALICE, since=before) as watch:
        (change,) = await take(watch, 1)
    await state.set(BOB, "k", 1)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    async with state.watch(ALICE, since=change) as watch:
        with pytest.raises(WatchTrimmedError) as raised:
            await take(watch, 1)
        assert raised.value.floor == store.log()[0].revision
    async with state.watch(ALICE, since=change.revision) as watch:
        assert await nothing_more(watch)


async def test_snapshot_and_tail_by_hand(state: StateManager) -> None:
    """A snapshot says from which revision on to watch."""
    await state.set_many(ALICE, {"a": 1, "b": [1]})
    snapshot = await state.snapshot(ALICE)
    assert snapshot.values == {"a": 1, "b": [1]}
    assert snapshot.scope == ALICE
    await state.set(ALICE, "a", 2)
    async with state.watch(ALICE, since=snapshot.revision) as watch:
        assert told(await take(watch, 1)) == [("set", "a", 2)]
    nothing = await state.snapshot("agent:nobody")
    assert (nothing.revision, nothing.values) == (BEGINNING, {})
    async with state.watch("agent:nobody") as watch:
        place = watch.revision
    assert place == BEGINNING  # not None: a later watch since there must not begin later
    await state.set("agent:nobody", "k", 1)
    async with state.watch("agent:nobody", since=place) as watch:
        assert told(await take(watch, 1)) == [("set", "k", 1)]


async def test_a_scope_that_is_too_large_for_a_snapshot_is_refused(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to read it."""
    monkeypatch.setattr("llmspell_dist.state.reads.ALL_KEYS", 1)
    await state.set_many(ALICE, {"a": 1, "b": 2})
    with pytest.raises(LimitError, match=r"snapshot \(use items"):
        await state.snapshot(ALICE)


# --- a log that is another one --------------------------------------------------------------------


async def test_a_revision_that_the_log_never_had_is_a_divergence(state: StateManager) -> None:
    """It was lost, and what is there now is another history."""
    known = await state.set(ALICE, "k", 1)
    lost = Revision(known.ms, known.seq + 1000)
    await state.set(BOB, "k", 1)
    async with state.watch(ALICE, since=lost) as watch:
        with pytest.raises(HistoryDivergedError) as raised:
            await take(watch, 1)
    assert raised.value.last_common is None


@pytest.mark.library_only("it says by itself that a connection is back")
async def test_another_operation_at_the_same_revision_is_a_divergence(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """The last revision that both have is named, if the watch saw it."""
    store.intact = False
    async with state.watch(ALICE) as watch:
        common = await state.set(ALICE, "k", 1)
        last = await state.set(ALICE, "k", 2)
        await take(watch, 2)
        log = store.space.log("0")
        before, after = raw("XRANGE", log, "-", "+")
        raw("DEL", log)
        raw("XADD", log, str(common), *before[1])
        raw("XADD", log, str(last), *after[1][:5], b"\1" * 14)
        watch.resumed()  # as after a reconnect
        with pytest.raises(HistoryDivergedError) as raised:
            await take(watch, 1)
    assert raised.value.last_common == common


@pytest.mark.library_only("it says by itself that a connection is back")
async def test_a_flushed_server_is_a_divergence(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """Also if the scope was written again since."""
    store.intact = False
    async with state.watch(ALICE) as watch, state.watch(BOB) as other:
        await state.set(ALICE, "k", 1)
        await state.set(BOB, "k", 1)
        await take(watch, 1)
        await take(other, 1)
        for key in store.all_keys():
            raw("DEL", key)
        await state.set(ALICE, "k", 2)
        with pytest.raises(HistoryDivergedError):
            await take(watch, 1)
        other.resumed()
        with pytest.raises(HistoryDivergedError):
            await take(other, 1)


@pytest.mark.parametrize("since_then", ["at the same revision", "at an earlier one"])
@pytest.mark.library_only("it says by itself that a connection is back")
async def test_a_lost_history_that_begins_again_is_a_divergence_wherever_it_is(
    state: StateManager, raw: Raw, store: Store, since_then: str
) -> None:
    """In the same millisecond, or by a clock that was set back, revisions come a second time."""
    store.intact = False
    await state.set(ALICE, "other", 0)  # so that there is a log
    log = store.space.log("0")

    def set_clock_of_log(ms: int) -> None:
        raw("XDEL", log, raw("XADD", log, f"{ms}-0", "a", "b"))

    future = int(time.time() * 1000) + 3_600_000
    set_clock_of_log(future)
    async with state.watch(ALICE) as watch:
        first = await state.set(ALICE, "k", 1)
        (change,) = await take(watch, 1)
        assert (first.ms, change.revision) == (future, first)
        for key in store.all_keys():
            raw("DEL", key)
        if since_then == "at the same revision":
            set_clock_of_log(future)
        second = await state.set(ALICE, "k", 2)
        assert second <= first
        with pytest.raises(HistoryDivergedError):
            await take(watch, 1)


@pytest.mark.library_only("messages reach its own process")
async def test_a_message_that_comes_after_its_change_was_read_is_passed_over(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known what was read, so the log is not asked again, and nothing comes twice."""
    heard: list[Told] = []
    tell = Watch.told

    def listen(watch: Watch, told: Told) -> None:
        heard.append(told)
        tell(watch, told)

    monkeypatch.setattr(Watch, "told", listen)
    async with state.watch(ALICE) as watch:
        await state.set(ALICE, "k", 1)
        await state.set(ALICE, "k", 2)
        await until(lambda: len(heard) == 2)
        late = tuple(heard)
        for message in late:  # what was heard is not taken yet
            watch.told(message)
        await take(watch, 2)
        for message in late:
            watch.told(message)
        assert not watch._buffer.behind
        assert await nothing_more(watch)
        await state.set(ALICE, "k", 3)
        assert (await take(watch, 1))[0].value == 3


@pytest.mark.parametrize("since_then", [None, ALICE, BOB])
async def test_a_revision_from_before_a_total_loss_is_told(
    state: StateManager, raw: Raw, store: Store, since_then: str | None
) -> None:
    """A server that came back empty may have lost what this watch would have handed out."""
    store.intact = False
    await state.set(ALICE, "k", 0)
    done = await state.set(ALICE, "k", 1)
    for key in store.all_keys():
        raw("DEL", key)
    await until(lambda: int(time.time() * 1000) > done.ms)  # else the revision could come again
    if since_then is not None:
        await state.set(since_then, "k", "new")
    floor = store.log()[0].revision if since_then is not None else None
    async with state.watch(ALICE, since=done) as watch:
        with pytest.raises(WatchTrimmedError) as raised:
            await take(watch, 1)
    assert (raised.value.since, raised.value.floor) == (done, floor)
    async with state.watch(ALICE, since=done, on_trimmed="snapshot") as watch:
        assert (await take(watch, 1))[0].op == "reset"


async def test_a_moment_before_a_scope_began_passes_while_the_log_has_it(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """After that nobody can tell whether the scope had changes that are lost."""
    moment = await state.set(BOB, "k", 0)
    async with state.watch(ALICE, since=moment) as watch:
        assert await nothing_more(watch)
    await state.set(ALICE, "k", 1)
    async with state.watch(ALICE, since=moment) as watch:
        assert told(await take(watch, 1)) == [("set", "k", 1)]
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    async with state.watch(ALICE, since=moment) as watch:
        with pytest.raises(WatchTrimmedError):
            await take(watch, 1)


# --- bad input ------------------------------------------------------------------------------------


async def test_bad_arguments_are_refused_before_anything_is_sent(state: StateManager) -> None:
    """With what is wrong about them."""
    change = Change(BOB, "k", "set", Revision(1, 1), Revision(1, 1).time, has_value=False)
    reset = Change(ALICE, "", "reset", Revision(1, 1), Revision(1, 1).time, has_value=False)
    for arguments, said in (
        ({"scope": "nonsense"}, "scope"),
        ({"since": 5}, "since must be a Revision, a Change or None"),
        ({"since": change}, "since must be a change of this scope"),
        ({"since": reset}, "since must be a change that the log has"),
        ({"prefix": 5}, "prefix must be a str"),
        ({"on_trimmed": "ignore"}, "on_trimmed must be raise or snapshot"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            state.watch(**{"scope": ALICE, **arguments})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="predicate must be callable"):
        await state.wait_for(ALICE, "k", 5)  # type: ignore[arg-type]
    for timeout in (-1, "soon", float("nan")):
        with pytest.raises(InvalidArgumentError, match="timeout must be seconds"):
            await state.wait_for(ALICE, "k", bool, timeout=timeout)  # type: ignore[arg-type]


# --- waiting for a value --------------------------------------------------------------------------


async def test_waiting_for_a_value_that_is_there_returns_it(state: StateManager) -> None:
    """At once."""
    await state.set(ALICE, "status", "done")
    assert await state.wait_for(ALICE, "status", lambda value: value == "done") == "done"


async def test_waiting_sees_every_value(state: StateManager) -> None:
    """Also one that was there for a moment only; None stands for no value."""
    seen: list[Any] = []

    async def accepted(value: Any) -> bool:
        seen.append(value)
        return bool(value == "done")

    waiting = asyncio.ensure_future(state.wait_for(ALICE, "status", accepted, timeout=10))
    await until(lambda: seen == [None])
    await state.set(ALICE, "status", "started")
    await state.set(ALICE, "status-of-another", "done")
    await state.delete(ALICE, "status")
    await state.set(ALICE, "status", "done")
    await state.set(ALICE, "status", "over")
    assert await waiting == "done"
    assert seen == [None, "started", None, "done"]


async def test_waiting_for_what_is_appended_and_cleared(state: StateManager) -> None:
    """Lists and maps come whole."""
    waiting = asyncio.ensure_future(
        state.wait_for(ALICE, "list", lambda value: value is not None and len(value) == 3)
    )
    for number in range(3):
        await state.append(ALICE, "list", number)
    assert await waiting == [0, 1, 2]
    waiting = asyncio.ensure_future(state.wait_for(ALICE, "list", lambda value: value is None))
    await state.clear(ALICE)
    assert await waiting is None


async def test_waiting_sees_what_lists_maps_and_numbers_were_for_a_moment(
    spell: Spell, state: StateManager
) -> None:
    """Each change is judged by the value that it made, not by what is there by now."""
    writer = behind.get(spell, spell).state  # over one connection: two at once keep their order
    for key, accepted, first, then in (
        (
            "list",
            [1],
            partial(writer.append, ALICE, "list", 1),
            partial(writer.append, ALICE, "list", 2),
        ),
        (
            "map",
            {"a": 1},
            partial(writer.merge, ALICE, "map", {"a": 1}),
            partial(writer.merge, ALICE, "map", {"a": 2, "b": 3}),
        ),
        (
            "count",
            1,
            partial(writer.increment, ALICE, "count"),
            partial(writer.delete, ALICE, "count"),
        ),
    ):
        seen: list[Any] = []

        def as_wanted(value: Any, wanted: Any = accepted, seen: list[Any] = seen) -> bool:
            seen.append(value)
            return bool(value == wanted)

        waiting = asyncio.ensure_future(state.wait_for(ALICE, key, as_wanted, timeout=10))
        await until(partial(operator.eq, seen, [None]))
        await asyncio.gather(first(), then())
        assert await waiting == accepted
        assert seen == [None, accepted]


@pytest.mark.library_only("it looks at subscriptions of this process")
async def test_no_time_at_all_is_enough_for_a_value_that_is_there(state: StateManager) -> None:
    """And nothing is subscribed for it."""
    await state.set(ALICE, "k", 1)
    assert await state.wait_for(ALICE, "k", lambda value: value == 1, timeout=0) == 1
    with pytest.raises(WaitTimeoutError):
        await state.wait_for(ALICE, "k", lambda value: value == 2, timeout=0)
    assert len(state._watches.feeds) == 0  # type: ignore[union-attr]


@pytest.mark.library_only("it looks at subscriptions of this process")
async def test_waiting_ends_in_time(state: StateManager) -> None:
    """With an error that is a TimeoutError and names the key; nothing stays subscribed."""
    with pytest.raises(WaitTimeoutError, match="'k' of agent:alice") as raised:
        await state.wait_for(ALICE, "k", bool, timeout=0.01)
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.timeout_s == 0.01
    await until(lambda: len(state._watches.feeds) == 0)  # type: ignore[union-attr]


async def test_what_the_predicate_raises_comes_out(state: StateManager) -> None:
    """A TimeoutError of its own too."""

    def fails(value: Any) -> bool:
        raise TimeoutError("my own")

    with pytest.raises(TimeoutError, match="my own") as raised:
        await state.wait_for(ALICE, "k", fails, timeout=10)
    assert not isinstance(raised.value, SpellError)


async def test_a_lease_can_watch(spell: Spell) -> None:
    """The state of a lease has all that the client's has."""
    async with spell.leases.acquire(ALICE) as lease, lease.state.watch(ALICE) as watch:
        await lease.state.set(ALICE, "k", 1)
        assert told(await take(watch, 1)) == [("set", "k", 1)]
        assert await lease.state.wait_for(ALICE, "k", bool, timeout=1) == 1


@pytest.mark.library_only("it steps through the first look")
async def test_what_happens_in_a_gap_during_the_first_look_comes(
    state: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was on its way when messages were lost, and a commit with them."""
    watch = state.watch(ALICE)
    run = watch._watches.run
    first = True

    async def late(steps: Any) -> Any:
        nonlocal first
        reply = await run(steps)
        if first:
            first = False
            with monkeypatch.context() as deaf:
                for what in ("told", "missed"):
                    deaf.setattr(watch, what, lambda _: None)
                await state.set(ALICE, "k", 1)
                await asyncio.sleep(0)
            watch.lost()
            watch.resumed()
        return reply

    monkeypatch.setattr(watch._watches, "run", late)
    async with watch:
        assert told(await take(watch, 1)) == [("set", "k", 1)]
