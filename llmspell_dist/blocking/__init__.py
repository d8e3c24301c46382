"""The same shared state for code without an event loop: threads, scripts, prefork servers.

::

    with llmspell_dist.blocking.connect("redis://localhost") as spell:
        spell.state.set("agent:alice", "mood", "curious")

Every method of the asynchronous surface is here, with the same arguments, results and errors.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from llmspell_dist.assembly import Assembly, assemble, complete_options
from llmspell_dist.blocking._agents import Agent, Agents, Effect
from llmspell_dist.blocking._log import ChangeLog
from llmspell_dist.blocking._manager import StateManager, Transaction
from llmspell_dist.blocking.driver import SyncDriver
from llmspell_dist.blocking.leases import Lease, LeaseGroup, Leases
from llmspell_dist.redis.blocking_driver import BlockingDriver

if TYPE_CHECKING:
    from llmspell_dist.config import Options
    from llmspell_dist.redis.connection import ServerInfo

__all__ = [
    "Agent",
    "Agents",
    "ChangeLog",
    "Effect",
    "Lease",
    "LeaseGroup",
    "Leases",
    "Spell",
    "StateManager",
    "Transaction",
    "connect",
]


class Spell:
    """A connection to the shared state of a namespace, for any number of threads."""

    def __init__(self, assembly: Assembly, connections: BlockingDriver) -> None:
        self._assembly = assembly
        self._connections = connections
        self._driver = SyncDriver(
            assembly.core, connections, housekeeping=assembly.options.housekeeping
        )
        self.state = StateManager(self._driver)
        """Shared state by scope and key."""
        self.log = ChangeLog(self._driver)
        """What every commit did, in order."""
        self.leases = Leases(self._driver, assembly)
        """Exclusive or shared use of a scope for a time, with fencing tokens."""
        self.agents = Agents(self._driver, self.leases)
        """Agents: their state, their processes, effects that run once."""

    def __repr__(self) -> str:
        core = self._assembly.core
        return f"<{type(self).__name__} {core.keyspace.namespace!r} on {core.server}>"

    @property
    def namespace(self) -> str:
        """The namespace that this client works in."""
        return self._assembly.core.keyspace.namespace

    @property
    def server(self) -> ServerInfo | None:
        """What the server said about itself when it was connected to last."""
        return self._connections.info

    def ping(self) -> float:
        """Return how many seconds a round trip takes."""
        return self._connections.ping()

    def open(self) -> None:
        """Connect, and check that the namespace is one that this release can work with."""
        self._connections.ping()
        self._driver.run(self._assembly.register(self._connections.info))

    def close(self) -> None:
        """Wait for what is in flight, at most five seconds, and disconnect; twice is allowed."""
        self.leases.close()
        self._connections.close()
        self._assembly.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    url: str | None = None,
    *,
    namespace: str | None = None,
    client_name: str | None = None,
    options: Options | None = None,
) -> Spell:
    """Connect to shared state; a context manager, or to be closed by hand.

    Arguments and errors are those of `llmspell_dist.connect`. The client may be shared between
    threads and used after a fork.
    """
    assembly = assemble(url, complete_options(namespace, client_name, options))
    try:
        connections = BlockingDriver(
            assembly.resolver,
            options=assembly.lane_options,
            scripts=assembly.scripts,
            clock=assembly.core.clock,
        )
        spell = Spell(assembly, connections)
        try:
            spell.open()
        except BaseException:
            spell.close()
            raise
    except BaseException:
        assembly.release()
        raise
    return spell
