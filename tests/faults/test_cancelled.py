"""Callers cancelled at any moment, thousands of times: the others never notice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from fix_faults import SCOPE, Proxies, Writers, client, ends
from fix_lane import add
from fix_servers import Server
from fix_state import Store

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]


@pytest.mark.parametrize("cancellations", [5000, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_thousands_of_cancelled_callers_leave_no_trace(  # noqa: PLR0917 - fixtures
    server: Server,
    fault_proxy: Proxies,
    store: Store,
    namespace: str,
    cancellations: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Reads and writes cancelled at random turns, with cuts: others get their own replies.

    Afterwards nothing is left behind, and 2,000 more writes all go through.
    """
    proxy = fault_proxy(server)
    chance = random.Random(cancellations)
    writers = Writers(store)
    cancelled = cuts = 0
    async with client(proxy, namespace) as spell:
        await writers.prepare(spell.state)
        while cancelled < cancellations:
            tasks = writers.burst(spell.state, 500)
            victims = chance.sample(tasks, 450)
            for start in range(0, 450, 45):
                for _ in range(chance.randrange(5)):
                    await asyncio.sleep(0)
                if chance.random() < 0.3:
                    await asyncio.wait([tasks[chance.randrange(500)]])
                for task in victims[start : start + 45]:
                    cancelled += task.cancel()
            if chance.random() < 0.2:
                cuts += proxy.reset_peer()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in range(writers.calls):  # some were cancelled before they began
                writers.told.setdefault(number, asyncio.CancelledError())
        lanes = spell._lanes
        for lane in (lanes.fast, lanes.bulk):
            assert not lane.backlog
            assert not lane._turn
            assert not lane._groups
            assert not lane._refusals.deferred
        await ends(writers.burst(spell.state, 2500))
        assert lanes.fast.in_flight == 0
        ring = lanes.fast.ring
        assert all(group.resolved for group in ring._unresolved), "a slot of the ring is taken"
        counts = await writers.check(spell.state)
        await spell.ping()
    assert cuts >= 1, "no connection was cut: the run is void"
    assert counts["unknown"] > cancellations / 4, "hardly any call was cancelled: the run is void"
    assert counts["failed"] == 0
    record_property("counts", dict(counts))


async def test_a_cancelled_transaction_happens_whole_or_not_at_all(
    server: Server, store: Store, namespace: str
) -> None:
    """Two hundred transfers cancelled at random moments: the sum of the accounts stays."""
    chance = random.Random(3)

    async def transfer() -> None:
        async with state.transaction() as tx:
            a, b = await tx.get(SCOPE, "a"), await tx.get(SCOPE, "b")
            tx.set(SCOPE, "a", a - 1)
            tx.set(SCOPE, "b", b + 1)

    async with client(server, namespace) as spell:
        state = spell.state
        await state.set_many(SCOPE, {"a": 1000, "b": 0})
        done = 0
        for _ in range(200):
            task = asyncio.create_task(transfer())
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.002)
            task.cancel()
            done += (await asyncio.gather(task, return_exceptions=True))[0] is None
            both = await state.get_many(SCOPE, ["a", "b"])
            assert both["a"] + both["b"] == 1000
            assert both["b"] >= done
    store.check()


async def test_a_client_whose_last_commit_was_cancelled_closes_at_once(
    server: Server, namespace: str
) -> None:
    """A commit that was cancelled before it was sent does not hold the end up."""
    async with client(server, namespace) as spell:
        await spell.state.set(SCOPE, "a", 1)
        spell._lanes.fast.commit(add("never")).cancel()
        async with asyncio.timeout(4):  # a close that is held up takes 5 seconds
            await spell.close()


async def test_a_deadline_of_the_caller_ends_only_its_own_call(
    server: Server, fault_proxy: Proxies, namespace: str
) -> None:
    """A timeout around one call leaves the calls beside it alone."""
    proxy = fault_proxy(server)
    async with client(proxy, namespace) as spell:
        await spell.state.set(SCOPE, "a", "mine")
        proxy.latency(0.1)
        patient = asyncio.create_task(spell.state.get(SCOPE, "a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await spell.state.increment(SCOPE, "n")
        assert await patient == "mine"
        proxy.clear()
        assert await spell.state.increment(SCOPE, "n") == 2
