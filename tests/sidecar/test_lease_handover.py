"""What becomes of clients' leases when their sidecar stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fix_sidecar import Sidecar, StartSidecar, running_sidecar

LEASE = "/v1/leases/agent:alice/main"
RunSidecar = Callable[..., Any]


@pytest.fixture
def other(url: str, namespace: str, sidecar_port: Callable[[], int]) -> RunSidecar:
    """A function that returns a sidecar to be entered, and so to be stopped within the test."""

    def run(**settings: Any) -> Any:
        return running_sidecar(url, namespace, sidecar_port(), **settings)

    return run


async def taken(sidecar: Sidecar, **wish: Any) -> dict[str, Any]:
    """Take the lease."""
    answer = await sidecar.ask("POST", LEASE, {"ttl": 600, **wish})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_stop_hands_leases_over_at_once(
    start_sidecar: StartSidecar, other: RunSidecar
) -> None:
    """Who is next in line has it long before the time to live is over."""
    staying = await start_sidecar()
    async with other() as leaving:
        first = await taken(leaving)
        waiting = asyncio.create_task(taken(staying, wait=9))
        async with asyncio.timeout(5):
            while not (await staying.ask("GET", LEASE)).json()["waiting"]:
                pass
    got = await waiting
    assert got["token"] > first["token"]
    history = (await staying.ask("GET", LEASE)).json()["history"]
    assert (history[0]["how"], history[0]["holder"]["token"]) == ("released", first["token"])


async def test_a_gateway_keeps_the_leases_of_its_clients(
    start_sidecar: StartSidecar, other: RunSidecar
) -> None:
    """They renew at another replica."""
    staying = await start_sidecar()
    async with other(keep_leases=True) as leaving:
        lease = await taken(leaving)
    answer = await staying.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"]})
    assert answer.json()["token"] == lease["token"]


async def test_what_was_given_back_is_not_handed_over_again(
    start_sidecar: StartSidecar, other: RunSidecar
) -> None:
    """The same owner has it anew, elsewhere, and keeps it."""
    staying = await start_sidecar()
    async with other() as leaving:
        lease = await taken(leaving, owner="one")
        await leaving.ask("POST", f"{LEASE}/release", {"handle": lease["handle"]})
        again = await taken(staying, owner="one")
    shown = (await staying.ask("GET", LEASE)).json()
    assert [one["token"] for one in shown["holders"]] == [again["token"]]


async def test_a_lease_is_handed_over_where_it_was_renewed_last_too(
    start_sidecar: StartSidecar, other: RunSidecar
) -> None:
    """The client moved to another sidecar, which stops."""
    first = await start_sidecar()
    lease = await taken(first)
    async with other() as second:
        await second.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"]})
    assert not (await first.ask("GET", LEASE)).json()["held"]
