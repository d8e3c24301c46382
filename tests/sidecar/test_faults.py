"""Redis goes away under load: clients hear so, probes stay right, and nothing acknowledged is lost.

Over the process itself, by raw keep-alive clients: each write has its own key, so what became of it
can be looked up afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fix_faults import stopped
from fix_raw_http import Answer, Dial, Wire
from fix_sidecar_process import SidecarProcess, StartProcess

from llmspell_dist import connect

pytestmark = [pytest.mark.needs("restart"), pytest.mark.one_server]

SCOPE = "agent:faults"
CLIENTS = 12
AWAY = {(503, "STORE_UNAVAILABLE"), (504, "STORE_TIMEOUT"), (503, "OUTCOME_UNKNOWN")}
Away = Callable[[Any], AbstractContextManager[None]]


@dataclass
class Heard:
    """What clients heard of their writes, by key."""

    revisions: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    not_done: set[str] = field(default_factory=set)
    answers: set[tuple[int, str]] = field(default_factory=set)
    wrong: list[Answer] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, key: str, answer: Answer) -> None:
        document = answer.document
        if answer.status == 200:
            self.revisions[key] = document["revision"]
            return
        self.answers.add((answer.status, document["code"]))
        problem = answer.headers[b"content-type"] == b"application/problem+json"
        if answer.status not in {503, 504} or not problem or b"retry-after" not in answer.headers:
            self.wrong.append(answer)
        (self.unknown if document["may_have_happened"] else self.not_done).add(key)


async def write_on(line: Wire, name: str, heard: Heard) -> None:
    """Write one key after another on one connection, which is never cut."""
    number = 0
    while not heard.over.is_set():
        key = f"{name}-{number}"
        number += 1
        heard.note(key, await line.ask("PUT", f"/v1/state/{SCOPE}/{key}", number))


@dataclass
class Probes:
    """What the probes said meanwhile."""

    alive: set[int] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    async def keep_asking(self, sidecar: SidecarProcess, heard: Heard) -> None:
        while not heard.over.is_set():
            self.alive.add((await sidecar.probe("/livez"))[0])
            status, told = await sidecar.probe("/readyz")
            if status == 503:
                self.reasons.append(told["reason"])


@contextmanager
def crashed(server: Any) -> Any:
    """A server that is killed, and comes back with what it had on disk."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: Any) -> Any:
    """A server that answers nobody, and then everybody."""
    with stopped(server.pid):
        yield


async def until(true: Callable[[], bool]) -> None:
    """Return once something holds that a task of this loop brings about."""
    async with asyncio.timeout(40):
        while not true():  # noqa: ASYNC110 - several tasks bring it about
            await asyncio.sleep(0.01)


async def outage(
    sidecar: SidecarProcess, dial: Dial, server: Any, away: Away, *, seconds: float
) -> tuple[Heard, Probes]:
    """Take Redis away for so long under load, at least until clients and probes have noticed."""
    heard, probes = Heard(), Probes()
    async with asyncio.TaskGroup() as group:
        for place in range(CLIENTS):
            group.create_task(write_on(await dial(sidecar.port), f"c{place}", heard))
        group.create_task(probes.keep_asking(sidecar, heard))
        await until(lambda: len(heard.revisions) >= 200)
        with away(server):
            await asyncio.sleep(seconds)
            await until(lambda: len(heard.unknown | heard.not_done) >= CLIENTS)
            await until(lambda: len(probes.reasons) > 0)
        before = len(heard.revisions)
        await until(lambda: len(heard.revisions) >= before + 200)
        heard.over.set()
    return heard, probes


async def check(server: Any, namespace: str, heard: Heard) -> None:
    """Compare what clients heard with what is there."""
    async with connect(server.url, namespace=namespace) as spell:
        there = {key: found async for key, found in spell.state.items(SCOPE)}
        for key in [*heard.revisions][:: max(1, len(heard.revisions) // 50)]:
            record = await spell.state.get_record(SCOPE, key)
            assert record is not None
            assert str(record.revision) == heard.revisions[key]
    assert heard.revisions.keys() <= there.keys()
    assert not heard.not_done & there.keys()
    assert there.keys() <= heard.revisions.keys() | heard.unknown


async def survive(
    sidecar: SidecarProcess,
    dial: Dial,
    server: Any,
    *,
    away: Away,
    namespace: str,
    seconds: float = 0,
) -> None:
    """Let an outage pass, and check everything."""
    heard, probes = await outage(sidecar, dial, server, away, seconds=seconds)
    assert not heard.wrong
    assert heard.answers <= {
        (503, "STORE_UNAVAILABLE"),
        (504, "STORE_TIMEOUT"),
        (503, "OUTCOME_UNKNOWN"),
    }
    assert probes.alive == {200}
    assert all(probes.reasons)
    assert (await sidecar.probe("/readyz"))[0] == 200
    await check(server, namespace, heard)


OUTAGES = pytest.mark.parametrize("away", [crashed, frozen])


@OUTAGES
async def test_an_outage_under_load_loses_nothing_acknowledged(
    sidecar_process: StartProcess,
    dial: Dial,
    own_server: Callable[..., Any],
    namespace: str,
    away: Away,
) -> None:
    """503 or 504 with Retry-After while it lasts, alive all the time, and everything again after.

    Every acknowledged revision is there; what was said not to have happened has not.
    """
    server = own_server(fsync="always")
    sidecar = await sidecar_process(server.url)
    await survive(sidecar, dial, server, away=away, namespace=namespace)


@pytest.mark.slow
@pytest.mark.timeout(180)
@OUTAGES
async def test_thirty_seconds_of_outage_lose_nothing_acknowledged(
    sidecar_process: StartProcess,
    dial: Dial,
    own_server: Callable[..., Any],
    namespace: str,
    away: Away,
) -> None:
    """As long as a failover of a managed Redis takes."""
    server = own_server(fsync="always")
    sidecar = await sidecar_process(server.url)
    await survive(sidecar, dial, server, away=away, namespace=namespace, seconds=30)
