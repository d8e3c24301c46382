"""How a connection begins: where to, and the handshake as I/O-free steps for both drivers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.errors import StoreAuthenticationError, StoreUnavailableError
from llmspell_dist.redis.replies import error_code, error_from_reply
from llmspell_dist.redis.resp import ErrorReply, pack

if TYPE_CHECKING:
    from llmspell_dist.clock import ServerClock
    from llmspell_dist.redis.commands import ScriptSource

__all__ = [
    "CredentialSource",
    "Endpoint",
    "EndpointResolver",
    "Handshake",
    "ServerInfo",
    "StaticEndpoint",
    "handshake",
    "prepare_socket",
]


class CredentialSource(Protocol):
    """Gives the credentials of each new connection; redis-py's providers fit."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return ``(password,)`` or ``(user name, password)``."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server's address and how to greet it."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    """Of a unix socket; replaces host and port."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: CredentialSource | None = field(default=None, repr=False)
    """Asked at every connect; replaces user name and password."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    client_name: str | None = None
    protocol: int = 3

    @property
    def address(self) -> str:
        """Host and port, or the path: what errors and logs call the server."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def login(self) -> tuple[str | None, str | None]:
        """Return user name and password for a new connection."""
        if self.credentials is None:
            return self.username, self.password
        given = self.credentials.get_credentials()
        return (None, given[0]) if len(given) == 1 else (given[0], given[1])


class EndpointResolver(Protocol):
    """Says where the server is. Asked at every connect, so that a failover moves the lanes.

    The seam for Sentinel and Cluster.
    """

    @property
    def label(self) -> str:
        """What errors call the server while no address is known."""

    async def resolve(self) -> Endpoint:
        """Return the server's present address."""

    def resolve_blocking(self) -> Endpoint:
        """Do the same for the blocking driver."""


@dataclass(frozen=True, slots=True)
class StaticEndpoint:
    """A server that never moves."""

    endpoint: Endpoint

    @property
    def label(self) -> str:
        """The address."""
        return self.endpoint.address

    async def resolve(self) -> Endpoint:
        """Return the endpoint."""
        return self.endpoint

    def resolve_blocking(self) -> Endpoint:
        """Return the endpoint."""
        return self.endpoint


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server said about itself in the handshake."""

    address: str
    version: str = "unknown"
    flavour: str = "redis"
    """``redis`` or ``valkey``."""
    mode: str = "standalone"
    role: str = "master"
    client_id: int = 0
    protocol: int = 2
    run_id: str = ""
    """Changes with every start of the server process; empty where INFO is not allowed."""
    replicas: int = 0
    """Replicas connected at that moment."""


Handshake = Generator[list[bytes], list[Any], ServerInfo]
"""Yields requests to be sent together and is sent their replies; returns what was learnt."""


def handshake(
    endpoint: Endpoint,
    scripts: Sequence[ScriptSource] = (),
    *,
    previous: ServerInfo | None = None,
    clock: ServerClock | None = None,
    now: Callable[[], float] = monotonic,
) -> Handshake:
    """Greet a server: log in, select, learn who it is, load scripts, take its time.

    `previous` is this lane's last connection: if the same server process answers, it is told to
    drop that connection first, so that nothing sent there can still run after it is sent again.
    """
    greeting = yield from _log_in(endpoint)
    version, role = _text(greeting, b"version"), _text(greeting, b"role")

    sent_at = now()
    answers = yield [
        pack("SELECT", endpoint.db),
        pack("TIME"),
        pack("INFO", "server"),
        pack("INFO", "replication"),
        pack("CLIENT", "ID"),
        *[pack("SCRIPT", "LOAD", script.body) for script in scripts],
    ]
    received_at = now()
    selected, time, server_text, replication_text, client_id = answers[:5]
    for answer in answers:
        if isinstance(answer, ErrorReply) and error_code(answer.text) == "NOAUTH":
            raise error_from_reply(answer, endpoint.address)
    if isinstance(selected, ErrorReply) and endpoint.db:
        raise error_from_reply(selected, endpoint.address)
    if clock is not None and isinstance(time, list):
        clock.observe(sent_at, received_at, int(time[0]) + int(time[1]) / 1e6)
    server = _fields(server_text)
    replication = _fields(replication_text)
    valkey = server.get("valkey_version", "")
    info = ServerInfo(
        address=endpoint.address,
        version=valkey or server.get("redis_version") or version or "unknown",
        flavour="valkey" if valkey or server.get("server_name") == "valkey" else "redis",
        mode=server.get("redis_mode") or server.get("server_mode") or _text(greeting, b"mode"),
        role=replication.get("role") or role or "master",
        client_id=client_id if isinstance(client_id, int) else 0,
        protocol=int(greeting.get(b"proto", 2)),
        run_id=server.get("run_id", ""),
        replicas=int(replication.get("connected_slaves", 0)),
    )
    if previous is not None and previous.run_id and previous.run_id == info.run_id:
        # NOPERM or "No such client" change nothing: operation ids guard the commits anyhow.
        yield [pack("CLIENT", "KILL", "ID", previous.client_id)]
    return info


def _log_in(endpoint: Endpoint) -> Generator[list[bytes], list[Any], dict[bytes, Any]]:
    """Send HELLO; fall back to AUTH and CLIENT SETNAME for servers and proxies without it."""
    username, password = endpoint.login()
    hello: list[str | int] = ["HELLO", endpoint.protocol]
    if password is not None:
        hello += ["AUTH", username or "default", password]
    if endpoint.client_name:
        hello += ["SETNAME", endpoint.client_name]
    (reply,) = yield [pack(*hello)]
    if not isinstance(reply, ErrorReply):
        return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    code = error_code(reply.text)
    if code in {"WRONGPASS", "NOAUTH"} or "without any password" in reply.text:
        raise StoreAuthenticationError(endpoint.address, reply.text)
    if code not in {"ERR", "NOPROTO", "NOPERM"}:
        raise error_from_reply(reply, endpoint.address)
    if code == "ERR" and "max number of clients" in reply.text:
        raise StoreUnavailableError(endpoint.address, reply.text)
    requests = []
    if password is not None:
        requests.append(pack("AUTH", *([username] if username else []), password))
    if endpoint.client_name:
        requests.append(pack("CLIENT", "SETNAME", endpoint.client_name))
    if requests:
        replies = yield requests
        if password is not None and isinstance(replies[0], ErrorReply):
            raise StoreAuthenticationError(endpoint.address, replies[0].text)
    return {}


def _text(greeting: dict[bytes, Any], name: bytes) -> str:
    value = greeting.get(name, b"")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _fields(reply: Any) -> dict[str, str]:
    """Return INFO's lines as a dict; empty if the server refused."""
    if not isinstance(reply, bytes):
        return {}
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def prepare_socket(sock: socket.socket) -> None:
    """Set a new socket up for small requests and for noticing a dead peer."""
    if sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
