"""Looking at leases: who holds one, who waits, what was; deadlocks; breaking one by force."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left
from fix_state import Store, until

from llmspell_dist import context
from llmspell_dist.changes import Op
from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    DeadlockError,
    InvalidArgumentError,
    LeaseError,
    LeaseNotHeldError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.model import LeaseHow, LeaseInfo, LeaseMode, WaitEdge

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
A, B, C = "agent:a", "agent:b", "agent:c"


# --- showing --------------------------------------------------------------------------------------


async def test_a_lease_that_nobody_ever_held(spell: Spell, lease_store: LeaseStore) -> None:
    """There is nothing to tell, and looking leaves nothing behind."""
    info = await spell.leases.show(S, name="turn")
    assert isinstance(info, LeaseInfo)
    assert (info.scope, info.name, info.token) == (S, "turn", 0)
    assert (info.holders, info.waiters, info.waiting, info.history) == ((), (), 0, ())
    assert not info.held
    assert lease_store.store.all_keys() == [lease_store.space.ctl("0")]


async def test_everything_about_the_holder(spell: Spell) -> None:
    """Who, on which machine, in which process, since when, until when, for how long, how often."""
    async with (
        spell.leases.acquire(S, label="night job", ttl=30, owner="job") as lease,
        spell.leases.acquire(S, owner="job", reentrant=True, ttl=30),
    ):
        info = await spell.leases.show(S)
        (holder,) = info.holders
        assert (holder.owner, holder.label, holder.pid) == ("job", "night job", os.getpid())
        assert holder.host == socket.gethostname()[:64]
        assert holder.mode is LeaseMode.EXCLUSIVE
        assert (holder.token, holder.holds, holder.ttl_s) == (lease.token, 2, 30)
        assert info.token == lease.token
        assert holder.since.tzinfo is UTC
        assert abs(info.time - datetime.now(UTC)) < timedelta(minutes=5)
        assert timedelta(0) <= info.time - holder.since < timedelta(seconds=10)
        assert timedelta(seconds=20) < holder.expires - info.time <= timedelta(seconds=30)
        assert "night job" in str(holder)
        assert str(os.getpid()) in str(holder)


async def test_an_expired_holder_is_not_shown(spell: Spell, lease_store: LeaseStore) -> None:
    """Though nobody has removed it yet."""
    await spell.leases.acquire(S, on_lost="event", renew=False)
    await spell.leases.acquire(A, on_lost="event", renew=False, mode="shared")
    for scope in (S, A):
        lease_store.expire(scope)
        assert not (await spell.leases.show(scope)).held
    assert await spell.leases.list() == []


async def test_waiters_in_the_order_in_which_they_are_served(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """With all that is known; as many as asked for, and how many there are."""
    (other,) = await clients(1)
    async with spell.leases.acquire(S):
        tasks = [
            await in_line(
                lease_store,
                other.leases.acquire(
                    S,
                    owner=f"w{i}",
                    label=f"label {i}",
                    mode=("exclusive", "shared")[i % 2],
                    wait=60 if i == 2 else None,
                ),
            )
            for i in range(5)
        ]
        info = await spell.leases.show(S)
        assert [waiter.owner for waiter in info.waiters] == [f"w{i}" for i in range(5)]
        assert [waiter.mode.value[0] for waiter in info.waiters] == list("esese")
        assert [waiter.label for waiter in info.waiters] == [f"label {i}" for i in range(5)]
        assert [waiter.deadline is None for waiter in info.waiters] == [
            *(True, True, False, True, True)
        ]
        assert all(waiter.pid == os.getpid() and waiter.host for waiter in info.waiters)
        assert all(waiter.connected for waiter in info.waiters)
        since = [waiter.since for waiter in info.waiters]
        assert since == sorted(since)
        assert info.waiting == 5
        few = await spell.leases.show(S, waiters=2)
        assert ([w.owner for w in few.waiters], few.waiting) == (["w0", "w1"], 5)
        none = await spell.leases.show(S, waiters=0)
        assert (none.waiters, none.waiting) == ((), 5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await nothing_left(lease_store, spell, other)


async def test_the_history_has_the_last_sixteen_newest_first(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Each with how it ended, when, and who it was; both modes."""
    expected: list[tuple[LeaseHow, int, LeaseMode]] = []
    for number in range(21):
        mode = LeaseMode.SHARED if number % 2 else LeaseMode.EXCLUSIVE
        lease = await spell.leases.acquire(S, owner=f"o{number}", mode=mode, on_lost="event")
        how = list(LeaseHow)[number % 3]
        expected.append((how, lease.token, mode))
        match how:
            case LeaseHow.RELEASED:
                await lease.release()
            case LeaseHow.EXPIRED:
                lease_store.expire()
            case LeaseHow.BROKEN:
                await spell.leases.break_lease(S, reason="test")
    info = await spell.leases.show(S)
    found = [(past.how, past.holder.token, past.holder.mode) for past in info.history]
    assert found == expected[::-1][:16]
    for past in info.history:
        assert past.held_s >= -0.001 or past.how is LeaseHow.EXPIRED  # its expiry was put back
        assert past.ended <= info.time
        assert past.holder.pid == os.getpid()


# --- listing --------------------------------------------------------------------------------------


async def test_all_leases_that_are_held_or_waited_for_are_listed(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """First those that end first; not those that ended."""
    (other,) = await clients(1)
    assert await spell.leases.list() == []
    ended = await spell.leases.acquire("agent:ended")
    await ended.release()
    long = await spell.leases.acquire(A, ttl=500)
    short = await spell.leases.acquire(B, ttl=100, name="turn")
    reader = await spell.leases.acquire(C, ttl=300, mode="shared")
    waiter = await in_line(lease_store, other.leases.acquire(A, label="waits"), scope=A)
    listed = await spell.leases.list(waiters=5)
    assert [(info.scope, info.name) for info in listed] == [(B, "turn"), (C, "main"), (A, "main")]
    assert [info.waiting for info in listed] == [0, 0, 1]
    assert listed[2].waiters[0].label == "waits"
    assert len(await spell.leases.list(limit=2)) == 2
    await long.release()
    held = await granted(waiter)
    for lease in (short, reader, held):
        await lease.release()
    assert await spell.leases.list() == []


async def test_leases_that_end_in_the_same_millisecond_are_listed_by_name(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """One lease of several holders stands where the first of them ends."""
    names = [f"turn-{n}" for n in range(9, -1, -1)]
    held = [await spell.leases.acquire(S, name=name, ttl=300) for name in names]
    late = await spell.leases.acquire(A, mode="shared", owner="late", ttl=900)
    soon = await spell.leases.acquire(A, mode="shared", owner="soon", ttl=100)
    at_ms = lease_store.raw.now_ms() + 300_000
    for name in names:
        lease_store.put_expiry(at_ms, S, name)
    listed = await spell.leases.list()
    assert [(info.scope, info.name) for info in listed] == [
        (A, "main"),
        *((S, name) for name in sorted(names)),
    ]
    for lease in (*held, late, soon):
        await lease.release()


async def test_a_lease_whose_holder_has_expired_is_listed_while_somebody_waits(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Nobody holds it, and that is what whoever looks wants to know."""
    (gone,) = await clients(1)
    await spell.leases.acquire(S, ttl=60, on_lost="event", renew=False)
    waiter = await in_line(lease_store, gone.leases.acquire(S))
    lease_store.expire()
    (info,) = await spell.leases.list(waiters=1)
    assert not info.held
    assert info.waiting == 1
    gone.leases._wakes._resumed()  # it looks before its time
    await (await granted(waiter)).release()


# --- deadlocks ------------------------------------------------------------------------------------


async def crosswise(spells: list[Spell], scopes: list[str], errors: list[DeadlockError]) -> None:
    """Let each hold a lease and want the next one's; whoever hears of a deadlock gives in."""
    all_hold = asyncio.Barrier(len(scopes))

    async def work(at: int) -> None:
        async with spells[at].leases.acquire(scopes[at], owner=f"o{at}"):
            await all_hold.wait()
            try:
                async with spells[at].leases.acquire(scopes[at - 1], owner=f"o{at}"):
                    pass
            except DeadlockError as error:
                errors.append(error)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for at in range(len(scopes)):
            group.create_task(work(at))


@pytest.mark.parametrize("owners", [2, 3, 5])
async def test_a_deadlock_is_named_at_once(
    spell: Spell, clients: Clients, lease_store: LeaseStore, owners: int
) -> None:
    """The one who would close the circle hears who waits for what; the others go on."""
    several = [spell, *await clients(owners - 1)]
    scopes = [f"agent:s{at}" for at in range(owners)]
    errors: list[DeadlockError] = []
    await crosswise(several, scopes, errors)
    (error,) = errors
    assert error.retryable
    assert len(error.cycle) == owners
    for owner, lease in error.cycle:
        at = int(owner[1:])
        assert lease == f"{scopes[at - 1]} main"
    assert {owner for owner, _ in error.cycle} == {f"o{at}" for at in range(owners)}
    assert error.cycle[0][1] == f"{error.scope} main"  # the asker comes first
    # In turn: whoever holds what the one waits for is the next that waits.
    for (_, lease), (owner, _) in zip(error.cycle, [*error.cycle[1:], error.cycle[0]], strict=True):
        assert lease == f"{scopes[int(owner[1:])]} main"
    assert all(f"'{owner}' waits for" in str(error) for owner, _ in error.cycle)
    for scope in scopes:
        await nothing_left(lease_store, *several, scope=scope)


async def test_a_deadlock_over_readers_is_found_too(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """One of several readers waits for what the writer holds."""
    (other,) = await clients(1)
    readers = [await spell.leases.acquire(A, mode="shared", owner=f"r{i}") for i in range(3)]
    writer = await other.leases.acquire(B, owner="w")
    waiting = await in_line(lease_store, other.leases.acquire(A, owner="w"), scope=A)
    with pytest.raises(DeadlockError) as caught:
        await spell.leases.acquire(B, owner="r1")
    assert sorted(caught.value.cycle) == [("r1", f"{B} main"), ("w", f"{A} main")]
    waits = asyncio.create_task(_hold(spell, B, "r9"))  # who holds nothing may wait
    await until(lambda: lease_store.waiting(B) == 1)
    waits.cancel()
    for reader in readers:
        await reader.release()
    await (await granted(waiting)).release()
    await writer.release()
    await asyncio.gather(waits, return_exceptions=True)
    await nothing_left(lease_store, spell, other, scope=A)


async def _hold(spell: Spell, scope: str, owner: str) -> Lease:
    return await spell.leases.acquire(scope, owner=owner)


async def test_trying_once_is_no_deadlock(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Who does not wait closes no circle."""
    (other,) = await clients(1)
    mine = await spell.leases.acquire(A, owner="a")
    theirs = await other.leases.acquire(B, owner="b")
    waiting = await in_line(lease_store, other.leases.acquire(A, owner="b"), scope=A)
    with pytest.raises(LeaseUnavailableError):
        await spell.leases.acquire(B, owner="a", wait=0)
    await mine.release()
    await (await granted(waiting)).release()
    await theirs.release()


async def test_a_dead_waiter_makes_no_false_alarm(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Its process is gone: its lease ends by itself, and whoever waits for that has it then."""
    (gone,) = await clients(1)
    mine = await spell.leases.acquire(A, owner="a")
    await gone.leases.acquire(B, owner="b", ttl=0.3, renew=False, on_lost="event")
    dead = await in_line(lease_store, gone.leases.acquire(A, owner="b"), scope=A)
    await gone._hub.close()

    async def not_there() -> bool:
        return not (await spell.leases.show(A)).waiters[0].connected

    await until(not_there)
    held = await asyncio.wait_for(_hold(spell, B, "a"), 5)
    await held.release()
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    await mine.release()


async def test_the_graph_shows_who_waits_for_whom(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Edges from waiters to holders; a chain is no circle."""
    (other,) = await clients(1)
    assert (await spell.leases.graph()).edges == ()
    held = [await spell.leases.acquire(scope, owner=f"h{scope[-1]}") for scope in (A, B)]
    tasks = [
        await in_line(lease_store, other.leases.acquire(A, owner="w1"), scope=A),
        await in_line(lease_store, other.leases.acquire(A, owner="w2"), scope=A),
        await in_line(lease_store, spell.leases.acquire(B, owner="ha"), scope=B),
    ]
    graph = await spell.leases.graph()
    assert set(graph.edges) == {
        WaitEdge("w1", A, "main", "ha"),
        WaitEdge("w2", A, "main", "ha"),
        WaitEdge("ha", B, "main", "hb"),
    }
    assert graph.deadlocks == ()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for lease in held:
        await lease.release()
    await until(lambda: lease_store.raw("EXISTS", lease_store.waits) == 0)
    assert (await spell.leases.graph()).edges == ()


async def test_the_graph_names_a_circle_that_came_about_otherwise(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """A lease that changes hands while its new holder waits elsewhere closes one unheard."""
    (other,) = await clients(1)
    first = await spell.leases.acquire(A, owner="x")
    held = await other.leases.acquire(B, owner="b")
    tasks = [
        await in_line(lease_store, spell.leases.acquire(A, owner="a"), scope=A),
        await in_line(lease_store, spell.leases.acquire(B, owner="a"), scope=B),
        await in_line(lease_store, other.leases.acquire(A, owner="b"), scope=A),
    ]
    assert (await spell.leases.graph()).deadlocks == ()
    await first.release()
    await granted(tasks[0])
    (circle,) = (await spell.leases.graph()).deadlocks
    assert {(edge.waiter, edge.scope, edge.holder) for edge in circle} == {
        ("a", B, "b"),
        ("b", A, "a"),
    }
    await held.release()
    await (await granted(tasks[1])).release()
    await tasks[0].result().release()
    await (await granted(tasks[2])).release()


# --- breaking -------------------------------------------------------------------------------------


async def test_breaking_takes_it_from_the_holder_and_gives_it_to_the_next(
    spell: Spell, clients: Clients, lease_store: LeaseStore, store: Store
) -> None:
    """Refused from then on; who did it and why stands in the log, under the revision returned."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S, label="stuck job", on_lost="event")
    await lease.state.set(S, "v", 1)
    waiter = await in_line(lease_store, other.leases.acquire(S))
    with context(actor="operator"):
        revision = await other.leases.break_lease(S, reason="it hangs: ticket 7")
    held = await granted(waiter)
    assert held.token > lease.token
    with pytest.raises(StaleFencingTokenError):
        await lease.state.set(S, "v", 2)
    with pytest.raises(LeaseNotHeldError) as caught:
        await lease.renew()
    assert caught.value.current.token == held.token
    await asyncio.wait_for(lease.lost.wait(), 5)
    entry = store.log()[-1]
    assert entry.revision == revision
    assert entry.meta == {"a": "operator"}
    (change,) = entry.changes
    assert (change.op, change.scope) == (Op.BROKEN, S)
    assert change.payload is not None
    assert msgpack.unpackb(change.payload) == {
        "lease": "main",
        "reason": "it hangs: ticket 7",
        "holders": [[lease.owner, "stuck job", lease.token]],
    }
    past = (await spell.leases.show(S)).history[0]
    assert (past.how, past.holder.token) == (LeaseHow.BROKEN, lease.token)
    assert (await spell.state.stat(S)).revision == revision
    await held.release()
    await nothing_left(lease_store, spell, other)


async def test_only_the_holder_that_was_meant_is_hit(
    spell: Spell, lease_store: LeaseStore, store: Store
) -> None:
    """With a token that is not held, or of a lease that is free, nothing happens."""
    with pytest.raises(LeaseNotHeldError, match="nobody holds it"):
        await spell.leases.break_lease(S, reason="test")
    async with spell.leases.acquire(S, label="good one") as lease:
        with pytest.raises(LeaseNotHeldError, match=f"token {lease.token - 1}") as caught:
            await spell.leases.break_lease(S, reason="test", token=lease.token - 1)
        assert caught.value.current.label == "good one"
        await lease.renew()
    assert store.log() == []
    readers = [
        await spell.leases.acquire(S, mode="shared", owner=f"r{i}", on_lost="event")
        for i in range(3)
    ]
    await spell.leases.break_lease(S, reason="test", token=readers[1].token)
    holders = (await spell.leases.show(S)).holders
    assert sorted(holder.owner for holder in holders) == ["r0", "r2"]
    await spell.leases.break_lease(S, reason="all of them")
    assert not (await spell.leases.show(S)).held
    for reader in readers:
        with pytest.raises(LeaseNotHeldError):
            await reader.release()
    await nothing_left(lease_store, spell)


async def test_breaking_does_not_count_as_a_write_of_the_scope(spell: Spell, store: Store) -> None:
    """No key changes, a demand for leases does not hinder it, and others' leases stand."""
    await spell.state.set(S, "v", 1)
    await spell.leases.require(S)
    async with spell.leases.acquire(S, name="turn") as other:
        lease = await spell.leases.acquire(S, on_lost="event")
        await spell.leases.break_lease(S, reason="test")
        assert await spell.state.get_all(S) == {"v": 1}
        await other.renew()
    assert store.meta(S).count == 1
    with pytest.raises(LeaseNotHeldError):
        await lease.release()


@pytest.mark.parametrize(
    "arguments",
    [
        {"reason": ""},
        {"reason": None},
        {"reason": 5},
        {"reason": "x" * 1025},
        {"reason": "x", "token": 0},
        {"reason": "x", "token": -1},
        {"reason": "x", "token": 1.5},
        {"reason": "x", "token": True},
        {"reason": "x", "token": 2**53},
    ],
)
async def test_breaking_wants_a_reason_and_a_token_that_can_be_one(
    spell: Spell, lease_store: LeaseStore, arguments: dict[str, Any]
) -> None:
    """The error names the argument; the holder keeps it."""
    async with spell.leases.acquire(S):
        before = lease_store.holder()
        with pytest.raises(InvalidArgumentError) as caught:
            await spell.leases.break_lease(S, **arguments)
        assert caught.value.argument in arguments
        assert lease_store.holder() == before


async def test_a_broken_lease_tells_why_and_by_whom(spell: Spell, clients: Clients) -> None:
    """In its history, and to the holder, whether it hears of it at once or by its next renewal."""
    (other,) = await clients(1)
    with context(actor="ann"):
        for listens in (False, True):
            lease = await spell.leases.acquire(S, on_lost="event")
            if listens:
                await _stand_in_line(spell, S)
            await other.leases.break_lease(S, reason="it hangs")
            if not listens:
                with pytest.raises(LeaseNotHeldError):
                    await lease.renew()
            await lease.lost.wait()
            assert lease.lost.reason.startswith("it was broken by force by ann: it hangs")
            past = (await spell.leases.show(S)).history[0]
            assert (past.how, past.reason, past.actor) == (LeaseHow.BROKEN, "it hangs", "ann")
            assert past.holder.token == lease.token


async def _stand_in_line(spell: Spell, scope: str) -> None:
    """Let the client listen: it does from the first time on that it waits."""
    with pytest.raises(LeaseUnavailableError):
        await spell.leases.acquire(scope, owner="waiter", wait=0.01)


async def test_a_hold_that_ended_otherwise_has_no_reason(spell: Spell) -> None:
    """Only a break is somebody's decision."""
    await (await spell.leases.acquire(S)).release()
    past = (await spell.leases.show(S)).history[0]
    assert (past.how, past.reason, past.actor) == (LeaseHow.RELEASED, None, None)


# --- errors ---------------------------------------------------------------------------------------


async def test_errors_of_leases_travel_between_processes(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """With code, scope, name and facts."""
    found: list[LeaseError] = []
    async with spell.leases.acquire(S, label="x") as lease:
        for options in ({"owner": "other", "wait": 0}, {}):
            arguments: dict[str, Any] = options
            with pytest.raises(LeaseError) as caught:
                await spell.leases.acquire(S, **arguments)
            found.append(caught.value)
        await lease.release()
        with pytest.raises(LeaseError) as caught:
            await lease.release()
        found.append(caught.value)
        with pytest.raises(LeaseError) as caught:
            await lease.state.set(S, "v", 1)
        found.append(caught.value)
        found.append(lease.lost_error())
    found.append(DeadlockError(S, "main", [("a", "x main"), ("b", "y main")]))
    for error in found:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
        assert copy.code == error.code
        assert (error.scope, error.name) == (S, "main")
    assert len({error.code for error in found}) == len(found)
