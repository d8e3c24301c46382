"""Leases over HTTP: tokens, handles, the line, and what becomes of a client that goes away."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fix_grants import only
from fix_leases import hasten
from fix_sidecar import Sidecar, StartSidecar
from fix_streams import listening

from llmspell_dist.leases.handles import Handle, read_handle
from llmspell_dist.leases.model import LeaseMode

LEASE = "/v1/leases/agent:alice/main"
KEY = "/v1/state/agent:alice/note"


async def acquired(sidecar: Sidecar, path: str = LEASE, **wish: Any) -> dict[str, Any]:
    """Take a lease; what the client is told."""
    answer = await sidecar.ask("POST", path, wish)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def carrying(*leases: dict[str, Any]) -> dict[str, str]:
    """Return the header that carries leases."""
    return {"llmspell-lease": ", ".join(lease["handle"] for lease in leases)}


async def test_a_lease_has_a_token_and_a_handle(sidecar: Sidecar) -> None:
    """Who looks sees the holder; each grant has a higher token than the one before."""
    first = await acquired(sidecar, owner="planner", label="a planner", ttl=60)
    assert (first["owner"], first["ttl"], first["mode"]) == ("planner", 60.0, "exclusive")
    assert 50 < first["expires_in"] <= 60
    shown = (await sidecar.ask("GET", LEASE)).json()
    assert shown["held"]
    assert [(one["owner"], one["label"], one["token"]) for one in shown["holders"]] == [
        ("planner", "a planner", first["token"])
    ]
    await sidecar.ask("POST", f"{LEASE}/release", {"handle": first["handle"]})
    assert (await acquired(sidecar))["token"] > first["token"]


async def test_a_lease_that_is_held_is_refused_with_who_holds_it(sidecar: Sidecar) -> None:
    """409 with the library's code, at once, since waiting is not wanted by default."""
    await acquired(sidecar, owner="first")
    answer = await sidecar.ask("POST", LEASE, {"owner": "second"})
    assert (answer.status_code, answer.json()["code"]) == (409, "LEASE_UNAVAILABLE")
    assert "first" in answer.json()["detail"]


async def test_an_owner_must_say_that_it_holds_again(sidecar: Sidecar) -> None:
    """Reentrant it may, as often as it releases; each handle gives back one hold."""
    first = await acquired(sidecar, owner="one")
    again = await sidecar.ask("POST", LEASE, {"owner": "one"})
    assert again.json()["code"] == "LEASE_ALREADY_HELD"
    second = await acquired(sidecar, owner="one", reentrant=True)
    assert second["token"] == first["token"]
    assert (await released(sidecar, second)).status_code == 204
    assert (await sidecar.ask("GET", LEASE)).json()["holders"][0]["holds"] == 1
    assert (await released(sidecar, first)).status_code == 204
    assert not (await sidecar.ask("GET", LEASE)).json()["held"]


async def test_reentrant_without_an_owner_is_refused(sidecar: Sidecar) -> None:
    """Nobody else would ever be that owner."""
    answer = await sidecar.ask("POST", LEASE, {"reentrant": True})
    assert (answer.status_code, answer.json()["facts"]["argument"]) == (400, "owner")


async def released(sidecar: Sidecar, lease: dict[str, Any]) -> Any:
    """Give a lease back."""
    path = f"/v1/leases/{lease['scope']}/{lease['name']}/release"
    return await sidecar.ask("POST", path, {"handle": lease["handle"]})


async def test_readers_share_a_lease(sidecar: Sidecar) -> None:
    """A writer has to wait for both of them."""
    one = await acquired(sidecar, mode="shared")
    two = await acquired(sidecar, mode="shared")
    assert (await sidecar.ask("POST", LEASE, {})).json()["code"] == "LEASE_UNAVAILABLE"
    await released(sidecar, one)
    await released(sidecar, two)
    assert (await acquired(sidecar))["mode"] == "exclusive"


# --- renewing and giving back ---------------------------------------------------------------------


async def test_any_sidecar_renews_and_releases(start_sidecar: StartSidecar) -> None:
    """The handle is enough: nothing is remembered where the lease was taken."""
    here, there = await start_sidecar(), await start_sidecar()
    lease = await acquired(here, ttl=5)
    renewed = await there.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"], "ttl": 60})
    assert renewed.json()["token"] == lease["token"]
    assert 50 < renewed.json()["expires_in"] <= 60
    again = await there.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"]})
    assert again.json()["ttl"] == 5
    assert (await released(there, lease)).status_code == 204


async def test_what_was_released_can_be_neither_renewed_nor_released(sidecar: Sidecar) -> None:
    """The renewal says why; a release that is sent again is none the worse."""
    lease = await acquired(sidecar)
    await released(sidecar, lease)
    assert (await released(sidecar, lease)).status_code == 204
    answer = await sidecar.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "LEASE_NOT_HELD")
    assert "released" in answer.json()["facts"]["why"]


async def test_owner_and_token_stand_for_all_holds(sidecar: Sidecar) -> None:
    """For who has lost the handle."""
    lease = await acquired(sidecar, owner="one")
    await acquired(sidecar, owner="one", reentrant=True)
    known = {"owner": "one", "token": lease["token"]}
    assert (await sidecar.ask("POST", f"{LEASE}/renew", known)).status_code == 200
    assert (await sidecar.ask("POST", f"{LEASE}/release", known)).status_code == 204
    assert not (await sidecar.ask("GET", LEASE)).json()["held"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"handle": "AAAA"},
        {"handle": "Ä"},
        {"handle": "x" * 5000},
        {"handle": "AZYB"},
        {"owner": "one"},
        {"owner": "one", "token": -1},
        {"owner": "one", "token": 1, "mode": "mine"},
    ],
)
async def test_what_is_no_handle_is_refused(sidecar: Sidecar, body: dict[str, Any]) -> None:
    """400 before anything is sent."""
    answer = await sidecar.ask("POST", f"{LEASE}/release", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")


async def test_a_handle_of_another_lease_is_refused(sidecar: Sidecar) -> None:
    """Rights were checked for the lease in the path."""
    lease = await acquired(sidecar, "/v1/leases/agent:bob/main")
    answer = await sidecar.ask("POST", f"{LEASE}/release", {"handle": lease["handle"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")


async def test_a_handle_that_was_changed_holds_nothing(sidecar: Sidecar) -> None:
    """Redis compares owner, token and nonce with its own."""
    lease = await acquired(sidecar, owner="one")
    real = read_handle(lease["handle"])
    for operation, forged in (
        ("renew", real._replace(owner="two")),
        ("renew", real._replace(token=real.token + 1)),
        ("release", real._replace(token=real.token + 1)),
        ("release", real._replace(nonce=bytes(12))),
        ("release", real._replace(mode=LeaseMode.SHARED)),
    ):
        answer = await sidecar.ask("POST", f"{LEASE}/{operation}", {"handle": forged.text})
        assert answer.json()["code"] == "LEASE_NOT_HELD", (operation, forged)
    assert (await sidecar.ask("GET", LEASE)).json()["held"]


# --- writing under a lease ------------------------------------------------------------------------


async def test_a_write_carries_its_lease(sidecar: Sidecar) -> None:
    """It is made while the lease holds, and refused by the store once another has it."""
    lease = await acquired(sidecar)
    assert (await sidecar.ask("PUT", KEY, 1, headers=carrying(lease))).status_code == 200
    await released(sidecar, lease)
    await acquired(sidecar)
    answer = await sidecar.ask("PUT", KEY, 2, headers=carrying(lease))
    assert (answer.status_code, answer.json()["code"]) == (409, "STALE_FENCING_TOKEN")
    assert (await sidecar.ask("GET", KEY)).json() == 1


async def test_a_write_can_carry_several_leases(sidecar: Sidecar) -> None:
    """All of them must hold."""
    one = await acquired(sidecar)
    two = await acquired(sidecar, "/v1/leases/agent:alice/tools")
    assert (await sidecar.ask("PUT", KEY, 1, headers=carrying(one, two))).status_code == 200
    await released(sidecar, two)
    answer = await sidecar.ask("PUT", KEY, 2, headers=carrying(one, two))
    assert answer.json()["facts"]["name"] == "tools"


async def test_a_header_that_carries_no_handle_is_refused(sidecar: Sidecar) -> None:
    """A write that means to be fenced is never made unfenced."""
    answer = await sidecar.ask("PUT", KEY, 1, headers={"llmspell-lease": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert (await sidecar.ask("GET", KEY)).status_code == 404


async def test_a_scope_can_demand_its_lease(sidecar: Sidecar) -> None:
    """423 for who carries none; the demand ends under the lease."""
    path = "/v1/lease-requirements/agent:alice"
    assert (await sidecar.ask("PUT", path, {"name": "main"})).json() == {"changed": True}
    assert (await sidecar.ask("GET", path)).json() == {"name": "main"}
    answer = await sidecar.ask("PUT", KEY, 1)
    assert (answer.status_code, answer.json()["code"]) == (423, "LEASE_REQUIRED")
    assert (await sidecar.ask("DELETE", path)).status_code == 400
    lease = await acquired(sidecar)
    assert (await sidecar.ask("PUT", KEY, 1, headers=carrying(lease))).status_code == 200
    ended = await sidecar.ask("DELETE", path, headers=carrying(lease))
    assert ended.json() == {"changed": True}
    assert (await sidecar.ask("PUT", KEY, 2)).status_code == 200


# --- waiting --------------------------------------------------------------------------------------


async def standing_in_line(sidecar: Sidecar, count: int = 1) -> dict[str, Any]:
    """Return how the lease stands once so many wait for it."""
    async with asyncio.timeout(5):
        while True:
            shown: dict[str, Any] = (await sidecar.ask("GET", LEASE)).json()
            if shown["waiting"] == count:
                return shown


async def test_who_waits_is_served_in_order(sidecar: Sidecar) -> None:
    """The release of one is the grant of the next."""
    first = await acquired(sidecar)
    second = asyncio.create_task(acquired(sidecar, owner="second", wait=5))
    await standing_in_line(sidecar)
    third = asyncio.create_task(acquired(sidecar, owner="third", wait=None))
    shown = await standing_in_line(sidecar, 2)
    assert [one["owner"] for one in shown["waiters"]] == ["second", "third"]
    await released(sidecar, first)
    got = await second
    assert not third.done()
    await released(sidecar, got)
    assert (await third)["token"] > got["token"] > first["token"]


async def test_waiting_ends_when_the_time_is_over(sidecar: Sidecar) -> None:
    """409 with how long it was; nobody is left in line."""
    await acquired(sidecar)
    answer = await sidecar.ask("POST", LEASE, {"wait": 0.05})
    assert answer.json()["code"] == "LEASE_UNAVAILABLE"
    assert answer.json()["facts"]["waited_s"] >= 0.05
    assert (await sidecar.ask("GET", LEASE)).json()["waiting"] == 0


async def test_a_client_that_goes_leaves_the_line(sidecar: Sidecar) -> None:
    """Its connection closes, and the one behind it is first."""
    first = await acquired(sidecar)
    going = asyncio.create_task(sidecar.ask("POST", LEASE, {"wait": 60, "owner": "going"}))
    await standing_in_line(sidecar)
    going.cancel()
    await asyncio.wait([going])
    await standing_in_line(sidecar, 0)
    behind = asyncio.create_task(acquired(sidecar, owner="behind", wait=5))
    await standing_in_line(sidecar)
    await released(sidecar, first)
    assert (await behind)["owner"] == "behind"


async def test_a_request_whose_answer_was_lost_can_be_abandoned(sidecar: Sidecar) -> None:
    """What it was granted is given back, of nobody else, and twice is allowed."""
    attempt = {"attempt": "5f1c-lost"}
    await acquired(sidecar, **attempt)
    other = await acquired(sidecar, "/v1/leases/agent:bob/main", **attempt)
    for _ in range(2):
        assert (await sidecar.ask("POST", f"{LEASE}/abandon", attempt)).status_code == 204
    assert not (await sidecar.ask("GET", LEASE)).json()["held"]
    assert (await released(sidecar, other)).status_code == 204


async def test_a_request_that_is_abandoned_before_it_arrives_holds_nothing(
    sidecar: Sidecar,
) -> None:
    """It may be overtaken: its own connection was slower."""
    attempt = {"attempt": "5f1c-late"}
    assert (await sidecar.ask("POST", f"{LEASE}/abandon", attempt)).status_code == 204
    late = asyncio.create_task(sidecar.ask("POST", LEASE, attempt))
    await asyncio.wait([late])
    assert isinstance(late.exception(), httpx.RemoteProtocolError) or late.result().is_error
    assert not (await sidecar.ask("GET", LEASE)).json()["held"]


async def test_a_sidecar_that_stops_keeps_nobody_waiting(sidecar: Sidecar) -> None:
    """503, to be asked again; the line is left."""
    await acquired(sidecar)
    waiting = asyncio.create_task(sidecar.ask("POST", LEASE, {"wait": 60}))
    await standing_in_line(sidecar)
    sidecar.services.drain()
    answer = await waiting
    assert (answer.status_code, answer.json()["code"]) == (503, "DRAINING")
    assert answer.headers["retry-after"] == "1"
    assert (await sidecar.ask("GET", LEASE)).json()["waiting"] == 0


async def test_a_deadlock_is_refused(sidecar: Sidecar) -> None:
    """Who would close the circle hears who waits for whom."""
    other = "/v1/leases/agent:bob/main"
    one = await acquired(sidecar, owner="one")
    await acquired(sidecar, other, owner="two")
    waiting = asyncio.create_task(acquired(sidecar, owner="two", wait=5))
    await standing_in_line(sidecar)
    answer = await sidecar.ask("POST", other, {"owner": "one", "wait": 5})
    assert (answer.status_code, answer.json()["code"]) == (409, "DEADLOCK")
    assert [owner for owner, _ in answer.json()["facts"]["cycle"]] == ["one", "two"]
    graph = (await sidecar.ask("GET", "/v1/lease-graph")).json()
    assert [(edge["waiter"], edge["holder"]) for edge in graph["edges"]] == [("two", "one")]
    await released(sidecar, one)
    await waiting


# --- held by a connection -------------------------------------------------------------------------


async def test_a_connection_holds_a_lease_as_long_as_it_lives(sidecar: Sidecar) -> None:
    """What it says carries writes; the next one has the lease once it is closed."""
    async with listening(sidecar, f"{LEASE}/hold", ttl=60, label="shell") as events:
        held = await events.next()
        assert held.event == "held"
        assert (await sidecar.ask("PUT", KEY, 1, headers=carrying(held.data))).status_code == 200
        shown = (await sidecar.ask("GET", LEASE)).json()
        assert shown["holders"][0]["label"] == "shell"
        waiting = asyncio.create_task(acquired(sidecar, wait=9))
        await standing_in_line(sidecar)
    assert (await waiting)["token"] > held.data["token"]


async def test_a_held_lease_is_renewed_by_the_sidecar(sidecar: Sidecar) -> None:
    """Its end moves on while the client only listens."""
    async with listening(sidecar, f"{LEASE}/hold", ttl=60) as events:
        held = (await events.next()).data
        first = (await sidecar.ask("GET", LEASE)).json()["holders"][0]["expires"]
        hasten(sidecar.services.spell)
        async with asyncio.timeout(5):
            while True:
                holder = (await sidecar.ask("GET", LEASE)).json()["holders"][0]
                if holder["expires"] != first:
                    break
        assert holder["token"] == held["token"]


async def test_who_holds_by_a_connection_hears_of_the_loss(sidecar: Sidecar) -> None:
    """With the reason; then the stream ends."""
    async with listening(sidecar, f"{LEASE}/hold", ttl=60) as events:
        await events.next()
        await sidecar.ask("POST", f"{LEASE}/break", {"reason": "it hangs"})
        hasten(sidecar.services.spell)
        lost = await events.next()
        assert lost.event == "lost"
        assert "it hangs" in lost.data["reason"]
        assert [one.event for one in await events.ended()] == ["end"]


async def test_a_hold_that_does_not_come_free_is_refused(sidecar: Sidecar) -> None:
    """As the plain request is: no stream begins."""
    await acquired(sidecar)
    answer = await sidecar.ask("GET", f"{LEASE}/hold")
    assert (answer.status_code, answer.json()["code"]) == (409, "LEASE_UNAVAILABLE")


async def test_a_sidecar_that_stops_ends_holds(sidecar: Sidecar) -> None:
    """The lease is given back, and the client told that it may go elsewhere."""
    async with listening(sidecar, f"{LEASE}/hold", ttl=60) as events:
        await events.next()
        sidecar.services.drain()
        assert [one.event for one in await events.ended()] == ["end"]
    async with asyncio.timeout(5):
        while (await sidecar.ask("GET", LEASE)).json()["held"]:
            pass


# --- operators ------------------------------------------------------------------------------------


async def test_a_lease_can_be_taken_away(sidecar: Sidecar) -> None:
    """Its holder hears who did it and why, from then on its writes are refused."""
    lease = await acquired(sidecar)
    answer = await sidecar.ask(
        "POST", f"{LEASE}/break", {"reason": "it hangs"}, headers={"x-actor": "ops"}
    )
    assert answer.json()["revision"]
    renewal = await sidecar.ask("POST", f"{LEASE}/renew", {"handle": lease["handle"]})
    assert "broken by force by ops: it hangs" in renewal.json()["facts"]["why"]
    assert (await sidecar.ask("PUT", KEY, 1, headers=carrying(lease))).status_code == 409
    again = await sidecar.ask("POST", f"{LEASE}/break", {"reason": "it hangs"})
    assert again.json()["code"] == "LEASE_NOT_HELD"


async def test_leases_are_listed(sidecar: Sidecar) -> None:
    """First those that end soonest."""
    await acquired(sidecar, "/v1/leases/agent:bob/main", ttl=60)
    await acquired(sidecar, ttl=30)
    found = (await sidecar.ask("GET", "/v1/leases")).json()["leases"]
    assert [one["scope"] for one in found] == ["agent:alice", "agent:bob"]
    wrong = await sidecar.ask("GET", "/v1/leases", shard="9999")
    assert wrong.status_code == 400


async def test_each_right_is_asked_for(start_sidecar: StartSidecar) -> None:
    """Write takes, read looks, list lists (only what it may), admin breaks."""
    sidecar = await start_sidecar(only(("agent:alice", "write"), ("user:*", "list")))
    lease = await acquired(sidecar)
    assert (await sidecar.ask("GET", LEASE)).status_code == 403
    assert (await sidecar.ask("POST", f"{LEASE}/break", {"reason": "x"})).status_code == 403
    assert (await sidecar.ask("POST", "/v1/leases/agent:bob/main", {})).status_code == 403
    assert (await sidecar.ask("GET", "/v1/leases")).json() == {"leases": []}
    assert (await sidecar.ask("GET", "/v1/lease-graph")).status_code == 403
    assert (await released(sidecar, lease)).status_code == 204


def test_a_handle_is_read_as_it_was_written() -> None:
    """Everything in it survives, and it fits a header."""
    facts = ("custom:a%2Fb", "main", LeaseMode.SHARED, "ö" * 60, 2**52, bytes(range(12)), 77)
    handle = Handle(*facts)
    assert read_handle(handle.text) == handle
    assert handle.text.isascii()
    assert "," not in handle.text
