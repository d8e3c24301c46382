"""The benchmark's own server: a fresh process without persistence, on a TCP port of loopback.

Every side of every row talks to the same server over the same transport. It is TCP because
valkey-glide knows no unix sockets.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from llmspell_dist.redis import embedded

__all__ = ["Server", "find_binary", "running_server"]

_START_LIMIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens and what it says about itself."""

    host: str
    port: int
    binary: str
    product: str
    version: str

    @property
    def url(self) -> str:
        """Return the URL that both sides connect to."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def described(self) -> str:
        """Return product, version and transport for the header of the table."""
        return f"{self.product} {self.version}, TCP loopback, no persistence"

    def admin(self) -> redis.Redis:
        """Return a plain blocking client for housekeeping: flush, counters, raw reads."""
        return redis.Redis(host=self.host, port=self.port)


def find_binary(asked_for: str | None = None) -> str:
    """Return the server binary: the one asked for, the one from PATH, else the embedded one."""
    return str(embedded.find_binary(asked_for))


@contextmanager
def running_server(binary: str, *options: str) -> Iterator[Server]:
    """Start a server on a free port and stop it at the end, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="llmspell-bench-") as folder:
        port = _free_port()
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
        with (Path(folder) / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield _wait_until_ready(binary, port, process, Path(folder) / "server.log")
        finally:
            process.terminate()
            process.wait(timeout=_START_LIMIT_SECONDS)


def _wait_until_ready(
    binary: str, port: int, process: subprocess.Popen[bytes], log: Path
) -> Server:
    deadline = time.monotonic() + _START_LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with redis.Redis(host="127.0.0.1", port=port) as client:
                info: dict[str, Any] = client.info("server")
        except redis.ConnectionError:
            time.sleep(0.02)
            continue
        if info["process_id"] != process.pid:
            break  # somebody else took the port in between
        product = "Valkey" if "valkey_version" in info else "Redis"
        version = str(info.get("valkey_version", info["redis_version"]))
        return Server("127.0.0.1", port, binary, product, version)
    raise SystemExit(f"{binary} did not start: {log.read_text(errors='replace')[-500:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
