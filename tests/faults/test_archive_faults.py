"""The archive under faults: deaths, failovers, a server or a target that is away."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fix_archive import archive_of, logged
from fix_faults import Proxies, Servers, client, environment, hasty, raw_to
from fix_s3 import Place, folder_place
from fix_s3_faults import S3Faults
from fix_servers import Server
from fix_state import Store, until

from llmspell_dist import Revision, StateClass
from llmspell_dist.backup.archive import Shipper
from llmspell_dist.backup.errors import PointNotCoveredError
from llmspell_dist.revision import BEGINNING

pytestmark = [pytest.mark.integration, pytest.mark.needs("kill")]

SCOPE = "agent:archived"
PROGRAM = Path(__file__).parent / "archive_process.py"
HASTY: dict[str, Any] = {"call_timeout": 0.5, "connect_timeout": 0.5, "retry_budget": 1.0}


async def write(state: Any, count: int, first: int = 0) -> Revision:
    """Write some keys, and one whose values are not in the log."""
    revision = BEGINNING
    for number in range(first, first + count):
        if number % 5 == 4:
            await state.set(SCOPE, "bulk", number, state_class=StateClass.BULK)
        revision = await state.set(SCOPE, f"k{number % 7}", f"{number} {'x' * 50}")
    return revision


def failed_again(shipper: Shipper, errors: int) -> bool:
    """Whether something has failed since."""
    return shipper.stats.errors > errors


def arrived(shipper: Shipper, revision: Revision) -> bool:
    """Whether everything up to a revision is stored."""
    return shipper.stats.positions.get("0") == revision


@contextmanager
def shipping(
    server: Server, namespace: str, place: Place, steps: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ships, and is killed at the end if it has not done so itself."""
    command = [sys.executable, str(PROGRAM), server.url, namespace, place.url, str(steps)]
    env = {**environment(), **place.environment}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("deaths", [5, pytest.param(100, marks=pytest.mark.slow)])
async def test_a_death_at_any_step_loses_nothing(
    server: Server, namespace: str, place: Place, store: Store, deaths: int
) -> None:
    """Killed before, in and after storing and moving, while writes go on; others take over."""
    archive = archive_of(place, namespace)
    choice = random.Random(deaths)
    async with client(server, namespace) as spell:
        await archive.shipper(spell).once()
        written = 0
        for death in range(deaths):
            steps = death + 1 if death < 12 else choice.randrange(1, 40)
            with shipping(server, namespace, place, steps) as process:
                while process.poll() is None:
                    await write(spell.state, 5, written)
                    written += 5
                assert process.returncode == -signal.SIGKILL
        last = await write(spell.state, 1, written)
        await archive.shipper(spell).once()
    entries = logged(store.raw, store)
    assert archive.entries(None, last) == entries
    assert archive.ranges() == [(BEGINNING, last)]
    assert archive.problems() == []
    assert len(archive.reader.timelines()) == 1
    for _ in range(5):
        first, second = sorted(choice.sample(range(len(entries)), 2))
        part = archive.entries(entries[first][0], entries[second][0])
        assert part == entries[first + 1 : second + 1]
    archive.repository.target.close()


async def test_a_killed_process_leaves_what_another_goes_on_with(
    server: Server, namespace: str, place: Place, store: Store
) -> None:
    """At a moment that is nobody's: whenever the signal comes."""
    archive = archive_of(place, namespace)
    async with client(server, namespace) as spell:
        await archive.shipper(spell).once()
        written = 0
        for _ in range(3):
            with shipping(server, namespace, place) as process:
                assert process.stdout is not None
                moved = asyncio.create_task(asyncio.to_thread(process.stdout.readline))
                while not moved.done():
                    await write(spell.state, 3, written)
                    written += 3
                assert await moved == b"moved\n"
                os.kill(process.pid, signal.SIGKILL)
        last = await write(spell.state, 1, written)
        await archive.shipper(spell).once()
    assert archive.entries(None, last) == logged(store.raw, store)
    archive.repository.target.close()


@pytest.mark.needs("replicas")
@pytest.mark.parametrize("fresh", [False, True], ids=["same-process", "another-process"])
async def test_a_failover_that_lost_writes_opens_a_timeline(
    own_server: Servers,
    fault_proxy: Proxies,
    free_port: Callable[[], int],
    tmp_path: Path,
    fresh: bool,
) -> None:
    """A real replica that was cut off before the last segment, promoted: nothing is mixed."""
    namespace = "failover"
    archive = archive_of(folder_place(tmp_path / "b"), namespace)
    port = free_port()
    master = own_server(port=port, config={"repl-diskless-sync-delay": 0})
    replica = own_server()
    proxy = fault_proxy(master)
    raw, link = raw_to(master), raw_to(replica)
    link("REPLICAOF", "127.0.0.1", port)
    await until(lambda: b"state=online" in raw("INFO", "replication"), within_s=20)
    async with client(proxy, namespace) as spell:
        shipper = archive.shipper(spell)
        await shipper.once()
        await write(spell.state, 20)
        await shipper.once()
        common = shipper.stats.positions["0"]
        old = archive.timeline
        stores = Store(raw, namespace), Store(link, namespace)
        ctl = stores[0].space.ctl("0")
        await until(lambda: link("HGET", ctl, "archive") == raw("HGET", ctl, "archive"))
        link("REPLICAOF", "NO", "ONE")
        lost = await write(spell.state, 20, 20)
        await shipper.once()
        before = logged(raw, stores[0])
        assert archive.entries(None, lost) == before
        proxy.upstream = str(replica.socket)
        proxy.reset_peer()
        last = await write(spell.state, 20, 40)
        shipper = archive.shipper(spell) if fresh else shipper
        await shipper.once()
        await write(spell.state, 5, 60)
        await shipper.once()
        after = logged(link, stores[1])
    first, second = archive.reader.timelines()
    assert (first.id, second.parent) == (old, old)
    assert second.shards["0"].revision == common
    assert "has not got the commit" in second.reason
    assert archive.entries(None, after[-1][0]) == after
    assert archive.entries(None, lost, old) == before
    assert archive.ranges() == [(BEGINNING, after[-1][0])]
    assert last < after[-1][0]
    with pytest.raises(PointNotCoveredError):
        archive.entries(None, last, old)
    assert archive.problems() == []
    raw.close()
    link.close()


async def test_a_server_that_is_away_is_waited_for(
    server: Server, fault_proxy: Proxies, namespace: str, place: Place, store: Store
) -> None:
    """While it writes on behind the cut; then everything is shipped."""
    archive = archive_of(place, namespace)
    proxy = fault_proxy(server)
    async with (
        client(server, namespace) as writer,
        client(proxy, namespace) as spell,
    ):
        shipper = archive.shipper(spell, interval_s=0.01, segment_bytes=1024)
        await shipper.once()
        stop = asyncio.Event()
        running = asyncio.create_task(shipper.run(stop))
        await write(writer.state, 10)
        await until(lambda: shipper.stats.entries > 0)
        for cut in range(3):
            with hasty(spell, **HASTY):
                proxy.down()
                await write(writer.state, 20, 20 * cut)
                errors = shipper.stats.errors
                await until(partial(failed_again, shipper, errors), within_s=20)
            proxy.up()
        last = await write(writer.state, 1)
        await until(partial(arrived, shipper, last), within_s=30)
        stop.set()
        await running
    assert archive.entries(None, last) == logged(store.raw, store)
    archive.repository.target.close()


async def test_one_who_waits_for_its_turn_outlasts_an_outage(
    server: Server, fault_proxy: Proxies, namespace: str, place: Place, store: Store
) -> None:
    """It is away for longer than a call waits; when it is back, and the turn free, it is taken."""
    archive = archive_of(place, namespace)
    proxy = fault_proxy(server)
    async with (
        client(server, namespace) as holder,
        client(proxy, namespace, **HASTY) as spell,
    ):

        def turn(one: Any) -> Any:
            return one.leases.acquire("custom:turns", name="archive")

        first = archive.shipper(holder, guard=partial(turn, holder), interval_s=0.01)
        second = archive.shipper(spell, guard=partial(turn, spell), interval_s=0.01)
        ended, stop = asyncio.Event(), asyncio.Event()
        shipped = asyncio.create_task(first.run(ended))
        await until(lambda: first.stats.shipping)
        waiting = asyncio.create_task(second.run(stop))
        proxy.down()
        await until(lambda: waiting.done() or failed_again(second, 0), within_s=20)
        assert not waiting.done()
        proxy.up()
        ended.set()
        await shipped
        last = await write(holder.state, 10)
        await until(partial(arrived, second, last), within_s=30)
        stop.set()
        await waiting
    assert archive.entries(None, last)[-1:] == logged(store.raw, store)[-1:]
    archive.repository.target.close()


async def test_s3_that_fails_is_tried_again(
    server: Server, namespace: str, s3_faults: S3Faults, store: Store
) -> None:
    """It answers 503, cuts uploads, loses answers, is full, and is away: nothing is missing."""
    archive = archive_of(s3_faults.place, namespace)
    target, last = s3_faults.place.open(tries=1), BEGINNING
    archive.repository.target = target
    async with client(server, namespace) as spell:
        shipper = archive.shipper(spell, interval_s=0.01)
        await shipper.once()
        stop = asyncio.Event()
        running = asyncio.create_task(shipper.run(stop))
        disturb: list[Callable[[], None]] = [
            lambda: s3_faults.fail("put", status=503, times=3),
            lambda: s3_faults.cut_upload(50),
            lambda: s3_faults.lose("put"),
            s3_faults.full,
            s3_faults.down,
        ]
        for number, fault in enumerate(disturb):
            errors = shipper.stats.errors
            fault()
            last = await write(spell.state, 10, 10 * number)
            await until(partial(failed_again, shipper, errors), within_s=30)
            s3_faults.up()
            s3_faults.clear()
            await until(partial(arrived, shipper, last), within_s=30)
        stop.set()
        await running
    assert archive.entries(None, last) == logged(store.raw, store)
    assert archive.problems() == []
    target.close()


async def test_credentials_that_may_only_write_are_enough(
    server: Server, namespace: str, s3_faults: S3Faults, store: Store
) -> None:
    """Nothing is read, listed, or looked for."""
    archive = archive_of(s3_faults.place, namespace)
    last = BEGINNING
    for kind in ("get", "list", "head", "delete"):
        s3_faults.deny(kind)
    async with client(server, namespace) as spell:
        await archive.shipper(spell).once()
        for number in range(2):
            shipper = archive.shipper(spell)
            await write(spell.state, 10, 10 * number)
            await shipper.once()
            last = await write(spell.state, 10, 10 * number)
            await shipper.once()
    s3_faults.clear()
    assert archive.entries(None, last) == logged(store.raw, store)
    archive.repository.target.close()
