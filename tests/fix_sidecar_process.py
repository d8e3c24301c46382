"""The sidecar as it is run: a process of its own, told what to do by signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fix_raw_http import Wire, wire
from fix_sidecar import NO_TLS

_START_S = 30.0


@dataclass(frozen=True)
class SidecarProcess:
    """A running sidecar."""

    port: int
    health: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wire(self) -> AbstractAsyncContextManager[Wire]:
        """Return what opens a raw connection."""
        return wire(self.port)

    def http(self, **options: Any) -> httpx.AsyncClient:
        """Return a client, to be entered."""
        return httpx.AsyncClient(base_url=self.url, verify=NO_TLS, **{"timeout": 30.0, **options})

    async def probe(self, path: str) -> tuple[int, Any]:
        """Ask the port for probes, on a new connection as a kubelet does."""
        async with wire(self.health) as line:
            answer = await line.ask("GET", path, connection="close")
        return answer.status, answer.document

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, within_s: float = 30.0) -> int:
        """Return its exit code, once it has ended."""
        return await asyncio.to_thread(self.process.wait, within_s)

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


StartProcess = Callable[..., Any]


@pytest.fixture
def sidecar_process(
    sidecar_port: Callable[[], int], namespace: str, tmp_path: Path
) -> Iterator[StartProcess]:
    """A function that starts ``llmspell-dist sidecar`` over a server's URL; a coroutine.

    Further arguments are those of the command; `files` is how many it may have open. It ends with
    the test, whatever happened.
    """
    started: list[subprocess.Popen[bytes]] = []

    async def start(
        url: str, *arguments: str, ready: bool = True, files: int | None = None
    ) -> SidecarProcess:
        port, health = sidecar_port(), sidecar_port()
        where = ["--bind", f"127.0.0.1:{port}", "--health", f"127.0.0.1:{health}"]
        log = tmp_path / f"sidecar-{len(started)}.log"
        told = ["--url", url, "--namespace", namespace, "sidecar", *where, *arguments]
        process = _launched(told, log, files)
        started.append(process)
        found = SidecarProcess(port, health, process, log)
        if ready:
            await _until_ready(found)
        return found

    yield start
    for process in started:
        process.kill()
        process.wait()


def _launched(arguments: list[str], log: Path, files: int | None) -> subprocess.Popen[bytes]:
    limited = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    with log.open("wb") as out:
        return subprocess.Popen(
            [*limited, sys.executable, "-m", "llmspell_dist.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


async def _until_ready(sidecar: SidecarProcess) -> None:
    """Ask as a startup probe does, until it is ready."""
    async with asyncio.timeout(_START_S):
        while True:
            assert sidecar.running, sidecar.log.read_text()
            try:
                if (await sidecar.probe("/readyz"))[0] == 200:
                    return
            except ConnectionError:
                await asyncio.sleep(0.05)
