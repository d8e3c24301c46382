"""What is loaded: an embedded server and a sidecar, each a process, which end with the block."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import redis

from llmspell_dist.testing import embedded_server

__all__ = ["Rig", "RigError", "running_rig"]

NAMESPACE: Final = "load"
_UP_WITHIN_S: Final = 30.0
_END_WITHIN_S: Final = 30.0


class RigError(Exception):
    """Server or sidecar did not start."""


@dataclass(frozen=True, slots=True)
class Rig:
    """A running server and sidecar."""

    url: str
    http: str
    server_pid: int | None
    sidecar_pid: int
    server: str
    """Its version."""

    def command_stats(self) -> dict[str, tuple[int, int]]:
        """Return calls and microseconds of the server's commands so far."""
        with redis.Redis.from_url(self.url) as client:
            info: dict[str, Any] = client.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): (row["calls"], row["usec"]) for name, row in info.items()
        }


@contextmanager
def running_rig(log: Path, *options: str) -> Iterator[Rig]:
    """Start both, give them, end both. `options` and `log` are the sidecar's."""
    with embedded_server() as server, _held_port() as port:
        command = [sys.executable, "-m", "llmspell_dist.cli", "--url", server.url]
        command += ["--namespace", NAMESPACE, "sidecar", "--bind", f"127.0.0.1:{port}", *options]
        with log.open("wb") as output:
            sidecar = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            http = f"http://127.0.0.1:{port}"
            _until_up(http, sidecar, log)
            yield Rig(server.url, http, server.pid, sidecar.pid, str(server.version))
        finally:
            sidecar.terminate()
            try:
                sidecar.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                sidecar.kill()
                sidecar.wait()


@contextmanager
def _held_port() -> Iterator[int]:
    """Give a port that nobody else is given; the sidecar shares it (``SO_REUSEADDR``)."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _until_up(http: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _UP_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urlopen(f"{http}/readyz", timeout=1):  # noqa: S310 - our own address
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RigError(f"the sidecar did not start: {log.read_text(encoding='utf-8')[-2000:]}")
