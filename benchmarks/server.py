"""The benchmark's own server: a fresh process without persistence, on a TCP port of loopback.

Every side of every row talks to the same server over the same transport: TCP, because
valkey-glide knows no unix sockets, or (``--unix``) a unix socket without valkey-glide.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from llmspell_dist.redis import embedded

__all__ = ["Server", "find_binary", "free_port", "running_server"]

_START_LIMIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens and what it says about itself."""

    host: str
    port: int
    binary: str
    product: str
    version: str
    unix_socket: str | None = None
    """The socket that both sides use instead of TCP."""

    @property
    def url(self) -> str:
        """Return the URL that both sides connect to."""
        if self.unix_socket:
            return f"unix://{self.unix_socket}?db=0"
        return f"redis://{self.host}:{self.port}/0"

    @property
    def described(self) -> str:
        """Return product, version and transport for the header of the table."""
        transport = "unix socket" if self.unix_socket else "TCP loopback"
        return f"{self.product} {self.version}, {transport}, no persistence"

    def admin(self) -> redis.Redis:
        """Return a plain blocking client for housekeeping: flush, counters, raw reads."""
        return redis.Redis.from_url(self.url)


def find_binary(asked_for: str | None = None) -> str:
    """Return the server binary: the one asked for, the one from PATH, else the embedded one."""
    return str(embedded.find_binary(asked_for))


@contextmanager
def running_server(binary: str, *options: str, unix: bool = False) -> Iterator[Server]:
    """Start a server on a free port and stop it at the end, whatever happened.

    ``unix``: let both sides use a unix socket instead of TCP.
    """
    with tempfile.TemporaryDirectory(prefix="llmspell-bench-") as folder:
        port = free_port()
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
        unix_socket = f"{folder}/s" if unix else None
        if unix_socket:
            command += ["--unixsocket", unix_socket]
        with (Path(folder) / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = _wait_until_ready(binary, port, process, Path(folder) / "server.log")
            yield replace(server, unix_socket=unix_socket)
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


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
