"""Times to live: an expired value is never seen, by no call, and is gone soon after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_state import Expiring, Raw, Store, sweep_all, until

from llmspell_dist import KEEP, ConflictError, Options, Retention, StateManager, connect
from llmspell_dist.client import Spell
from llmspell_dist.clock import Liveness
from llmspell_dist.errors import InvalidTTLError
from llmspell_dist.state.housekeeping import housekeep, sweep

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


async def expires_in(state: StateManager, key: str) -> float | None:
    """Seconds from the last write to the end of a key."""
    record = await state.get_record(S, key)
    assert record is not None
    return None if record.expires is None else (record.expires - record.updated).total_seconds()


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(100, 100), (0.5, 0.5), (timedelta(minutes=2), 120), (timedelta(microseconds=1), 0.001)],
)
async def test_a_ttl_is_seconds_or_a_timedelta(
    state: StateManager, raw: Raw, store: Store, ttl: Any, seconds: float
) -> None:
    """Counted from the server's time of the commit, in whole milliseconds."""
    await state.set(S, "k", 1, ttl=ttl)
    stored = store.record(S, "k")
    assert abs(stored.expires_ms - stored.revision.ms - seconds * 1000) <= 200


async def test_an_update_keeps_replaces_or_drops_the_ttl(state: StateManager) -> None:
    """By choice, and keeping is the default."""
    await state.set(S, "k", 1, ttl=100)
    first = await state.get_record(S, "k")
    await state.set(S, "k", 2)
    second = await state.get_record(S, "k")
    assert first is not None
    assert second is not None
    assert second.expires == first.expires
    await state.set(S, "k", 3, ttl=KEEP)
    assert await expires_in(state, "k") is not None
    await state.set(S, "k", 4, ttl=500)
    assert (await expires_in(state, "k") or 0) > 400
    await state.set(S, "k", 5, ttl=None)
    assert await expires_in(state, "k") is None
    await state.update(S, "k", lambda v: v + 1, ttl=100)
    assert await expires_in(state, "k") is not None
    await state.update(S, "k", lambda v: v + 1)
    assert await expires_in(state, "k") is not None


async def test_expire_and_persist_change_only_the_expiry(state: StateManager) -> None:
    """They say whether there was something to do, and stand in the log."""
    first = await state.set(S, "k", "v", schema_version=4)
    await state.append(S, "l", 1)
    for key in ("k", "l"):
        assert await state.expire(S, key, 100)
        assert await state.expire(S, key, 100)
        assert await expires_in(state, key) is not None
        assert await state.persist(S, key)
        assert not await state.persist(S, key)
        assert await expires_in(state, key) is None
    assert not await state.expire(S, "missing", 100)
    assert not await state.persist(S, "missing")
    record = await state.get_record(S, "k")
    assert record is not None
    assert (record.value, record.schema_version, record.created) == ("v", 4, first.time)
    assert record.revision > first
    ops = [change.op for change in await state.history(S, "k")]
    assert ops[-2:] == ["ttl", "set"]
    assert await state.get(S, "l") == [1]


async def test_an_expired_key_is_seen_by_no_call(state: StateManager, expiring: Expiring) -> None:
    """Before anybody has removed it."""
    await expiring(S, k="v", n=5, big="x" * 600_000)
    await state.append(S, "l", 1, ttl=0.001)
    await state.merge(S, "m", {"a": 1}, ttl=0.001)
    await expiring.gone(S, "l", "m")
    keys = ["k", "n", "big", "l", "m"]
    await state.set(S, "alive", 1, ttl=100)
    for key in keys:
        assert await state.get(S, key, "default") == "default"
        assert await state.get_record(S, key) is None
        assert not await state.exists(S, key)
    assert await state.get_slice(S, "l") == []
    assert await state.get_many(S, [*keys, "alive"]) == {"alive": 1}
    assert await state.get_many(S, keys) == {}
    assert await state.get_all(S) == {"alive": 1}
    assert [key async for key in state.keys(S)] == ["alive"]
    assert [item async for item in state.items(S)] == [("alive", 1)]
    assert (await state.keys_page(S)).items == ["alive"]
    assert await state.count(S) == 1
    assert (await state.stat(S)).keys == 1
    async with state.transaction() as tx:
        assert await tx.get(S, "k") is None
        assert await tx.get_many(S, keys) == {}
        tx.set(S, "seen", await tx.get(S, "l", "nothing"))
    assert await state.get(S, "seen") == "nothing"
    for key in keys:
        assert not await state.expire(S, key, 100)
        assert not await state.persist(S, key)
        assert not await state.delete(S, key)
        assert await state.get_at(S, key, datetime.now(UTC) + timedelta(days=1)) is None
    assert await state.delete_many(S, keys) == 0
    assert await state.update(S, "k", lambda v: (v, "new")) == (None, "new")


async def test_expired_keys_are_not_copied_moved_or_counted_by_clear(
    state: StateManager, expiring: Expiring
) -> None:
    """A scope of expired keys is as good as empty."""
    await expiring(S, a=1, b=[2])
    assert await state.copy_scope(S, "agent:copy") == 0
    assert await state.move_scope(S, "agent:copy") == 0
    assert [str(scope) async for scope in state.scopes()] == []
    await state.set(S, "c", 3)
    assert await state.copy_scope(S, "agent:copy") == 1
    assert await state.get_all("agent:copy") == {"c": 3}
    assert await state.clear(S) == 1
    assert await state.clear(S) == 0


@pytest.mark.parametrize("how", ["set", "absent", "cas", "tx", "increment", "append", "many"])
async def test_a_write_over_an_expired_key_begins_anew(
    state: StateManager, expiring: Expiring, how: str
) -> None:
    """Without the old TTL and the old created, and the log shows both."""
    await expiring(S, k=100)
    if how == "set":
        await state.set(S, "k", 1)
    elif how == "absent":
        assert await state.set_if_absent(S, "k", 1) is not None
    elif how == "cas":
        await state.compare_and_set(S, "k", 1, expected=None)
    elif how == "increment":
        assert await state.increment(S, "k") == 1
    elif how == "append":
        assert await state.append(S, "k", 1) == 1
    elif how == "many":
        await state.set_many(S, {"k": 1, "other": 2})
    else:
        async with state.transaction() as tx:
            assert await tx.get(S, "k") is None
            tx.set(S, "k", 1)
    record = await state.get_record(S, "k")
    assert record is not None
    assert record.value == ([1] if how == "append" else 1)
    assert record.expires is None
    assert record.created == record.updated
    last = {"increment": "increment", "append": "append"}.get(how, "set")
    history = await state.history(S, "k")
    assert [change.op for change in history] == [last, "expired", "set"]
    assert history[0].revision == history[1].revision
    assert history[1].expires is not None
    assert history[1].expires <= history[1].time
    assert await state.get_at(S, "k", history[2].revision) == 100


async def test_the_sweeper_removes_what_expired_and_logs_it(
    state: StateManager, spell: Spell, expiring: Expiring, store: Store
) -> None:
    """All kinds, with their elements, in one entry a scope."""
    await expiring(S, k="v", big="x" * 600_000)
    await expiring("user:u", k=1)
    await state.append(S, "l", 1, ttl=0.001)
    await expiring.gone(S, "l")
    await state.set(S, "alive", 1, ttl=100)
    before = (await state.stat(S)).revision
    assert await sweep_all(spell) == 4
    assert await sweep_all(spell) == 0
    assert store.field(S, "k") is None
    assert store.elements() == []
    stat = await state.stat(S)
    assert stat.keys == 1
    assert before is not None
    assert stat.revision is not None
    assert stat.revision > before
    (entry,) = [entry for entry in store.log() if entry.revision == stat.revision]
    assert sorted(change.key for change in entry.changes) == ["big", "k", "l"]
    for key in ("k", "big", "l"):
        newest = (await state.history(S, key))[0]
        assert (newest.op, newest.has_value) == ("expired", False)
        assert newest.expires is not None
        assert newest.expires <= newest.time
    assert await state.get(S, "alive") == 1


@pytest.mark.library_only("the library keeps house; a client of a sidecar does not")
async def test_one_process_of_the_fleet_sweeps_in_an_interval(
    state: StateManager, spell: Spell, expiring: Expiring, store: Store
) -> None:
    """Of ten that ask, one is let; each key is removed and logged once."""
    await expiring(S, **{f"k{i}": i for i in range(20)})
    driver, core = spell.state._driver, spell.state._driver.core
    answers = await asyncio.gather(
        *[driver.run(sweep(core, "0", interval_ms=60_000)) for _ in range(10)]
    )
    assert sorted(answers) == [(False, 0, False)] * 9 + [(True, 20, False)]
    expired = [c for entry in store.log() for c in entry.changes if c.op == 3]
    assert len(expired) == 20


async def test_a_sweep_works_through_more_than_one_call_may_remove(
    state: StateManager, spell: Spell, expiring: Expiring
) -> None:
    """Bounded calls, until nothing is due."""
    for _ in range(2):
        await state.set_many(S, {f"k{i}": i for i in range(450)}, ttl=0.001)
        await state.set_many("user:u", {f"k{i}": i for i in range(50)}, ttl=0.001)
    await expiring.gone(S, "k1")
    await expiring.gone("user:u", "k1")
    assert await sweep_all(spell) == 500
    assert await state.count(S) == 0


@pytest.mark.library_only("the library keeps house; a client of a sidecar does not")
async def test_housekeeping_sweeps_and_trims_in_turn(
    spell: Spell, expiring: Expiring, store: Store, url: str, namespace: str
) -> None:
    """What every client runs in the background, once, by the retention that any of them gave."""
    await expiring(S, k=1)
    retention = Retention(max_age=None, max_entries=1)
    options = Options(namespace=namespace, retention=retention, housekeeping=False)
    async with connect(url, options=options):
        pass
    driver, core = spell.state._driver, spell.state._driver.core
    assert not await driver.run(housekeep(core))
    assert store.field(S, "k") is None
    assert len(store.log()) == 1


async def test_the_background_removes_expired_keys_within_seconds(
    url: str, namespace: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask for it."""
    monkeypatch.setattr("llmspell_dist.client.INTERVAL_S", 0.02)
    monkeypatch.setattr("llmspell_dist.state.housekeeping.INTERVAL_S", 0.01)
    async with connect(url, namespace=namespace) as spell:
        await spell.state.set(S, "k", 1, ttl=0.01)
        await until(lambda: store.field(S, "k") is None)
        assert [c.op for c in await spell.state.history(S, "k")] == ["expired", "set"]


async def test_a_ttl_that_is_moved_is_swept_at_its_new_time(
    state: StateManager, spell: Spell, raw: Raw, store: Store
) -> None:
    """Earlier as well as later, and never if it was dropped."""
    await state.set_many(S, {"later": 1, "never": 1}, ttl=0.001)
    await state.set(S, "sooner", 1, ttl=1000)
    await state.set_many(S, {"later": 1}, ttl=1000)
    await state.set(S, "never", 1, ttl=None)
    await state.expire(S, "sooner", 0.001)
    last = store.record(S, "sooner").expires_ms
    await until(lambda: raw.now_ms() > last)
    assert await sweep_all(spell) == 1
    assert set(await state.get_all(S)) <= {"later", "never"}
    assert store.field(S, "sooner") is None


@pytest.mark.needs("process")
@pytest.mark.parametrize("off", [-3600.0, 3600.0])
async def test_a_client_clock_that_is_wrong_by_an_hour_changes_nothing(
    spell: Spell, store: Store, monkeypatch: pytest.MonkeyPatch, off: float, url: str
) -> None:
    """Only the server's time counts, for writing, reading and removing."""
    import time

    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + off)
    for module in ("ring", "lane"):
        monkeypatch.setattr(f"llmspell_dist.redis.{module}.time", lambda: wall() + off)
    async with connect(url, namespace=spell.namespace) as other:
        await other.state.set(S, "k", 1, ttl=30)
        stored = store.record(S, "k")
        assert abs(stored.expires_ms - store.raw.now_ms() - 30_000) < 5000
        assert await other.state.get(S, "k") == await spell.state.get(S, "k") == 1
        await other.state.set(S, "short", 1, ttl=0.001)
        last = store.record(S, "short").expires_ms
        await until(lambda: store.raw.now_ms() > last)
        assert await other.state.get(S, "short") is None
        assert await other.state.get_many(S, ["k", "short"]) == {"k": 1}
        assert await sweep_all(other) == 1
        assert await other.state.get(S, "k") == 1


@pytest.mark.parametrize("says", list(Liveness))
async def test_whatever_the_estimate_of_the_clock_says_the_server_has_the_last_word(
    state: StateManager, expiring: Expiring, says: Liveness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the estimate is unsure, the read goes to a script; else it must be right."""
    await expiring(S, gone=1)
    await state.set(S, "alive", 2, ttl=100)
    if says is Liveness.UNSURE:
        clock = state._driver.core.clock
        monkeypatch.setattr(type(clock), "compare", lambda *_: says)
    assert await state.get(S, "gone") is None
    assert await state.get(S, "alive") == 2
    assert await state.get_many(S, ["gone", "alive"]) == {"alive": 2}
    assert [item async for item in state.items(S)] == [("alive", 2)]


BAD_TTLS: list[Any] = [
    0, -1, 0.0, -0.5, float("nan"), float("inf"), timedelta(0), timedelta(days=-1), "5", True,
    100 * 366 * 86_400.0, timedelta(days=36_600), 10**30, b"1", object(),
]  # fmt: skip


async def test_a_ttl_that_makes_no_sense_is_refused_before_anything_is_sent(
    state: StateManager, store: Store
) -> None:
    """By every call that takes one; the error names the argument."""
    await state.set(S, "k", 1)
    before = store.dump(without=())
    tx = state.transaction()
    calls: list[Callable[[Any], Any]] = [
        lambda ttl: state.set(S, "k", 1, ttl=ttl),
        lambda ttl: state.set(S, "k", "x" * 600_000, ttl=ttl),
        lambda ttl: state.set_if_absent(S, "k", 1, ttl=ttl),
        lambda ttl: state.compare_and_set(S, "k", 1, expected=None, ttl=ttl),
        lambda ttl: state.set_many(S, {"k": 1}, ttl=ttl),
        lambda ttl: state.increment(S, "k", ttl=ttl),
        lambda ttl: state.append(S, "l", 1, ttl=ttl),
        lambda ttl: state.merge(S, "m", {"a": 1}, ttl=ttl),
        lambda ttl: state.expire(S, "k", ttl),
        lambda ttl: state.update(S, "k", lambda v: v, ttl=ttl),
    ]
    writes: list[Callable[[Any], None]] = [
        lambda ttl: tx.set(S, "k", 1, ttl=ttl),
        lambda ttl: tx.set_if_absent(S, "k", 1, ttl=ttl),
        lambda ttl: tx.increment(S, "k", ttl=ttl),
        lambda ttl: tx.append(S, "l", 1, ttl=ttl),
        lambda ttl: tx.merge(S, "m", {"a": 1}, ttl=ttl),
        lambda ttl: tx.expire(S, "k", ttl),
    ]
    for ttl in BAD_TTLS:
        for call in calls:
            with pytest.raises(InvalidTTLError, match="ttl"):
                await call(ttl)
        for write in writes:
            with pytest.raises(InvalidTTLError, match="ttl"):
                write(ttl)
    for nothing in (None, KEEP):
        with pytest.raises(InvalidTTLError, match="ttl"):
            await state.expire(S, "k", nothing)
    assert store.dump(without=()) == before


async def test_a_condition_is_not_met_by_an_expired_value(
    state: StateManager, expiring: Expiring
) -> None:
    """Its revision is no longer that of anything."""
    await expiring(S, k=1)
    revision = (await state.history(S, "k"))[0].revision
    with pytest.raises(ConflictError) as caught:
        await state.delete(S, "k", expected=revision)
    assert caught.value.actual is None
