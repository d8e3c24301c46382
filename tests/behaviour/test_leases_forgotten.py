"""What is forgotten: leases that ended long ago; in a forked child, all that is the parent's."""

from __future__ import annotations

import pytest
from fix_forks import ended_well, in_a_fork
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left
from fix_state import sweep_all

from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseLostError, LeaseNotHeldError, StaleFencingTokenError

pytestmark = pytest.mark.integration
T = "user:u"


# --- the sweeper ----------------------------------------------------------------------------------


async def test_a_lease_that_ended_a_day_ago_is_forgotten(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Released, expired or broken, of writers and of readers; nothing of it is left in Redis."""
    for number, mode in enumerate(("exclusive", "shared") * 3):
        lease = await spell.leases.acquire(S, name=f"n{number}", mode=mode, on_lost="event")
        match number // 2:
            case 0:
                await lease.release()
            case 1:
                lease_store.expire(S, f"n{number}")
            case _:
                await spell.leases.break_lease(S, name=f"n{number}", reason="test")
    await sweep_all(spell)
    assert lease_store.raw("ZCARD", lease_store.registry) == 6  # not long enough ago
    for number in range(6):
        lease_store.age(2, S, f"n{number}")
    await sweep_all(spell)
    assert lease_store.raw("EXISTS", lease_store.registry) == 0
    left = [key for key in lease_store.store.all_keys() if b":lease:" in key]
    assert left == []
    assert (await spell.leases.show(S, name="n0")).history == ()


async def test_a_lease_that_is_held_or_was_held_lately_is_kept(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """However long ago it was taken for the first time; who waits for it goes on waiting."""
    (other,) = await clients(1)
    held = await spell.leases.acquire(S)
    reader = await spell.leases.acquire(T, mode="shared")
    waiter = await in_line(lease_store, other.leases.acquire(S))
    async with spell.leases.acquire(S, name="lately"):
        pass
    registered = lease_store.raw.now_ms() - 3 * 86_400_000
    names = [lease_store.key(S), lease_store.key(T), lease_store.key(S, "lately")]
    for key in names:
        lease_store.raw("ZADD", lease_store.registry, registered, key)
    for _ in range(2):
        await sweep_all(spell)
    assert lease_store.raw("ZCARD", lease_store.registry) == 3
    assert len((await spell.leases.show(S, name="lately")).history) == 1
    await held.renew()
    await reader.renew()
    await held.release()
    await (await granted(waiter)).release()
    await reader.release()
    await nothing_left(lease_store, spell, other)


async def test_what_waiters_that_are_gone_left_behind_goes_with_the_lease(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Their places and what they waited for; lines of others in the same hash stay."""
    stays = await spell.leases.acquire(T)
    lost = await spell.leases.acquire(S, on_lost="event", renew=False)
    raw = lease_store.raw
    for number, scope in enumerate((S, S, T)):  # as processes that were killed leave it
        nonce = bytes((number,)) * 12
        owner = b"o" if number else b"p"
        record = b"x" + bytes(4) + bytes(6) + bytes(6) + bytes((len(owner),)) + owner
        raw("HSET", lease_store.key(scope), b"w:" + nonce, record)
        raw("ZADD", lease_store.queue(scope), number + 1, nonce)
        lines = raw("HGET", lease_store.waits, owner) or b""
        raw("HSET", lease_store.waits, owner, lines + nonce + lease_store.key(scope) + b"\n")
    lease_store.age(2)
    await sweep_all(spell)
    assert lease_store.raw("EXISTS", lease_store.key(S), lease_store.queue(S)) == 0
    flat = raw("HGETALL", lease_store.waits)
    assert flat == [b"o", b"\2" * 12 + lease_store.key(T) + b"\n"]
    with pytest.raises(StaleFencingTokenError) as caught:
        await lost.state.set(S, "v", 1)
    assert caught.value.why == "lost"
    raw("HDEL", lease_store.waits, "o")
    raw("DEL", lease_store.queue(T))
    raw("HDEL", lease_store.key(T), b"w:" + b"\2" * 12)
    await stays.release()


async def test_tokens_go_on_growing_when_the_lease_was_forgotten(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Also for a client that has never seen one; a writer of before is refused."""
    (fresh,) = await clients(1)
    lease = await spell.leases.acquire(S, on_lost="event", renew=False)
    await lease.state.set(S, "v", 1)
    lease_store.age(2)
    await sweep_all(spell)
    async with fresh.leases.acquire(S) as later:
        assert later.token > lease.token
        with pytest.raises(StaleFencingTokenError):
            await lease.state.set(S, "v", 2)


# --- forks ----------------------------------------------------------------------------------------


@pytest.mark.needs("process")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_lease_is_not_held_in_a_forked_child(spell: Spell, lease_store: LeaseStore) -> None:
    """There it counts as lost, cannot be renewed or released, and nothing renews it by itself."""
    lease = await spell.leases.acquire(S)
    parent = spell.leases.steps.client
    before = lease_store.holder()

    def child() -> None:
        assert not lease.held
        assert lease.expires_in_s == 0
        with pytest.raises(LeaseLostError, match="forked"):
            lease.check()
        for operation in (lease.renew, lease.release):
            with pytest.raises(LeaseNotHeldError, match="forked"):
                operation().send(None)  # refused before it would wait for anything
        assert not spell.leases._grants
        assert spell.leases.keeper._timer is None
        assert not spell.leases.keeper._heap
        assert not spell.leases.keeper._renewing
        assert spell.leases.steps.client != parent

    assert ended_well(in_a_fork(child))
    assert lease.held
    assert lease_store.holder() == before
    await lease.renew()
    await lease.state.set(S, "v", 1)
    assert spell.leases.steps.client == parent
    await lease.release()
    await nothing_left(lease_store, spell)
