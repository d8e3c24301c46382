"""Putting scopes in place: whole or not at all, and never past somebody's lease."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest
from fix_restore import Restores, log_items, record_items, scan, twice
from fix_state import Raw, Store, sweep_all

from llmspell_dist import Scope, StateManager
from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.backup.items import (
    Continued,
    Elements,
    Item,
    Missing,
    Record,
    ScopeStart,
)
from llmspell_dist.backup.restoring import (
    Placement,
    Swap,
    abandon,
    apply,
    check,
    digest_of,
    digest_staged,
    leftovers,
    staged_page,
    survey,
    swap,
    take_key,
)
from llmspell_dist.changes import Op
from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseNotHeldError, StaleFencingTokenError, StoreFullError
from llmspell_dist.records import DEMANDS_LEASE, pack_record, unpack_record
from llmspell_dist.revision import Revision

pytestmark = [pytest.mark.integration, pytest.mark.backup]
S, T = "agent:alice", "agent:bob"
LATE = Revision(2**47, 0)


def swaps(*scopes: str) -> list[Swap]:
    """Scopes that go where they were."""
    return [Swap(Scope.parse(scope), scope.encode()) for scope in scopes]


# --- leases


async def test_a_lease_that_is_held_refuses_and_nothing_is_changed(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """The error names scope, lease and holder; of other scopes none is changed either."""
    for scope in (S, T):
        await state.set(scope, "a", "then")
    items = scan(store, [T, S])
    for scope in (S, T):
        await state.set(scope, "a", "now")
    async with spell.leases.acquire(S, name="main", ttl=30):
        with pytest.raises(RestoreRefusedError) as caught:
            await restores.restore(items)
    assert caught.value.scope == S
    assert "'main'" in caught.value.reason
    assert [await state.get(scope, "a") for scope in (S, T)] == ["now", "now"]


async def test_a_lease_that_came_since_the_look_is_found_by_the_swap(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """Whatever its name."""
    await state.set(S, "a", "then")
    staging = restores.staging()
    await restores.run(staging.load(scan(store, [S])))
    leased = {"0": await restores.run(survey(restores.core, "0"))}
    async with spell.leases.acquire(S, name="another", ttl=30):
        with pytest.raises(RestoreRefusedError, match="'another'"):
            await restores.run(swap(staging, swaps(S), leased=leased))
    (done,) = await restores.run(swap(staging, swaps(S), leased=leased))
    assert done.keys == 1


async def test_with_force_the_holder_writes_no_more(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """Its lease is broken, which the log says; the next holder can write."""
    await state.set(S, "a", "then")
    items = scan(store, [S])
    lease = await spell.leases.acquire(S, ttl=30)
    await fenced_write(lease, S)
    held = lease.token
    await restores.restore(items, force=True)
    with pytest.raises(StaleFencingTokenError):
        await fenced_write(lease, S)
    with pytest.raises(LeaseNotHeldError, match="the scope was restored"):
        await lease.release()
    assert await state.get(S, "a") == "then"
    assert restores.meta(S).fence > held
    broken = [change for entry in store.log() for change in entry.changes if change.op == Op.BROKEN]
    assert [change.scope for change in broken] == [S]
    async with spell.leases.acquire(S, ttl=30) as lease:
        assert lease.token >= restores.meta(S).fence
        await fenced_write(lease, S)
    assert await state.get(S, "a") == "fenced"


async def test_the_fence_alone_keeps_the_holder_out(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """Whoever restores may die before it breaks the lease."""
    await state.set(S, "a", "then")
    staging = restores.staging()
    await restores.run(staging.load(scan(store, [S])))
    lease = await spell.leases.acquire(S, ttl=30)

    def killed_behind_the_swap() -> Any:
        steps = swap(staging, swaps(S), force=True)
        given = None
        while True:
            request = steps.send(given)
            given = yield request
            if getattr(getattr(request, "script", None), "name", "") == "restore_swap":
                return

    await restores.run(killed_behind_the_swap())
    with pytest.raises(StaleFencingTokenError) as caught:
        await fenced_write(lease, S)
    assert caught.value.why == "below"
    assert await state.get(S, "a") == "then"
    await lease.release()
    await restores.run(abandon(staging))


async def fenced_write(lease: Any, scope: str) -> None:
    """Write with a lease."""
    await lease.state.set(scope, "a", "fenced")


async def test_fence_and_policy(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """The fence never falls; the demand for a lease is as it was."""
    await state.set(S, "a", 1)
    await spell.leases.require(S)
    items = scan(store, [S])
    async with spell.leases.acquire(S, ttl=30) as lease:
        await fenced_write(lease, S)
        token = lease.token
        await spell.leases.unrequire(S, lease=lease)
    assert not restores.meta(S).flags & DEMANDS_LEASE
    await restores.restore(items)
    assert restores.meta(S).fence == token
    assert restores.meta(S).flags & DEMANDS_LEASE


async def test_a_policy_of_the_log_is_repeated(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """As any other change."""
    await state.set(S, "a", 1)
    items, begin = scan(store, [S]), store.log()[-1].revision
    await spell.leases.require(S)
    entries = log_items(store, begin)
    async with spell.leases.acquire(S, ttl=30) as lease:
        await spell.leases.unrequire(S, lease=lease)
    await restores.restore(items, [entries])
    assert restores.meta(S).flags & DEMANDS_LEASE


# --- the swap


async def test_a_scope_that_changed_meanwhile_is_not_replaced_if_asked(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """By its revision."""
    seen = await state.set(S, "a", 1)
    staging = restores.staging()
    await restores.run(staging.load(scan(store, [S])))
    await state.set(S, "a", 2)
    with pytest.raises(RestoreRefusedError, match="changed meanwhile"):
        await restores.run(swap(staging, [Swap(Scope.parse(S), S.encode(), seen)]))
    assert await state.get(S, "a") == 2
    now = restores.meta(S).revision
    await restores.run(swap(staging, [Swap(Scope.parse(S), S.encode(), now)]))
    assert await state.get(S, "a") == 1
    await restores.run(abandon(staging))


async def test_the_log_says_what_was_put_in_place(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """In one entry for several scopes, chained to the changes before."""
    for scope in (S, T):
        await state.set(scope, "a", 1)
    last = {scope: restores.meta(scope).revision for scope in (S, T)}
    done = await restores.restore(scan(store, [S, T]))
    entry = store.log()[-1]
    assert {one.revision for one in done} == {entry.revision}
    # Each with what its scope demands from here on: nothing.
    assert [change.op for change in entry.changes] == [Op.RESTORED, Op.POLICY] * 2
    assert [change.payload for change in entry.changes[1::2]] == [b"", b""]
    mark = store.record(S, "a").revision
    for change in entry.changes[::2]:
        assert change.previous_in_scope == last[change.scope]
        assert change.payload is not None
        said = msgpack.unpackb(change.payload)
        assert (said["n"], said["r"]) == (1, mark.packed)
        assert restores.meta(change.scope).revision == entry.revision
    marker = next(entry for entry in store.log() if entry.revision == mark)
    assert [(change.scope, change.op) for change in marker.changes] == [("", Op.RESTORED)]


async def test_a_scope_that_was_not_there_is_emptied(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """With its elements; its fence stays."""
    await state.append(S, "l", 1, 2)
    await state.set(S, "a", 1, ttl=100)
    staging = restores.staging()
    (done,) = await restores.run(swap(staging, [Swap(Scope.parse(S), None)]))
    assert done.keys == 0
    assert await state.get_all(S) == {}
    assert await state.count(S) == 0
    store.check()
    await sweep_all(spell)
    assert store.elements() == []
    await restores.run(abandon(staging))


async def test_readers_see_all_of_the_old_or_all_of_the_new(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """While others write and read, ten restores."""
    keys = [f"k{n}" for n in range(20)]
    await state.set_many(S, dict.fromkeys(keys, 0))
    await state.append(S, "l", 0)
    items = scan(store, [S])
    stop = False
    number = 0

    async def write() -> None:
        nonlocal number
        while not stop:
            number += 1
            async with state.transaction() as tx:
                for key in keys:
                    tx.set(S, key, number)

    async def read() -> int:
        looks = 0
        while not stop:
            found = await state.get_many(S, keys)
            assert len(set(found.values())) == 1
            assert len(found) == len(keys)
            assert await state.get(S, "l") == [0]
            looks += 1
        return looks

    tasks = [asyncio.create_task(write()), *(asyncio.create_task(read()) for _ in range(3))]
    for _ in range(10):
        await restores.restore(items)
    stop = True
    _, *looks = await asyncio.gather(*tasks)
    assert all(looks)
    assert number > 5
    store.check()


@pytest.mark.needs("config")
async def test_a_server_that_is_full_refuses_and_the_scope_is_as_it_was(
    state: StateManager, store: Store, restores: Restores, raw: Raw
) -> None:
    """The first write of the swap meets it."""
    await state.append(S, "l", 1, 2)
    await state.set(S, "a", 1, ttl=100)
    staging = restores.staging()
    await restores.run(staging.load(scan(store, [S])))
    await state.set(S, "a", 2)
    before = store.dump()
    raw("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreFullError):
            await restores.run(swap(staging, swaps(S)))
        assert store.dump() == before
    finally:
        raw("CONFIG", "SET", "maxmemory", "0")
    await restores.run(swap(staging, swaps(S)))
    assert await state.get_all(S) == {"a": 1, "l": [1, 2]}


# --- sent twice, and killed


async def fill(state: StateManager) -> None:
    """Put some of everything into both scopes."""
    for scope in (S, T):
        await state.set_many(scope, {f"k{n}": n for n in range(5)}, ttl=500)
        await state.append(scope, "l", 1, 2, 3, 4)
        await state.merge(scope, "m", {"a": 1, "b": 2})


def whole_restore(restores: Restores, items: list[Item], entries: list[Any]) -> Any:
    """Restore both scopes, one after the other."""
    staging = restores.staging()
    yield from staging.load(items)
    yield from apply(staging, entries, LATE)
    yield from check(staging, swaps(S, T))
    for scope in (S, T):
        yield from swap(staging, swaps(scope))
    yield from abandon(staging)


async def test_every_call_may_be_sent_twice(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """As after a lost connection: what leaves together is sent again together."""
    await fill(state)
    items, begin = scan(store, [S, T]), store.log()[0].revision
    await state.append(S, "l", 5)
    await state.merge(S, "m", {"c": 3}, remove=["a"])
    await state.delete(T, "k1")
    expected = {scope: await state.get_all(scope) for scope in (S, T)}
    entries = log_items(store, begin)

    for scope in (S, T):
        await state.clear(scope)
    await restores.run(twice(whole_restore(restores, items, entries)))
    assert {scope: await state.get_all(scope) for scope in (S, T)} == expected
    store.check()


async def test_killed_between_any_two_calls_no_scope_is_half_restored(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """What was laid down goes with the next run."""
    await fill(state)
    items = scan(store, [S, T])
    then = {scope: await state.get_all(scope) for scope in (S, T)}
    ended, dies_at = False, 0
    while not ended:
        for scope in (S, T):
            await state.set(scope, "k1", "now")
            await state.delete(scope, "l")
        now = {scope: await state.get_all(scope) for scope in (S, T)}
        steps = whole_restore(restores, items, [])

        def until_killed(steps: Any, dies_at: int) -> Any:
            given: Any = None
            for _ in range(dies_at):
                try:
                    request = steps.send(given)
                except StopIteration:
                    return True
                given = yield request
            return False

        ended = await restores.run(until_killed(steps, dies_at))
        for scope in (S, T):
            assert await state.get_all(scope) in (now[scope], then[scope])
        await restores.run(leftovers(restores.core, "0", quiet_ms=-1))
        await sweep_all(spell)
        store.check()
        assert not [key for key in store.all_keys() if b":restore" in key]
        assert not [key for key in store.all_keys() if b":g:" in key]
        dies_at += 1
    assert dies_at > 6
    assert {scope: await state.get_all(scope) for scope in (S, T)} == then


async def test_what_a_restore_of_many_scopes_left_goes(
    store: Store, restores: Restores, raw: Raw
) -> None:
    """Also where the buckets that a scan of the registry begins with are emptied first."""
    registry = store.space.restore("0", "gone")
    fields = [part for n in range(5_000) for part in (f"{n:024x}", "custom:x\n1\n")]
    raw("HSET", registry, "r", "0-1", *fields)
    raw("ZADD", store.space.restores("0"), 1, "gone")
    cleaning = restores.run(leftovers(restores.core, "0", quiet_ms=-1))
    assert await asyncio.wait_for(cleaning, 60) == ["gone"]
    assert not raw("EXISTS", registry)


async def test_what_a_killed_restore_left_is_swept(
    spell: Spell, state: StateManager, store: Store, restores: Restores, raw: Raw
) -> None:
    """After an hour in which nothing was heard of it; one that goes on notices."""
    await fill(state)
    staging = restores.staging()
    items = scan(store, [S, T])
    await restores.run(staging.load(items))
    await sweep_all(spell)
    assert raw("ZCARD", store.space.restores("0")) == 1
    raw("ZADD", store.space.restores("0"), raw.now_ms() - 3_600_001, staging.id)
    await sweep_all(spell)
    assert not [key for key in store.all_keys() if b":restore" in key]
    store.check()
    with pytest.raises(RestoreRefusedError, match="cleaned up"):
        await restores.run(staging.load(items))
    with pytest.raises(RestoreRefusedError, match="cleaned up"):
        await restores.run(swap(staging, swaps(S)))


# --- what items may look like


async def test_a_scope_in_several_objects_and_a_list_over_their_border(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Each of them loaded by itself."""
    await state.set(S, "a", 1)
    await state.append(S, "l", *range(10))
    record = store.field(S, "l")
    assert record is not None
    start, *rest = record_items(store.raw, store.hash_of(S), b"l", record)
    parts = [part for one in rest for part in one.parts]  # type: ignore[union-attr]
    items = scan(store, [S])
    meta, plain = items[1], next(item for item in items if getattr(item, "key", b"") == b"a")
    await state.clear(S)
    staging = restores.staging()
    name = ScopeStart(S.encode())
    objects: list[list[Item]] = [
        [name, meta, start, Elements(3, parts[:3])],
        [name, Continued(b"l"), Elements(3, parts[3:7])],
        [name, Continued(b"l"), Elements(3, parts[7:]), plain],
    ]
    for part in objects:
        await restores.run(staging.load(part))
    await restores.run(check(staging, swaps(S)))
    await restores.run(swap(staging, swaps(S)))
    assert await state.get_all(S) == {"a": 1, "l": list(range(10))}
    await restores.run(abandon(staging))


async def test_a_composite_whose_elements_were_gone_is_not_laid_down(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Also if some of them were read before."""
    await state.append(S, "l", 1)
    await state.append(S, "m", 1)
    one, two = store.field(S, "l"), store.field(S, "m")
    assert one is not None
    assert two is not None
    items: list[Item] = [
        *(ScopeStart(S.encode()), Record(b"l", one), Missing()),
        *(Record(b"m", two), Elements(3, [b"\1"]), Missing()),
    ]
    await restores.restore(items)
    assert await state.get_all(S) == {}
    store.check()


async def test_a_damaged_record_is_left_out_and_told(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """All else is restored."""
    await state.set(S, "a", 1)
    items = [*scan(store, [S]), Record(b"bad", b"\x09\x10\x00"), Record(b"worse", b"\1")]
    staging = restores.staging()
    await restores.run(staging.load(items))
    await restores.run(swap(staging, swaps(S)))
    assert set(staging.inexact) == {(S, "bad"), (S, "worse")}
    assert await state.get_all(S) == {"a": 1}
    await restores.run(abandon(staging))


async def test_only_some_keys_and_scopes(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """What is left out is left out of the changes, too."""
    await fill(state)
    items, begin = scan(store, [S, T]), store.log()[0].revision
    await state.set(S, "k1", "changed")
    await state.set(S, "k2", "changed")
    staging = restores.staging(
        placement=Placement(
            keys=["k1", "l"], mapping=lambda text: Scope.parse("custom:x") if text == S else None
        )
    )
    await restores.run(staging.load(items))
    await restores.run(apply(staging, log_items(store, begin), LATE))
    await restores.run(swap(staging, [Swap(Scope.parse("custom:x"), S.encode())]))
    assert await state.get_all("custom:x") == {"k1": "changed", "l": [1, 2, 3, 4]}
    await restores.run(abandon(staging))


async def test_two_scopes_to_one_place_are_refused(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Instead of mixing them."""
    await fill(state)
    with pytest.raises(RestoreRefusedError, match="two scopes"):
        await restores.restore(scan(store, [S, T]), mapping=lambda _: Scope.parse("custom:x"))
    staging = restores.staging(placement=Placement(mapping=lambda _: Scope.parse("custom:x")))
    await restores.run(staging.load(scan(store, [S])))
    with pytest.raises(RestoreRefusedError, match="two scopes"):
        await restores.run(staging.load(scan(store, [T])))
    await restores.run(leftovers(restores.core, "0", quiet_ms=-1))


async def test_a_restore_in_the_log_is_repeated(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """It emptied the scope; the records of that moment were read behind it."""
    await state.set(S, "a", 1)
    items, begin = scan(store, [S]), store.log()[-1].revision
    await state.set(S, "b", 2)
    await restores.restore(items)
    after = scan(store, [S])
    entries: list[Item] = log_items(store, begin)  # type: ignore[assignment]
    await state.set(S, "c", 3)
    await restores.restore(items, [[*entries, *after]])
    assert await state.get_all(S) == {"a": 1}


async def test_what_is_laid_down_is_listed_until_it_is_in_place(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Scopes of records, and those that only the log has."""
    await fill(state)
    items, begin = scan(store, [S, T]), store.log()[-1].revision
    await state.set("custom:new", "a", 1)
    staging = restores.staging()
    await restores.run(staging.load(items))
    await restores.run(apply(staging, log_items(store, begin), LATE))
    listed, cursor = await restores.run(staged_page(staging, "0"))
    assert cursor is None
    assert sorted(listed) == sorted(swaps(S, T, "custom:new"))
    await restores.run(swap(staging, swaps(S)))
    listed, _ = await restores.run(staged_page(staging, "0"))
    assert sorted(listed) == sorted(swaps(T, "custom:new"))
    read = await restores.run(digest_staged(staging, Scope.parse(T), T.encode()))
    assert read == await restores.run(digest_of(restores.core, Scope.parse(T)))
    await restores.run(abandon(staging))


# --- expiry


async def test_expiry_by_the_time_that_was_left(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Counted from the moment that is restored."""
    await state.set(S, "a", 1, ttl=100)
    await state.set(S, "b", 1, ttl=5)
    moment_ms = store.record(S, "a").revision.ms
    expires = {key: store.record(S, key).expires_ms for key in "ab"}
    options: dict[str, Any] = {
        "ttl": "remaining",
        "moment_ms": moment_ms,
        "now_ms": moment_ms + 1_000_000,
    }
    await restores.restore(scan(store, [S]), **options)
    for key in "ab":
        assert store.record(S, key).expires_ms == expires[key] + 1_000_000
    store.check()


async def test_what_has_expired_since_is_not_put_in_place(
    state: StateManager, store: Store, restores: Restores, expiring: Any
) -> None:
    """Unless a change that is repeated let it live on."""
    await state.append(S, "gone", 1, ttl=0.001)
    await state.append(S, "kept", 1, ttl=60)
    items, begin = scan(store, [S]), store.log()[-1].revision
    assert await state.persist(S, "kept")
    for place, item in enumerate(items):  # as if the 60 seconds were over
        if isinstance(item, Record) and item.key == b"kept":
            past = unpack_record(item.raw, S, "kept")._replace(expires_ms=store.raw.now_ms() - 1)
            items[place] = Record(item.key, pack_record(past))
    entries = log_items(store, begin)
    await expiring.gone(S, "gone")
    (done,) = await restores.restore(items, [entries])
    assert done.keys == 1
    assert await state.get_all(S) == {"kept": [1]}
    store.check()


# --- one key


async def test_one_key_is_put_back_by_an_ordinary_commit(
    state: StateManager, store: Store, restores: Restores, spell: Spell
) -> None:
    """So its history has it as a change; all else stays."""
    await fill(state)
    items = scan(store, [S])
    await state.append(S, "l", "more")
    await state.set(S, "k1", "now")
    staging = restores.staging(placement=Placement(keys=["l"]), aside=True)
    await restores.run(staging.load(items))
    revision = await restores.run(take_key(staging, S.encode(), Scope.parse(S), "l"))
    await restores.run(abandon(staging))
    assert await state.get(S, "l") == [1, 2, 3, 4]
    assert await state.get(S, "k1") == "now"
    record = await state.get_record(S, "l")
    assert record is not None
    assert record.revision == revision
    assert (await state.history(S, "l"))[0].revision == revision
    await sweep_all(spell)
    store.check()
    assert not [key for key in store.all_keys() if b":restore" in key]


async def test_a_key_that_was_not_there_is_deleted(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """The moment is one without it."""
    await state.set(S, "a", 1)
    items = scan(store, [S])
    await state.set(S, "b", 1)
    staging = restores.staging(placement=Placement(keys=["b"]), aside=True)
    await restores.run(staging.load(items))
    assert await restores.run(take_key(staging, S.encode(), Scope.parse(S), "b")) is not None
    await restores.run(abandon(staging))
    assert await state.get_all(S) == {"a": 1}


async def test_into_a_namespace_with_more_shards(
    state: StateManager, store: Store, restores: Restores, url: str, namespace: str
) -> None:
    """Each scope to the shard that it has there."""
    from llmspell_dist import Options, connect

    scopes = [f"agent:n{n}" for n in range(12)]
    for scope in scopes:
        await state.set(scope, "a", scope)
        await state.append(scope, "l", 1)
    items, begin = scan(store, scopes), store.log()[0].revision
    for scope in scopes:
        await state.append(scope, "l", 2)
    entries = log_items(store, begin)
    async with connect(url, namespace=f"{namespace}-x", options=Options(shards=4)) as other:
        there = Restores(other, Store(store.raw, f"{namespace}-x", 4))
        await there.restore(items, [entries])
        for scope in scopes:
            assert await other.state.get_all(scope) == {"a": scope, "l": [1, 2]}
        there.store.check()
