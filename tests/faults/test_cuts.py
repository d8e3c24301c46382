"""Connections cut among 1,000 concurrent writes: nothing is lost, doubled or mixed up."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fix_faults import (
    SCOPE,
    SWEPT,
    Proxies,
    Writers,
    blocking_client,
    client,
    ends,
)
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import Store

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]

CUTS: dict[str, Callable[[FaultProxy, random.Random], Any]] = {
    "before the request": lambda proxy, chance: proxy.cut_before(
        b":log", after=chance.randrange(30)
    ),
    "between request and reply": lambda proxy, chance: proxy.drop_reply(
        b":log", after=chance.randrange(30)
    ),
    "in the request": lambda proxy, chance: proxy.cut_within(
        b":log", after=chance.randrange(30), part=chance.uniform(0.05, 0.95)
    ),
    "in a reply": lambda proxy, chance: proxy.limit_data(chance.randrange(1, 12_000)),
}


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize(
    "cuts", [5, pytest.param(20, marks=pytest.mark.slow)], ids=lambda cuts: f"{cuts} cuts"
)
async def test_a_cut_among_a_thousand_writes_loses_doubles_and_mixes_up_nothing(  # noqa: PLR0917 - fixtures
    server: Server,
    fault_proxy: Proxies,
    store: Store,
    namespace: str,
    where: str,
    cuts: int,
    record_property: Callable[[str, object], None],
) -> None:
    """All calls end well, each write is there once, and every caller has its own reply."""
    proxy = fault_proxy(server)
    chance = random.Random(f"{where} {cuts}")
    writers = Writers(store)
    async with client(proxy, namespace) as spell:
        await writers.prepare(spell.state)
        for _ in range(cuts):
            CUTS[where](proxy, chance)
            await ends(writers.burst(spell.state, 1000))
            proxy.clear()
        counts = await writers.check(spell.state)
    assert proxy.struck == cuts, "a fault did not strike: the run is void"
    assert counts["acknowledged"] == cuts * 1000
    record_property("counts", dict(counts))


async def test_cuts_of_all_connections_at_once_are_survived(
    server: Server, fault_proxy: Proxies, store: Store, namespace: str
) -> None:
    """Resets at any moment, with large values on the bulk lane among the writes."""
    proxy = fault_proxy(server)
    writers = Writers(store)
    cut = 0
    async with client(proxy, namespace) as spell:
        await writers.prepare(spell.state)
        for around in range(5):
            tasks = writers.burst(spell.state, 500)
            large = [
                spell.state.set(SCOPE, f"large{around}-{i}", bytes([i]) * 700_000) for i in range(3)
            ]
            waiting = asyncio.gather(*large)
            await tasks[100]
            cut += proxy.reset_peer()
            await ends(tasks)
            await waiting
        await writers.check(spell.state)
        for around in range(5):
            for i in range(3):
                assert await spell.state.get(SCOPE, f"large{around}-{i}") == bytes([i]) * 700_000
    assert cut >= 5


@pytest.mark.parametrize("fault", ["drop_reply", "cut_before", "cut_within"])
def test_blocking_threads_survive_cuts(
    server: Server, fault_proxy: Proxies, store: Store, namespace: str, fault: str
) -> None:
    """Eight threads add and append through twenty cuts; the sums are exact."""
    proxy = fault_proxy(server)
    with blocking_client(proxy, namespace) as spell:

        def work(me: int) -> None:
            for i in range(100):
                told[me].append(spell.state.increment(SCOPE, "sum"))
                length = spell.state.append(SCOPE, "list", [me, i])
                places[length - 1] = [me, i]

        told: list[list[float]] = [[] for _ in range(8)]
        places: dict[int, list[int]] = {}
        for k in range(20):
            getattr(proxy, fault)(b":log", after=40 * k + k)
        threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(number for mine in told for number in mine) == list(range(1, 801))
        items = spell.state.get(SCOPE, "list")
        assert len(items) == 800
        assert dict(enumerate(items)) == places
    operations = [entry.operation for entry in store.log() if entry.operation != SWEPT]
    assert len(operations) == len(set(operations)) == 1600
    assert proxy.struck == 20
    store.check()
