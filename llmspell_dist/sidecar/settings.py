"""What a sidecar is told: where it listens, who may, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["TLS", "Limits", "Listen", "SidecarSettings"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request, one client and all together may take."""

    body_bytes: int = 16 * 1024 * 1024
    """Of one body, also once it is unpacked."""
    body_s: float = 30.0
    """In which a body must have arrived."""
    header_bytes: int = 64 * 1024
    """Of all headers of a request, names included."""
    header_s: float = 60.0
    """In which the head of the next request must have arrived: also how long a connection may rest,
    which must be longer than the clients of the usual HTTP libraries keep one."""
    answer_s: float = 30.0
    """In which a client must take some of an answer that waits for it."""
    client_requests: int = 128
    """Of one client at work at once; its others wait their turn."""
    client_waiting: int = 1024
    """Of one client that wait; more are refused (429)."""
    connections: int = 16_384
    """Open at once on the API's port; fewer if this process may have few files. More wait."""
    streams: int = 4096
    """Streams of all clients together."""
    client_streams: int = 4096
    """Streams of one client."""


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TLS:
    """Files of the certificate; with `client_ca` only clients whose certificate it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """How a sidecar is started."""

    bind: Listen | None = Listen("127.0.0.1", 8750)
    """Where the API is served."""
    unix: Path | None = None
    """A socket on which it is served too; the rights of its file and the peer's uid decide."""
    health: Listen | None = None
    """Where only ``/livez``, ``/readyz`` and ``/metrics`` are served."""
    access: Path | None = None
    """Who may what; without it everybody on this machine may everything."""
    tls: TLS | None = None
    drain_s: float = 20.0
    """How long a stop waits for what was accepted."""
    keep_leases: bool = False
    """Whether leases that clients hold through it outlive its stop."""
    fleet: bool = False
    """Whether it takes part in the hooks of the fleet: guards elsewhere are asked, too."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that webhooks may be sent to without TLS, beside this machine."""
    backups: str | None = field(default=None, repr=False)
    """Where backups are kept: a URL as ``spell.backups.to`` takes it; without it there are none."""
    backup_keys: str | None = field(default=None, repr=False)
    """What wraps the keys that backups are encrypted with, as a URL."""
    backup_older_keys: tuple[str, ...] = field(default=(), repr=False)
    """What did so before."""
    archive: bool = False
    """Whether it ships the change log to the archive beside the backups."""
    limits: Limits = field(default_factory=Limits)
