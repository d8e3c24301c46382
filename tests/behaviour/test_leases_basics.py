"""Leases: taken, renewed and given back, in all three forms; tokens that only grow; server time."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line, nothing_left, renewals
from fix_servers import behind
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    LeaseNotHeldError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.model import LeaseHow, LeaseMode
from llmspell_dist.revision import from_ms
from llmspell_dist.scope import Scope

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]


# --- three forms ----------------------------------------------------------------------------------


async def test_a_context_manager_holds_it_for_its_block(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Inside it is held and says so, afterwards it is given back."""
    async with spell.leases.acquire(S, label="worker") as lease:
        assert lease.held
        assert (lease.scope, lease.name, lease.mode) == (
            Scope.parse(S),
            "main",
            LeaseMode.EXCLUSIVE,
        )
        assert lease.ttl_s == 10
        assert 5 < lease.expires_in_s <= 10
        assert str(lease.token) in repr(lease)
        lease.check()
        info = await spell.leases.show(S)
        assert [(h.owner, h.token, h.label) for h in info.holders] == [
            (lease.owner, lease.token, "worker")
        ]
    assert not lease.held
    assert lease.expires_in_s == 0
    assert not lease.lost.is_set()
    assert not (await spell.leases.show(S)).held
    await nothing_left(lease_store, spell)


async def test_a_body_that_raises_gives_it_back_and_its_error_is_seen(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """The lease changes nothing about errors of the body."""
    with pytest.raises(KeyError, match="mine"):
        async with spell.leases.acquire(S):
            raise KeyError("mine")
    await nothing_left(lease_store, spell)


async def test_awaited_it_is_held_until_it_is_released(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """By hand, once."""
    lease = await spell.leases.acquire(S)
    assert lease.held
    await lease.release()
    assert not lease.held
    with pytest.raises(LeaseNotHeldError, match="released already") as caught:
        await lease.release()
    assert caught.value.operation == "release it"
    with pytest.raises(LeaseNotHeldError, match="released already"):
        await lease.renew()
    await nothing_left(lease_store, spell)


async def test_a_lease_that_was_awaited_can_be_a_context_manager_too(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """For code that decides later; releasing inside the block is no error at its end."""
    lease = await spell.leases.acquire(S)
    async with lease as same:
        assert same is lease
        await lease.release()
    await nothing_left(lease_store, spell)


async def test_a_decorated_function_holds_it_while_it_runs(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Each call anew; name, docstring and result are the function's."""
    tokens = []

    @spell.leases.holding(S, label="job", pass_as="lease")
    async def job(number: int, *, lease: Any = None) -> int:
        """Do it."""
        assert lease.held
        holders = (await spell.leases.show(S)).holders
        assert [holder.label for holder in holders] == ["job"]
        tokens.append(lease.token)
        return number * 2

    assert (job.__name__, job.__doc__) == ("job", "Do it.")
    assert [await job(1), await job(2)] == [2, 4]
    assert tokens[0] < tokens[1]
    await nothing_left(lease_store, spell)


async def test_a_decorator_finds_the_scope_in_the_arguments(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Calls about one scope exclude each other, calls about others do not."""
    inside: set[str] = set()
    most = 0

    @spell.leases.holding(lambda who, **_: f"agent:{who}", name="turn")
    async def job(who: str, *, turns: int = 1) -> None:
        nonlocal most
        assert who not in inside
        inside.add(who)
        most = max(most, len(inside))
        for _ in range(turns):
            await spell.ping()
        inside.discard(who)

    await asyncio.gather(*[job(who, turns=3) for who in ("a", "b") * 5])
    assert most == 2
    for who in ("a", "b"):
        assert lease_store.left_over(f"agent:{who}", "turn") == []


async def test_a_decorator_checks_its_arguments_where_it_stands(spell: Spell) -> None:
    """Not first when the function is called."""
    for bad in ({"ttl": 0.01}, {"wait": -1}, {"mode": "write"}, {"label": ""}, {"name": ""}):
        arguments: dict[str, Any] = bad
        with pytest.raises(ValueError, match=next(iter(bad))):
            spell.leases.holding(S, **arguments)


async def test_nothing_is_sent_before_it_is_awaited(spell: Spell, lease_store: LeaseStore) -> None:
    """What `acquire` returns is only a wish."""
    wish = spell.leases.acquire(S)
    assert lease_store.raw("EXISTS", lease_store.key(S)) == 0
    async with wish as lease:
        assert lease.held


# --- renewing -------------------------------------------------------------------------------------


async def test_renewing_gives_the_whole_time_again(spell: Spell, lease_store: LeaseStore) -> None:
    """Or another time, which stays; the token is the same."""
    async with spell.leases.acquire(S, ttl=60) as lease:
        token = lease.token
        lease_store.put_expiry(lease_store.raw.now_ms() + 20_000)
        assert await lease.renew() == 60
        (holder,) = (await spell.leases.show(S)).holders
        assert 50 < (holder.expires - from_ms(lease_store.raw.now_ms())).total_seconds() <= 60
        assert await lease.renew(timedelta(seconds=600)) == 600 == lease.ttl_s
        assert 590 < lease.expires_in_s <= 600
        (holder,) = (await spell.leases.show(S)).holders
        assert (holder.token, holder.ttl_s) == (token, 600)
        assert await lease.renew() == 600


async def test_a_long_body_keeps_the_lease(spell: Spell, lease_store: LeaseStore) -> None:
    """It is renewed by itself: the record's expiry moves on again and again."""
    async with spell.leases.acquire(S, ttl=60) as lease:
        await renewals(lease_store, spell)
        assert lease.held
        await lease.state.set(S, "k", 1)
    await nothing_left(lease_store, spell)


async def test_without_renewal_it_ends_by_itself(spell: Spell, lease_store: LeaseStore) -> None:
    """A little before the server's time is over the holder says that it holds it no more."""
    lease = await spell.leases.acquire(S, ttl=0.1, renew=False, on_lost="event")
    await until(lambda: not lease.held)
    await asyncio.wait_for(lease.lost.wait(), 5)
    assert lease.lost.reason == "it was not renewed in time"
    with pytest.raises(LeaseNotHeldError, match="not renewed in time"):
        await lease.release()

    async def free() -> bool:
        return not (await spell.leases.show(S)).held

    await until(free)


async def test_without_renewal_it_can_be_renewed_by_hand(spell: Spell) -> None:
    """As often as wanted."""
    async with spell.leases.acquire(S, ttl=5, renew=False) as lease:
        before = lease.grant.deadline
        for _ in range(3):
            await lease.renew()
        assert lease.grant.deadline > before


# --- by owner and token ---------------------------------------------------------------------------


async def test_who_knows_owner_and_token_can_renew_and_release(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """As a process that was restarted; all holds of the owner end."""
    (other,) = await clients(1)
    lease = await spell.leases.acquire(S, owner="job", ttl=5, on_lost="event")
    again = await spell.leases.acquire(S, owner="job", ttl=5, reentrant=True, on_lost="event")
    await other.leases.renew(S, owner="job", token=lease.token, ttl=60)
    (holder,) = (await spell.leases.show(S)).holders
    assert (holder.ttl_s, holder.holds) == (60, 2)
    await other.leases.release(S, owner="job", token=lease.token)
    assert not (await spell.leases.show(S)).held
    for held in (lease, again):
        with pytest.raises(LeaseNotHeldError, match="it was released at"):
            await held.release()
    await nothing_left(lease_store, spell)


async def test_wrong_facts_change_nothing(spell: Spell, lease_store: LeaseStore) -> None:
    """Another owner, another token, another name: each is refused, also after a release so."""
    lease = await spell.leases.acquire(S, owner="job", on_lost="event")
    token = lease.token
    wrong = [("other", token, "main"), ("job", token + 1, "main"), ("job", token, "turn")]
    for _ in range(2):
        before = lease_store.holder()
        for owner, number, name in wrong:
            for operation in (spell.leases.renew, spell.leases.release):
                with pytest.raises(LeaseNotHeldError) as caught:
                    await operation(S, name=name, owner=owner, token=number)
                assert caught.value.name == name
        assert lease_store.holder() == before
        if before is not None:
            await spell.leases.release(S, owner="job", token=token)
            with pytest.raises(LeaseNotHeldError):
                await spell.leases.release(S, owner="job", token=token)


# --- tokens ---------------------------------------------------------------------------------------


async def test_tokens_only_grow(spell: Spell, clients: Clients, lease_store: LeaseStore) -> None:
    """Over release, expiry and break, whoever asks; never equal, never lower."""
    (other,) = await clients(1)
    tokens = []
    for round_ in range(12):
        client = (spell, other)[round_ % 2]
        lease = await client.leases.acquire(S, on_lost="event")
        tokens.append(lease.token)
        match round_ % 3:
            case 0:
                await lease.release()
            case 1:
                lease_store.expire()
            case _:
                await other.leases.break_lease(S, reason="test", token=lease.token)
    assert tokens == sorted(set(tokens))
    assert (await spell.leases.show(S)).token == tokens[-1]


async def test_a_token_is_above_all_that_the_client_has_seen(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Even if the server has forgotten the lease and its clock stands far behind."""
    behind.get(spell, spell).leases.steps.highest = ahead = 2**52  # a sidecar's, if there is one
    async with spell.leases.acquire(S) as lease:
        assert lease.token > ahead
    lease_store.raw("DEL", lease_store.key(S))
    async with spell.leases.acquire(S) as lease:
        assert lease.token > ahead + 1


async def test_a_waiter_s_token_is_above_all_that_its_client_has_seen(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The server grants it later, and must know the floor then."""
    (other,) = await clients(1)
    other.leases.steps.highest = ahead = 2**52
    for mode in LeaseMode:
        lease = await spell.leases.acquire(S, on_lost="event")
        waiter = await in_line(lease_store, other.leases.acquire(S, mode=mode))
        await lease.release()
        got = await granted(waiter)
        assert got.token > ahead
        await got.release()


async def test_an_older_reader_does_not_set_tokens_back(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """It holds again, renews and releases; the last token granted stays the newest one."""
    first = await spell.leases.acquire(S, mode="shared", owner="a")
    spell.leases.steps.highest = 2**52  # as if the server's clock had gone back since
    second = await spell.leases.acquire(S, mode="shared", owner="b")
    again = await spell.leases.acquire(S, mode="shared", owner="a", reentrant=True)
    await first.renew()
    await first.release()
    assert (await spell.leases.show(S)).token == second.token > again.token
    await again.release()
    await second.release()


async def test_a_token_is_above_the_highest_that_wrote(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The scope remembers it when the lease itself is forgotten."""
    (fresh,) = await clients(1)
    spell.leases.steps.highest = 2**52
    async with spell.leases.acquire(S) as lease:
        await lease.state.set(S, "k", 1)
    lease_store.raw("DEL", lease_store.key(S))
    async with fresh.leases.acquire(S, mode="shared") as reader:
        assert reader.token > lease.token
    lease_store.raw("DEL", lease_store.key(S))
    async with fresh.leases.acquire(S) as later:
        assert later.token > lease.token


async def test_leases_of_other_names_and_scopes_are_independent(spell: Spell) -> None:
    """Held side by side by whoever."""
    async with (
        spell.leases.acquire(S) as one,
        spell.leases.acquire(S, name="turn") as two,
        spell.leases.acquire(S, name="a b:c%") as three,
        spell.leases.acquire("agent:bob") as four,
        spell.leases.acquire("workflow:w/step:s") as five,
    ):
        held = [one, two, three, four, five]
        assert all(lease.held for lease in held)
        assert len({lease.token for lease in held}) == 5
        assert three.name == "a b:c%"
        assert (await spell.leases.show(S, name="a b:c%")).holders[0].token == three.token


# --- the server's time decides --------------------------------------------------------------------


async def test_an_expired_lease_cannot_write_or_be_renewed_or_released(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Though nobody else has taken it, and though its holder believes in it."""
    lease = await spell.leases.acquire(S, on_lost="event", renew=False)
    lease_store.expire()
    assert lease.held
    with pytest.raises(StaleFencingTokenError) as stale:
        await lease.state.set(S, "k", 1)
    assert stale.value.why == "expired"
    with pytest.raises(LeaseNotHeldError, match="its time was over"):
        await lease.renew()
    assert lease.lost.is_set()
    assert not lease.held
    other = await spell.leases.acquire(S, owner="other", wait=0)
    assert other.token > lease.token
    await other.release()
    past = (await spell.leases.show(S)).history
    assert [(p.how, p.holder.token) for p in past] == [
        (LeaseHow.RELEASED, other.token),
        (LeaseHow.EXPIRED, lease.token),
    ]


@pytest.mark.needs("process")  # the server inside this process has this process's clock
async def test_the_client_s_clock_does_not_matter(
    spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It jumps by an hour, both ways, while a lease is held: nothing changes."""
    real = time.time
    async with spell.leases.acquire(S) as lease:
        for jump in (3600, -3600):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            assert lease.held
            await lease.renew()
            await lease.state.set(S, "k", jump)
            with pytest.raises(LeaseUnavailableError):
                await spell.leases.acquire(S, owner="other", wait=0)


async def test_closing_the_client_gives_everything_back(
    clients: Clients, spell: Spell, lease_store: LeaseStore
) -> None:
    """Leases that are still held, exclusive and shared, and nothing renews them."""
    (other,) = await clients(1)
    await other.leases.acquire(S)
    await other.leases.acquire("agent:bob", mode="shared")
    await other.close()
    assert lease_store.left_over(S) == []
    assert lease_store.left_over("agent:bob") == []
    past = (await spell.leases.show(S)).history
    assert [p.how for p in past] == [LeaseHow.RELEASED]
