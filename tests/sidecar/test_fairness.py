"""One client's flood is that client's own trouble: others are served as if it were not there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from fix_auth import token_entry
from fix_raw_http import Dial, request
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.minting import new_token
from llmspell_dist.sidecar.settings import Limits

pytestmark = pytest.mark.one_server

KEY = "/v1/state/agent:fair/key"
LEASE = "/v1/leases/agent:fair/main"
FLOOD = 90
"""Requests in flight: as many as the test's client has connections, less a few."""
Bearer = dict[str, str]


@pytest.fixture
def two(access_path: Path) -> tuple[Access, Bearer, Bearer]:
    """An access with two callers that may everything, and their headers."""
    entries, headers = [], []
    for name in ("greedy", "modest"):
        secret, digest = new_token()
        grants = '[{scopes = ["*"], verbs = ["*"]}]'
        entries.append(token_entry(digest, name, grants=grants))
        headers.append({"authorization": f"Bearer {secret}"})
    access_path.write_text("".join(entries))
    return Access.load(access_path), headers[0], headers[1]


async def flood(
    sidecar: Sidecar, headers: Bearer, over: asyncio.Event, statuses: list[int]
) -> None:
    """Ask again and again until told otherwise."""
    while not over.is_set():
        answer = await sidecar.ask("PUT", KEY, "x" * 5000, headers=headers)
        statuses.append(answer.status_code)


async def test_a_client_waits_for_its_own_requests_only(
    start_sidecar: StartSidecar, two: tuple[Access, Bearer, Bearer], dial: Dial
) -> None:
    """With every place of one client taken, another one's request is answered at once.

    The flood's requests stand still, each at a body that does not come; so what is answered
    meanwhile has not waited for one of them.
    """
    access, greedy, modest = two
    sidecar = await start_sidecar(access, limits=Limits(client_requests=2, client_waiting=3))
    whole = request("PUT", KEY, b'"late"', greedy)
    lines = [await dial(int(sidecar.url.rpartition(":")[2])) for _ in range(8)]
    answers = {line: asyncio.create_task(line.answer()) for line in lines}
    for line in lines:
        await line.send(whole[:-1])
    refused: set[Any] = set()
    while len(refused) < 3:
        done, _ = await asyncio.wait(
            set(answers.values()) - refused, return_when=asyncio.FIRST_COMPLETED
        )
        refused |= done
    assert {one.result().status for one in refused} == {429}
    assert all(one.result().headers[b"retry-after"] == b"1" for one in refused)
    large = await sidecar.ask("PUT", f"{KEY}2", "x" * 100_000, headers=modest)
    assert large.status_code == 200
    assert (await sidecar.ask("PUT", KEY, 1, headers=modest)).status_code == 200
    assert (await sidecar.ask("GET", KEY, headers=modest)).json() == 1
    # Even of the greedy one: what is there already waits for nothing that is not.
    assert (await sidecar.ask("GET", KEY, headers=greedy)).json() == 1
    for line, answer in answers.items():
        if not answer.done():
            await line.send(whole[-1:])
    served = [await answer for answer in answers.values() if answer not in refused]
    assert [one.status for one in served] == [200] * 5


async def test_whoever_waits_for_a_lease_does_not_keep_it_from_being_given_back(
    start_sidecar: StartSidecar, two: tuple[Access, Bearer, Bearer]
) -> None:
    """More requests wait for it than a client may have at work; the release gets through."""
    access, headers, _ = two
    sidecar = await start_sidecar(access, limits=Limits(client_requests=2, client_waiting=8))
    held = (await sidecar.ask("POST", LEASE, {"ttl": 60}, headers=headers)).json()["handle"]
    waiting = [
        asyncio.create_task(sidecar.ask("POST", LEASE, {"ttl": 60, "wait": 30}, headers=headers))
        for _ in range(5)
    ]
    for left in range(5, -1, -1):
        await until_waiting(sidecar, headers, left)
        released = await sidecar.ask("POST", f"{LEASE}/release", {"handle": held}, headers=headers)
        assert released.status_code < 300
        if left:
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            held = done.pop().result().json()["handle"]
            waiting = list(pending)


async def test_waits_have_a_limit_too(
    start_sidecar: StartSidecar, two: tuple[Access, Bearer, Bearer]
) -> None:
    """What is over it is refused at once, and takes no place in the lease's line."""
    access, headers, _ = two
    sidecar = await start_sidecar(access, limits=Limits(client_requests=4, client_waiting=2))
    held = (await sidecar.ask("POST", LEASE, {"ttl": 60}, headers=headers)).json()["handle"]
    wish = {"ttl": 60, "wait": 30}
    waiting = [
        asyncio.create_task(sidecar.ask("POST", LEASE, wish, headers=headers)) for _ in range(2)
    ]
    await until_waiting(sidecar, headers, 2)
    answer = await sidecar.ask("POST", LEASE, wish, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_REQUESTS")
    await until_waiting(sidecar, headers, 2)
    for _ in waiting:
        await sidecar.ask("POST", f"{LEASE}/release", {"handle": held}, headers=headers)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        held = done.pop().result().json()["handle"]
        waiting = [one for one in waiting if not one.done()]


async def until_waiting(sidecar: Sidecar, headers: Bearer, count: int) -> None:
    """Return once so many wait for the lease."""
    async with asyncio.timeout(10):
        while (await sidecar.ask("GET", LEASE, headers=headers)).json()["waiting"] != count:
            pass


async def test_a_flood_makes_others_wait_little(
    start_sidecar: StartSidecar, two: tuple[Access, Bearer, Bearer]
) -> None:
    """With many requests of one client in flight, another one's waits for a few of them.

    Without lines of their own it would stand behind all that are in flight.
    """
    access, greedy, modest = two
    sidecar = await start_sidecar(access, limits=Limits(client_requests=2))
    sidecar.http.timeout = 60  # a flood's own requests wait for each other, long on a busy machine
    await sidecar.ask("PUT", KEY, 1, headers=modest)
    over, statuses = asyncio.Event(), list[int]()
    passed = []
    async with asyncio.TaskGroup() as group:
        for _ in range(FLOOD):
            group.create_task(flood(sidecar, greedy, over, statuses))
        for _ in range(50):
            before = len(statuses)
            assert (await sidecar.ask("GET", KEY, headers=modest)).status_code == 200
            passed.append(len(statuses) - before)
        over.set()
    assert set(statuses) == {200}
    assert median(passed) < FLOOD / 3
