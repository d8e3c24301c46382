"""The keeper renews in time, says in time that a lease is lost, and forgets what has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.leases import keeper as module
from llmspell_dist.leases.keeper import Grant, Keeper
from llmspell_dist.leases.terms import make_terms, retry_after_s

pytestmark = pytest.mark.unit
RENEWED = [1, b"1000"]


class World:
    """A keeper with a clock that is set by hand, and a server that answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sent: list[tuple[Any, int, int]] = []
        self.replies: list[asyncio.Future[Any]] = []
        self.lost: list[Grant] = []
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        steps: Any = SimpleNamespace(renew_call=lambda *facts: facts)
        self.keeper = Keeper(steps, self.execute)

    def execute(self, call: Any) -> asyncio.Future[Any]:
        self.sent.append(call)
        self.replies.append(asyncio.get_running_loop().create_future())
        return self.replies[-1]

    def grant(self, ttl: float = 3.0, *, renew: bool = True) -> Grant:
        target = SimpleNamespace(name="main", text="agent:a")
        claim: Any = SimpleNamespace(target=target, terms=make_terms(ttl=ttl, renew=renew))
        grant = Grant(claim, 7, self.now)
        grant.on_lost = lambda: self.lost.append(grant)
        self.keeper.keep(grant)
        return grant

    async def at(self, now: float) -> None:
        """Let it be `now` seconds after the start."""
        self.now = 1000 + now
        self.keeper._tick()
        await self.turns()

    async def answer(self, reply: Any) -> None:
        """Let the server answer the oldest renewal without an answer."""
        future = self.replies.pop(0)
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)
        await self.turns()

    @staticmethod
    async def turns() -> None:
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A keeper whose time and server are the test's."""
    world = World(monkeypatch)
    yield world
    await world.keeper.close()
    for future in world.replies:
        future.cancel()


async def test_it_renews_at_a_third_of_the_time_again_and_again(world: World) -> None:
    """And never twice for one third."""
    grant = world.grant(3.0)
    await world.at(0.99)
    assert world.sent == []
    for round_ in range(1, 5):
        await world.at(round_ * 1.0)
        await world.at(round_ * 1.0 + 0.1)
        assert len(world.sent) == round_
        assert world.sent[-1] == (grant.claim, 7, 3000)
        world.now = 1000 + round_ * 1.0
        await world.answer(RENEWED)
        assert grant.holds
    assert world.lost == []


async def test_time_counts_from_when_the_renewal_was_sent(world: World) -> None:
    """An answer that took long is not worth more."""
    grant = world.grant(3.0)
    await world.at(1.0)
    await world.at(2.0)
    await world.answer(RENEWED)
    assert grant.sent_at == 1001.0
    assert grant.deadline == pytest.approx(1001 + 2.75)
    world.now = 1000 + 3.74
    assert grant.holds
    world.now = 1000 + 3.76
    assert not grant.holds


async def test_without_an_answer_it_is_lost_a_little_before_the_time_is_over(
    world: World,
) -> None:
    """Whatever the server says then, it stays lost."""
    grant = world.grant(3.0)
    await world.at(1.0)
    await world.at(2.74)
    assert world.lost == []
    await world.at(2.75)
    assert world.lost == [grant]
    assert grant.lost_because == "it was not renewed in time"
    await world.answer(RENEWED)
    await world.at(10)
    assert not grant.holds
    assert world.lost == [grant]
    assert len(world.sent) == 1


async def test_a_renewal_that_fails_is_tried_again_while_there_is_time(world: World) -> None:
    """Soon, and the last time not after the end."""
    grant = world.grant(3.0)
    now, tries = 1.0, 0
    while grant.holds:
        await world.at(now)
        if len(world.sent) > tries:
            tries = len(world.sent)
            await world.answer(StoreUnavailableError("here"))
        now += retry_after_s(3.0)
    assert tries == 7  # at 1.0 and every 0.25 s before 2.75
    await world.at(now)
    assert world.lost == [grant]
    second = world.grant(3.0)
    await world.at(now + 1.0)
    await world.answer(StoreUnavailableError("here"))
    await world.at(now + 1.0 + retry_after_s(3.0))
    await world.answer(RENEWED)
    assert second.holds
    assert world.lost == [grant]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ([0, b"EXPIRED", b""], "its time was over"),
        ([0, b"GONE"], "it was released or broken, or its time was over"),
        ([0, b"LOST"], "the server does not know it: its data was lost or went back"),
    ],
)
async def test_a_refusal_loses_it_at_once(world: World, reply: list[Any], why: str) -> None:
    """With the server's reason; nothing is tried again."""
    grant = world.grant(3.0)
    await world.at(1.0)
    await world.answer(reply)
    assert world.lost == [grant]
    assert grant.lost_because == why
    await world.at(1.5)
    assert len(world.sent) == 1


async def test_a_released_one_is_never_renewed(world: World) -> None:
    """Before a renewal was due, and while one is on its way."""
    early, late = world.grant(3.0), world.grant(3.0)
    early.end()
    await world.at(1.0)
    assert len(world.sent) == 1
    late.end()
    await world.answer([0, b"GONE"])
    for now in (2, 3, 10):
        await world.at(now)
    assert len(world.sent) == 1
    assert world.lost == []
    assert not world.keeper._heap


async def test_without_renewal_only_the_end_is_watched(world: World) -> None:
    """And a renewal by hand moves it."""
    grant = world.grant(3.0, renew=False)
    await world.at(2.0)
    grant.renewed(world.now)
    world.keeper.keep(grant)
    await world.at(2.75)
    assert world.lost == []
    await world.at(4.75)
    assert world.lost == [grant]
    assert world.sent == []


async def test_a_renewal_by_hand_moves_the_next_one(world: World) -> None:
    """The one that was planned is not sent besides."""
    grant = world.grant(3.0)
    world.now = 1000.5
    grant.renewed(world.now)
    world.keeper.keep(grant)
    await world.at(1.0)
    assert world.sent == []
    await world.at(1.5)
    assert len(world.sent) == 1


async def test_a_holder_s_function_that_fails_stops_nothing(world: World) -> None:
    """The other leases that are due in the same moment are looked after."""
    first, second = world.grant(3.0), world.grant(3.0)

    def fails() -> None:
        raise ZeroDivisionError

    first.on_lost = fails
    await world.at(2.75)
    assert not first.holds
    assert world.lost == [second]
    third = world.grant(3.0)
    await world.at(2.75 + 1.0)
    assert len(world.sent) == 1
    assert third.holds


async def test_many_short_holds_with_a_long_time_to_live_do_not_pile_up(world: World) -> None:
    """What has ended is forgotten long before its renewal would have been due."""
    kept = [world.grant(86_400) for _ in range(100)]
    for _ in range(20_000):
        world.grant(86_400).end()
    assert len(world.keeper._heap) < 3000
    await world.at(28_800)
    assert len(world.sent) == len(kept)


async def test_grants_of_other_threads_are_collected(world: World) -> None:
    """At the next look at the latest; whether that is in time is told."""
    assert world.keeper._due == float("inf")
    target = SimpleNamespace(name="main", text="agent:a")
    claim: Any = SimpleNamespace(target=target, terms=make_terms(ttl=3.0))
    offered = Grant(claim, 8, world.now)
    assert world.keeper.offer(offered) is True
    world.keeper.collect()
    assert world.keeper.offer(Grant(claim, 9, world.now + 1)) is False
    await world.at(1.0)
    assert [token for _, token, _ in world.sent] == [8]
    await world.at(2.0)
    assert [token for _, token, _ in world.sent] == [8, 9]


async def test_its_timer_is_set_for_the_next_look(world: World) -> None:
    """One for all, and none when there is nothing to look after."""
    assert world.keeper._timer is None
    world.grant(30.0)
    assert world.keeper._due == pytest.approx(1010)
    soon = world.grant(3.0)
    assert world.keeper._due == pytest.approx(1001)
    soon.end()
    await world.at(1.0)
    assert world.keeper._due == pytest.approx(1010)


async def test_closed_it_sends_nothing_more(world: World) -> None:
    """Renewals that are on their way are given up."""
    world.grant(3.0)
    await world.at(1.0)
    assert len(world.keeper._renewing) == 1
    await world.keeper.close()
    assert not world.keeper._renewing
    assert not world.keeper._heap
    await world.at(2.0)
    assert len(world.sent) == 1
