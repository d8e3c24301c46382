"""Many connections that say nothing: probes are answered, Redis is reached, and it passes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_raw_http import Dial, Wire, wire
from fix_sidecar import StartSidecar
from fix_sidecar_process import StartProcess

from llmspell_dist.sidecar.descriptors import PROBES, Room, room_for
from llmspell_dist.sidecar.settings import Limits, Listen

pytestmark = pytest.mark.one_server

KEY = "/v1/state/agent:many/key"
FILES = 320
FLOOD = 500


@pytest.mark.needs("process")
async def test_idle_connections_do_not_take_the_files_of_the_rest(
    sidecar_process: StartProcess, dial: Dial, url: str
) -> None:
    """More of them than the process may have files: it is alive and ready, and serves on after."""
    sidecar = await sidecar_process(url, files=FILES)
    early = await dial(sidecar.port)
    assert (await early.ask("PUT", KEY, 1)).status == 200
    crowd = [await dial(sidecar.port) for _ in range(FLOOD)]
    for _ in range(3):
        assert (await sidecar.probe("/livez"))[0] == 200
        assert await sidecar.probe("/readyz") == (200, {"status": "ready", "reason": None})
    assert (await early.ask("GET", KEY)).document == 1
    for line in crowd:
        await line.close()
    assert (await (await dial(sidecar.port)).ask("GET", KEY)).document == 1
    assert "Too many open files" not in sidecar.log.read_text()


async def test_no_more_are_accepted_than_there_may_be(
    start_sidecar: StartSidecar, dial: Dial
) -> None:
    """One more waits, and is served when another goes."""
    sidecar = await start_sidecar(limits=Limits(connections=16))
    port = int(sidecar.url.rpartition(":")[2])
    lines = [await dial(port) for _ in range(16)]
    for line in lines:
        assert (await line.ask("PUT", KEY, 1)).status == 200
    late = await dial(port)
    asked = asyncio.create_task(late.ask("GET", KEY))
    for line in lines:  # each of these takes longer than to answer the late one would
        assert (await line.ask("GET", KEY)).document == 1
    assert not asked.done()
    await lines[0].close()
    assert (await asked).document == 1


async def test_a_probe_takes_the_place_of_who_rests(
    start_sidecar: StartSidecar, sidecar_port: Callable[[], int], dial: Dial
) -> None:
    """Whoever fills the port for probes, and says nothing, is let go for who asks."""
    health = Listen("127.0.0.1", sidecar_port())
    await start_sidecar(health=health)
    crowd = [await dial(health.port) for _ in range(3 * PROBES)]
    async with wire(health.port) as line:
        assert (await line.ask("GET", "/livez")).status == 200
    ended = [line for line in crowd if await _has_ended(line)]
    assert len(ended) == len(crowd) - PROBES + 1


async def _has_ended(line: Wire) -> bool:
    """Return whether the server has hung up: by the time a later one is answered it has."""
    try:
        return await asyncio.wait_for(line.reader.read(1), 0.02) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def test_the_unix_socket_has_a_limit_too(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    """The one that rests longest goes; who asked lately stays."""
    path = tmp_path / "s.sock"
    room = room_for(64).unix
    await start_sidecar(unix=path, limits=Limits(connections=64))
    lines = [Wire(*await asyncio.open_unix_connection(path)) for _ in range(room)]
    try:
        assert (await lines[0].ask("PUT", KEY, 1)).status == 200
        lines.append(Wire(*await asyncio.open_unix_connection(path)))
        assert (await lines[-1].ask("GET", KEY)).document == 1
        assert (await lines[0].ask("GET", KEY)).document == 1
        assert await _has_ended(lines[1])
    finally:
        for line in lines:
            await line.close()


@pytest.mark.parametrize(
    ("files", "room"),
    [
        (256, Room(48, 16)),
        (1024, Room(624, 208)),
        (32_768, Room(16_384, 8144)),
        (1_048_576, Room(16_384, 16_384)),
    ],
)
def test_connections_leave_files_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, files: int, room: Room
) -> None:
    """Whatever the system gives."""
    monkeypatch.setattr("llmspell_dist.sidecar.descriptors._files", lambda: files)
    assert room_for(Limits().connections) == room


def test_it_is_said_if_few_connections_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer than the streams that there may be, by the settings."""
    monkeypatch.setattr("llmspell_dist.sidecar.descriptors._files", lambda: 1024)
    room_for(16_384, streams=4096)
    assert "only 624 connections can be open" in caplog.text


def test_a_low_limit_of_files_is_raised_as_far_as_the_system_lets() -> None:
    """Systems give few until they are asked for more."""
    code = (
        "import resource as r; from llmspell_dist.sidecar.descriptors import raise_file_limit;"
        "hard = min(r.getrlimit(r.RLIMIT_NOFILE)[1], 2000);"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, hard)); raise_file_limit();"
        "assert r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
