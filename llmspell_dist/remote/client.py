"""The client of a sidecar: what `llmspell_dist.connect("http://…")` returns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.clock import ServerClock
from llmspell_dist.closing import AsyncClosing
from llmspell_dist.config import Options
from llmspell_dist.errors import InvalidArgumentError, NamespaceMismatchError
from llmspell_dist.keys import KeySpace
from llmspell_dist.redis.connection import ServerInfo
from llmspell_dist.remote.address import parse_address
from llmspell_dist.remote.agents import RemoteAgents
from llmspell_dist.remote.correlation import RemoteCorrelations
from llmspell_dist.remote.credentials import Credentials
from llmspell_dist.remote.driver import RemoteDriver
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.remote.events import RemoteEvents
from llmspell_dist.remote.leases import RemoteLeases
from llmspell_dist.remote.log import RemoteLog
from llmspell_dist.remote.state import RemoteState
from llmspell_dist.remote.transport import Transport
from llmspell_dist.remote.watch import RemoteWatches
from llmspell_dist.state.core import Core
from llmspell_dist.state.values import Values

if TYPE_CHECKING:
    from llmspell_dist.remote.backups import RemoteBackups
    from llmspell_dist.state.manager import StateManager

__all__ = ["ABSENT", "RemoteSpell", "connect_remote"]

_OF_THE_SIDECAR: Final = (
    "cipher",
    "health_check_interval",
    "max_correlations",
    "max_in_flight",
    "near_cache",
    "protocol",
    "retention",
    "shards",
    "telemetry",
)
"""Options about the connection to Redis, or about all who work in the namespace."""

ABSENT: Final[Mapping[str, str]] = {
    "hooks": "hooks run in the process that they are registered in; the sidecar has its own",
    "near_cache": "what it keeps in memory is told by Redis; the sidecar can have one",
    "replay": "it runs the hooks of this process",
}
"""What a `Spell` has and a client of a sidecar has not, and why."""


class RemoteSpell(AsyncClosing):
    """A connection of one event loop to a namespace, through a sidecar; `connect` makes it."""

    def __init__(self, transport: Transport, about: Mapping[str, Any]) -> None:
        options = transport.options
        self._transport = transport
        self._about = about
        core = Core(
            KeySpace(about["namespace"], about["shards"]),
            Values(options.make_codec(), _Unencrypted()),
            options.classes.resolver(),
            ServerClock(),
            actor=options.client_name,
            server=transport.server,
        )
        self._driver = RemoteDriver(core, transport)
        self._watches = RemoteWatches(self._driver)
        self.state: StateManager = RemoteState(self._driver, self._watches)
        """Shared state by scope and key."""
        self.leases = RemoteLeases(self._driver, partial(RemoteState, watches=self._watches))
        """Exclusive or shared use of a scope for a time, with fencing tokens."""
        self.agents = RemoteAgents(self._driver, self.leases)
        """Agents: their state, their processes, and effects that run once."""
        self.events = RemoteEvents(transport, f"remote-{os.urandom(8).hex()}")
        """Events between processes: heard live, or handled durably."""
        self.correlation = RemoteCorrelations(self._driver)
        """What belongs together, as one timeline: events, commits, hook runs, leases and links."""
        self.log = RemoteLog(transport)
        """The change log: how long it is, and who holds it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace!r} through {self._transport.server}>"

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise NotThroughSidecarError(name, ABSENT[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @cached_property
    def backups(self) -> RemoteBackups:
        """Snapshots of the state and the archive, in the place that the sidecar was given."""
        # Imported here: most programs make no backups.
        from llmspell_dist.remote.backups import RemoteBackups  # noqa: PLC0415

        return RemoteBackups(self._transport)

    @property
    def namespace(self) -> str:
        """The namespace that the sidecar works in."""
        name: str = self._about["namespace"]
        return name

    @property
    def server(self) -> ServerInfo | None:
        """What the server behind the sidecar said about itself when this client connected."""
        store = self._about["store"]
        if store is None:
            return None
        known = {field.name for field in fields(ServerInfo)}
        told = {name: value for name, value in store.items() if name in known}
        return ServerInfo(self._transport.server, **told)

    async def ping(self) -> float:
        """Return how many seconds a round trip takes, to the server behind the sidecar."""
        started = monotonic()
        await self._transport.request("GET", ("readyz",))
        return monotonic() - started

    async def close(self) -> None:
        """End what this client has open and disconnect; twice is allowed."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._transport.close)
            stack.push_async_callback(self._watches.close)
            stack.push_async_callback(self.events.close)
            stack.push_async_callback(self.leases.close)
            stack.push_async_callback(self.leases.leave)


class _Unencrypted:
    """Leaves values as they are: the sidecar encrypts what must be."""

    def encrypt(self, value: bytes, *, associated_data: bytes) -> bytes:  # noqa: ARG002
        """Return a value as it is."""
        return value

    def decrypt(self, value: bytes, *, associated_data: bytes) -> bytes:  # noqa: ARG002
        """Return a value as it is."""
        return value


async def connect_remote(
    url: str, options: Options, *, namespace: str | None, token: str | os.PathLike[str] | None
) -> RemoteSpell:
    """Return an open client of the sidecar at `url`.

    `namespace` must be the sidecar's, if it is given: `NamespaceMismatchError` otherwise.
    """
    _check_options(options)
    transport = Transport(parse_address(url), options, Credentials.given(token))
    try:
        about = (await transport.request("GET", ("v1", "about"))).document
        transport.serve_by(about["instance"])
        _check_namespace(namespace, about["namespace"])
        return RemoteSpell(transport, about)
    except BaseException:
        await transport.close()
        raise


def _check_namespace(wanted: str | None, served: str) -> None:
    if wanted is not None and wanted != served:
        raise NamespaceMismatchError(wanted, "name", wanted, served)


def _check_options(options: Options) -> None:
    usual = Options()
    for name in _OF_THE_SIDECAR:
        value = getattr(options, name)
        if value != getattr(usual, name) and value is not False:
            rule = "must be given to the sidecar: over HTTP it means nothing"
            raise InvalidArgumentError(name, value, rule)
