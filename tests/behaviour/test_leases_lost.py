"""A lost lease: its holder hears of it, by default by being cancelled; others are left alone."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any

import pytest
from fix_leases import Clients, LeaseStore, S, at_rest, hasten, nothing_left
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    LeaseLostError,
    LeaseNotHeldError,
    StaleFencingTokenError,
    StoreUnavailableError,
)
from llmspell_dist.leases.holding import Lease
from llmspell_dist.redis.commands import Command, ScriptCall

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]

SHORT = 0.15
"""A time to live that is over in a moment."""


async def forever() -> None:
    """Wait for what never comes; a test that gets past it has failed."""
    await asyncio.wait_for(asyncio.Event().wait(), 10)


# --- the task is cancelled ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["expired", "broken", "taken", "forgotten"])
async def test_the_holder_s_task_is_cancelled_and_hears_why(
    spell: Spell, clients: Clients, lease_store: LeaseStore, how: str
) -> None:
    """However it was lost; the next renewal finds out, and `async with` raises the error."""
    (other,) = await clients(1)
    reached = False
    with pytest.raises(LeaseLostError) as caught:  # noqa: PT012 - the loss comes at its end
        async with spell.leases.acquire(S) as lease:
            match how:
                case "expired":
                    lease_store.expire()
                case "broken":
                    await other.leases.break_lease(S, reason="test")
                case "taken":
                    lease_store.expire()
                    await other.leases.acquire(S, wait=0)
                case "forgotten":
                    lease_store.raw("DEL", lease_store.key(S))
            hasten(spell)
            await forever()
            reached = True
    assert not reached
    assert (caught.value.token, caught.value.name, caught.value.scope) == (lease.token, "main", S)
    expected = {
        "expired": "its time was over",
        "broken": "broken by force by",
        "taken": "granted to another",
        "forgotten": "data was lost",
    }
    assert expected[how] in caught.value.reason
    assert lease.lost.is_set()
    assert expected[how] in lease.lost.reason
    assert not lease.held
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # no cancellation of ours is still on its way
    await until(lambda: at_rest(spell))


async def test_a_server_that_cannot_be_reached_costs_the_lease(
    spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal without an answer: a little before the server's time is over it is lost."""
    with pytest.raises(LeaseLostError, match="not renewed in time"):  # noqa: PT012 - as above
        async with spell.leases.acquire(S, ttl=SHORT) as lease:
            hung: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            monkeypatch.setattr(spell.leases.keeper, "_execute", lambda _: hung)
            await forever()
    assert lease.expires_in_s == 0
    hung.cancel()


async def test_holding_decorated_functions_raises_it_too(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """The caller of the function hears that its work was cut short."""

    @spell.leases.holding(S)
    async def job() -> None:
        lease_store.expire()
        hasten(spell)
        await forever()

    with pytest.raises(LeaseLostError):
        await job()


async def test_it_is_the_task_that_acquired_it_that_is_cancelled(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Its children end as they always do when their parent does."""
    child_ended = asyncio.Event()

    async def child() -> None:
        try:
            await forever()
        finally:
            child_ended.set()

    with pytest.raises(LeaseLostError):  # noqa: PT012 - as above
        async with spell.leases.acquire(S), asyncio.TaskGroup() as group:
            group.create_task(child())
            await asyncio.sleep(0)
            lease_store.expire()
            hasten(spell)
    assert child_ended.is_set()


# --- what the body does ---------------------------------------------------------------------------


async def test_the_body_s_own_error_wins(spell: Spell, lease_store: LeaseStore) -> None:
    """What it raises because it was cancelled, or before it noticed, is what its caller sees."""
    with pytest.raises(KeyError) as caught:  # noqa: PT012 - as above
        async with spell.leases.acquire(S) as lease:
            lease_store.expire()
            hasten(spell)
            try:
                await forever()
            except asyncio.CancelledError:
                raise KeyError("mine") from None
    assert lease.lost.is_set()
    assert caught.value.args == ("mine",)
    with pytest.raises(KeyError):  # noqa: PT012 - as above
        async with spell.leases.acquire(S, owner="b") as lease:
            lease.grant.lose("a test says so")  # the cancellation has not arrived yet
            raise KeyError
    await asyncio.sleep(0)  # and does not arrive here
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_stale_write_in_the_body_is_seen_as_that(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """The store's refusal names the tokens; the lease then turns out to be lost."""
    with pytest.raises(StaleFencingTokenError):  # noqa: PT012 - as above
        async with spell.leases.acquire(S) as lease:
            lease_store.expire()
            await lease.state.set(S, "k", 1)
    assert lease.lost.is_set()


async def test_a_body_that_ends_as_if_nothing_had_happened_is_told(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """The release finds that it was not held: what was done since may be out of turn."""
    (other,) = await clients(1)
    with pytest.raises(LeaseLostError, match="its time was over"):
        async with spell.leases.acquire(S):
            lease_store.expire()
    with pytest.raises(LeaseLostError, match="broken by force by"):
        async with spell.leases.acquire(S):
            await other.leases.break_lease(S, reason="test")
    with pytest.raises(LeaseLostError, match="granted to another"):  # noqa: PT012 - as above
        async with spell.leases.acquire(S):
            lease_store.expire()
            taken = await other.leases.acquire(S)
    assert taken.held
    await taken.release()
    with pytest.raises(LeaseLostError):
        async with spell.leases.acquire(S) as lease:
            lease.grant.lose("a test says so")
    await until(lambda: at_rest(spell, other))


async def test_a_body_that_swallows_the_cancellation_is_told_all_the_same(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """As for a timeout: to go on is its business, to believe that all is well is not."""
    went_on = False
    with pytest.raises(LeaseLostError):  # noqa: PT012 - as above
        async with spell.leases.acquire(S):
            lease_store.expire()
            hasten(spell)
            try:
                await forever()
            except asyncio.CancelledError:
                went_on = True
    assert went_on


# --- others' cancellations ------------------------------------------------------------------------


async def test_a_timeout_around_it_is_still_a_timeout(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """With a lease that is held, and with one that was lost at the same moment."""
    for lost in (False, True):
        with pytest.raises(TimeoutError):  # noqa: PT012 - as above
            async with asyncio.timeout(None) as timeout, spell.leases.acquire(S) as lease:
                if lost:
                    lease.grant.lose("a test says so")
                # Both are on their way before the task runs again.
                timeout.reschedule(asyncio.get_running_loop().time())
                await forever()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    lease_store.expire()
    async with spell.leases.acquire(S, owner="next"):
        pass
    await nothing_left(lease_store, spell)


async def test_a_timeout_outside_a_lease_that_was_lost_does_not_fire(
    spell: Spell, lease_store: LeaseStore
) -> None:
    """Its own cancellation is told apart from ours."""
    with pytest.raises(LeaseLostError):  # noqa: PT012 - as above
        async with asyncio.timeout(30), spell.leases.acquire(S):
            lease_store.expire()
            hasten(spell)
            await forever()


@pytest.mark.parametrize("first", ["lost", "cancelled"])
@pytest.mark.parametrize("apart", [False, True])
async def test_somebody_else_s_cancellation_is_not_swallowed(
    spell: Spell, first: str, apart: bool
) -> None:
    """Before, after or together with a loss: the task ends cancelled, as was asked for."""
    entered = asyncio.Event()
    leases: list[Lease] = []

    async def work() -> None:
        async with spell.leases.acquire(S, owner=f"{first}{apart}") as lease:
            leases.append(lease)
            entered.set()
            try:
                await forever()
            finally:
                if apart:
                    second.set()
                    await asyncio.shield(go_on)

    second, go_on = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(work())
    await entered.wait()

    def strike(what: str) -> None:
        if what == "lost":
            leases[0].grant.lose("a test says so")
        else:
            task.cancel()

    strike(first)
    if apart:
        await second.wait()
    strike("cancelled" if first == "lost" else "lost")
    go_on.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert task.cancelled()
    await spell.leases.release(S, owner=leases[0].owner, token=leases[0].token)


async def test_leases_within_one_another_are_told_apart(spell: Spell) -> None:
    """The one that was lost raises, at its own place; if both were, the outer one's is seen."""
    for lost, message in (("inner", "name=inner"), ("outer", "name=outer"), ("both", "name=outer")):
        told: list[str] = []
        try:
            async with spell.leases.acquire(f"agent:{lost}", name="outer") as outer:
                try:
                    async with spell.leases.acquire(f"agent:{lost}", name="inner") as inner:
                        for lease in (outer, inner):
                            if lost in (lease.name, "both"):
                                lease.grant.lose("a test says so")
                        await forever()
                except LeaseLostError as error:
                    told.append(f"name={error.name}")
        except LeaseLostError as error:
            told.append(f"name={error.name}")
        assert told[-1] == message
        assert len(told) == 1
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


# --- other ways to hear of it ---------------------------------------------------------------------


async def test_an_event_cancels_nobody(spell: Spell, lease_store: LeaseStore) -> None:
    """The holder looks at it when it wants; `async with` raises at its end."""
    with pytest.raises(LeaseLostError):  # noqa: PT012 - as above
        async with spell.leases.acquire(S, on_lost="event") as lease:
            lease_store.expire()
            hasten(spell)
            await asyncio.wait_for(lease.lost.wait(), 5)
            assert lease.lost.reason
            with pytest.raises(LeaseLostError):
                lease.check()
            await asyncio.sleep(0)
    with pytest.raises(LeaseNotHeldError):
        await lease.renew()


async def test_a_function_is_called_with_the_lease(spell: Spell, lease_store: LeaseStore) -> None:
    """Once, when it is lost; nobody is cancelled."""
    told: list[Lease] = []
    lease = await spell.leases.acquire(S, on_lost=told.append)
    lease_store.expire()
    hasten(spell)
    await asyncio.wait_for(lease.lost.wait(), 5)
    assert told == [lease]
    with pytest.raises(LeaseNotHeldError):
        await lease.release()
    assert told == [lease]


async def test_a_function_that_fails_harms_no_other_lease(
    spell: Spell, lease_store: LeaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged; the others are renewed as ever."""

    def fails(_: Lease) -> None:
        raise ZeroDivisionError

    async with spell.leases.acquire("agent:bob") as other:
        with caplog.at_level(logging.ERROR, "llmspell_dist.leases"):
            lease = await spell.leases.acquire(S, on_lost=fails)
            lease_store.expire()
            hasten(spell)
            await asyncio.wait_for(lease.lost.wait(), 5)
        assert any(record.exc_info for record in caplog.records)
        first = other.grant.sent_at
        hasten(spell)
        await until(lambda: other.grant.sent_at > first)
        assert other.held


async def test_a_lease_that_was_released_is_not_lost(spell: Spell, lease_store: LeaseStore) -> None:
    """Whatever becomes of it afterwards."""
    told: list[Lease] = []
    async with spell.leases.acquire(S, on_lost=told.append) as lease:
        pass
    lease_store.raw("DEL", lease_store.key(S))
    lease.grant.lose("too late")
    assert not lease.lost.is_set()
    assert told == []


@pytest.mark.library_only("over HTTP the next renewal says so")
async def test_break_is_heard_at_once_by_a_client_that_listens(
    spell: Spell, clients: Clients, lease_store: LeaseStore
) -> None:
    """Every hold of the owner hears it, long before the next renewal."""
    (other,) = await clients(1)
    for client in (spell, other):
        await client.leases._wakes.listen("0")
    one = await spell.leases.acquire(S, owner="job", on_lost="event")
    two = await spell.leases.acquire(S, owner="job", on_lost="event", reentrant=True)
    three = await other.leases.acquire(S, owner="job", on_lost="event", reentrant=True)
    readers = [
        await other.leases.acquire("agent:r", mode="shared", owner=f"r{i}", on_lost="event")
        for i in range(2)
    ]
    await other.leases.break_lease(S, reason="stuck")
    await other.leases.break_lease("agent:r", reason="stuck", token=readers[0].token)
    for lease in (one, two, three, readers[0]):
        await asyncio.wait_for(lease.lost.wait(), 2)
        assert lease.lost.reason.startswith("it was broken by force by")
    assert readers[1].held
    await readers[1].release()
    await nothing_left(lease_store, spell, other)


# --- renewing -------------------------------------------------------------------------------------


@pytest.mark.library_only("it looks at the requests to the server")
async def test_nothing_renews_after_the_release(
    spell: Spell, lease_store: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a renewal that was due; and while it is held it is renewed again and again."""
    renewals: list[bytes] = []
    execute = spell.leases.keeper._execute

    def counting(call: Command | ScriptCall) -> Any:
        assert isinstance(call, ScriptCall)
        renewals.append(call.keys[0])
        return execute(call)

    monkeypatch.setattr(spell.leases.keeper, "_execute", counting)
    other = await spell.leases.acquire("agent:bob")
    lease = await spell.leases.acquire(S)
    mine, others = lease_store.key(S), lease_store.key("agent:bob")

    async def seen(key: bytes, times: int) -> None:
        await until(lambda: renewals.count(key) == times)

    for round_ in range(1, 4):
        hasten(spell)
        await seen(mine, round_)
        await seen(others, round_)
        await until(lambda: not spell.leases.keeper._renewing)
    spell.leases.keeper._look(lease.grant, monotonic())  # it is due, and released before
    await lease.release()
    for round_ in range(4, 9):
        hasten(spell)
        await seen(others, round_)
    assert renewals.count(mine) == 3
    await other.release()
    await until(lambda: not spell.leases.keeper._renewing)
    await nothing_left(lease_store, spell)


async def test_a_renewal_that_fails_is_tried_again(
    spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is time: a short outage costs nothing."""
    execute, failures = spell.leases.keeper._execute, 0

    def failing(call: Any) -> Any:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise StoreUnavailableError("here", "a test says so")
        return execute(call)

    monkeypatch.setattr(spell.leases.keeper, "_execute", failing)
    async with spell.leases.acquire(S, ttl=10) as lease:
        hasten(spell)
        await until(lambda: failures == 3)
        first = lease.grant.sent_at
        await until(lambda: lease.grant.sent_at > first)
        assert lease.held
        assert not lease.lost.is_set()
