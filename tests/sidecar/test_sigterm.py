"""SIGTERM: what was accepted is answered, what lasts ends in order, and then the process ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fix_faults import stopped
from fix_raw_http import Answer, CutError, Dial, Wire
from fix_sidecar_process import SidecarProcess, StartProcess

from llmspell_dist import connect

pytestmark = [pytest.mark.needs("process"), pytest.mark.one_server]

SCOPE = "agent:sigterm"


@dataclass
class Told:
    """What clients were told of their writes."""

    done: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    cut_within: list[bytes] = field(default_factory=list)


async def write_on(line: Wire, name: str, told: Told, count: Callable[[], None]) -> None:
    """Write one key after another on one connection, as long as it lasts."""
    number = 0
    while True:
        key = f"{name}-{number}"
        number += 1
        try:
            answer = await line.ask("PUT", f"/v1/state/{SCOPE}/{key}", number)
        except CutError as cut:
            told.unanswered.add(key)
            if cut.seen:
                told.cut_within.append(cut.seen)
            return
        (told.done if answer.status == 200 else told.refused).add(key)
        count()
        if answer.closes:
            return


async def keys_there(url: str, namespace: str) -> set[str]:
    """Return what was written, as Redis has it."""
    async with connect(url, namespace=namespace) as spell:
        return {key async for key, _ in spell.state.items(SCOPE)}


async def under_load(sidecar: SidecarProcess, dial: Dial, *, clients: int, least: int) -> Told:
    """Stop a sidecar while clients write, after so many writes; return what they were told."""
    told = Told()
    enough = asyncio.Event()

    def count() -> None:
        if len(told.done) >= least:
            enough.set()

    lines = [await dial(sidecar.port) for _ in range(clients)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for place, line in enumerate(lines):
            group.create_task(write_on(line, f"{sidecar.port}-{place}", told, count))
        await enough.wait()
        sidecar.terminate()
    assert await sidecar.ended() == 0, sidecar.log.read_text()
    assert not told.refused
    assert not told.cut_within
    return told


async def test_whatever_is_carried_out_is_answered(
    sidecar_process: StartProcess, dial: Dial, url: str, namespace: str
) -> None:
    """Of requests on kept connections: those in Redis are those that were answered, to the last.

    What a client sends on a connection that the server has closed already is not accepted, and is
    not carried out either.
    """
    sidecar = await sidecar_process(url)
    told = await under_load(sidecar, dial, clients=32, least=500)
    assert len(told.done) >= 500
    assert await keys_there(url, namespace) == told.done


@pytest.mark.slow
async def test_no_stop_of_many_leaves_a_request_without_its_answer(
    sidecar_process: StartProcess, dial: Dial, url: str, namespace: str
) -> None:
    """At ten different moments, with more clients than may work at once."""
    seen: set[str] = set()
    for turn in range(10):
        sidecar = await sidecar_process(url)
        told = await under_load(sidecar, dial, clients=200, least=200 + 97 * turn)
        seen |= told.done
        assert await keys_there(url, namespace) == seen


async def held(sidecar: SidecarProcess, dial: Dial, count: int) -> list[Wire]:
    """Send writes while Redis stands still; return once the sidecar has read them all."""
    lines = [await dial(sidecar.port) for _ in range(count)]
    for place, line in enumerate(lines):
        body = b"%d" % place
        head = f"PUT /v1/state/{SCOPE}/h{place} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        # The server says "continue" when the handler asks for the body: then it is at work.
        await line.send(head + b"expect: 100-continue\r\n\r\n")
        assert (await line.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await line.send(body)
    return lines


async def test_requests_at_work_are_answered_after_the_signal(
    sidecar_process: StartProcess, dial: Dial, own_server: Callable[..., Any], namespace: str
) -> None:
    """Redis stands still when the signal comes, and goes on: all of them succeed."""
    server = own_server()
    sidecar = await sidecar_process(server.url)
    with stopped(server.pid):
        lines = await held(sidecar, dial, 20)
        sidecar.terminate()
        async with asyncio.timeout(10):
            while (await sidecar.probe("/readyz"))[1]["reason"] != "it is stopping":
                pass
    answers = [await line.answer() for line in lines]
    assert [answer.status for answer in answers] == [200] * 20
    assert all(answer.closes for answer in answers)
    assert await sidecar.ended() == 0
    assert len(await keys_there(server.url, namespace)) == 20


async def test_it_ends_in_time_without_redis(
    sidecar_process: StartProcess, dial: Dial, own_server: Callable[..., Any]
) -> None:
    """Who waits for Redis is told that it is away; the process ends as it was asked to."""
    server = own_server()
    sidecar = await sidecar_process(server.url)
    server.kill()
    lines = [await dial(sidecar.port) for _ in range(5)]
    for line in lines:
        await line.send(b"GET /v1/state/agent:a/k HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    sidecar.terminate()
    answers: list[Answer] = [await line.answer() for line in lines]
    assert {answer.status for answer in answers} == {503}
    assert all(answer.headers[b"retry-after"] == b"1" for answer in answers)
    assert await sidecar.ended() == 0


async def test_a_sidecar_that_waits_for_its_redis_ends_at_once(
    sidecar_process: StartProcess, own_server: Callable[..., Any]
) -> None:
    """It never served anything."""
    server = own_server()
    server.kill()
    sidecar = await sidecar_process(server.url, ready=False)
    async with asyncio.timeout(30):
        while "waiting for the server" not in sidecar.log.read_text():
            assert sidecar.running, sidecar.log.read_text()
            await asyncio.sleep(0.05)
    sidecar.terminate()
    assert await sidecar.ended(10) == 0


async def test_a_second_signal_ends_it_at_once(
    sidecar_process: StartProcess, dial: Dial, own_server: Callable[..., Any]
) -> None:
    """Whatever it still waits for."""
    server = own_server()
    sidecar = await sidecar_process(server.url, "--drain", "600")
    with stopped(server.pid):
        await held(sidecar, dial, 1)
        sidecar.terminate()
        async with asyncio.timeout(10):
            while (await sidecar.probe("/readyz"))[1]["reason"] != "it is stopping":
                pass
        sidecar.terminate()
        assert await sidecar.ended(5) == -signal.SIGTERM


async def test_long_waits_end_with_a_word_and_leases_are_handed_over(
    sidecar_process: StartProcess, url: str, namespace: str
) -> None:
    """Who waits for a lease is told to come back; a stream says that it ends; the lease is free."""
    sidecar = await sidecar_process(url)
    lease = "/v1/leases/agent:alice/main"
    async with sidecar.http() as http:
        assert (await http.post(lease, json={"ttl": 600})).status_code == 200
        waiting = asyncio.create_task(http.post(lease, json={"ttl": 600, "wait": 60}))
        async with http.stream("GET", "/v1/watch/agent:alice") as stream:
            assert stream.status_code == 200
            async with asyncio.timeout(10):
                while not (await http.get(lease)).json()["waiting"]:
                    pass
            sidecar.terminate()
            text = "".join([piece async for piece in stream.aiter_text()])
        assert "event: end" in text
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (503, "DRAINING")
        assert answer.headers["retry-after"] == "1"
    assert await sidecar.ended() == 0
    async with (
        connect(url, namespace=namespace) as spell,
        spell.leases.acquire("agent:alice", name="main", wait=0) as taken,
    ):
        assert taken.token
