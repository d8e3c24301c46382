"""The same shared state for code without an event loop: threads, scripts, prefork servers.

::

    with llmspell_dist.blocking.connect("redis://localhost") as spell:
        spell.state.set("agent:alice", "mood", "curious")

Every method of the asynchronous surface is here, with the same arguments, results and errors.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from llmspell_dist.assembly import Assembly, assemble, complete_options
from llmspell_dist.blocking._agents import Agent, Agents, Effect
from llmspell_dist.blocking._log import ChangeLog
from llmspell_dist.blocking._manager import StateManager, Transaction
from llmspell_dist.blocking.backstage import Backstage
from llmspell_dist.blocking.driver import SyncDriver
from llmspell_dist.blocking.events import Events
from llmspell_dist.blocking.hooks import Hooks
from llmspell_dist.blocking.leases import Lease, LeaseGroup, Leases
from llmspell_dist.blocking.near import NearReads
from llmspell_dist.blocking.watching import Watch, Watches
from llmspell_dist.cache.tap import BlockingTap
from llmspell_dist.closing import KEPT, Closing
from llmspell_dist.config import note_default_url
from llmspell_dist.hooks.emitting import EventHooks
from llmspell_dist.hooks.memory import ResultCache
from llmspell_dist.redis.blocking_driver import BlockingDriver
from llmspell_dist.watch.feed import Feeds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmspell_dist.blocking._backups import Backups
    from llmspell_dist.blocking._correlation import Correlations
    from llmspell_dist.blocking.replay import Replays
    from llmspell_dist.config import Options
    from llmspell_dist.redis.connection import ServerInfo
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = [
    "Agent",
    "Agents",
    "ChangeLog",
    "Effect",
    "Events",
    "Hooks",
    "Lease",
    "LeaseGroup",
    "Leases",
    "Spell",
    "StateManager",
    "Transaction",
    "Watch",
    "connect",
]


class Spell(Closing):
    """A connection to the shared state of a namespace, for any number of threads."""

    def __init__(self, assembly: Assembly, connections: BlockingDriver) -> None:
        self._assembly = assembly
        self._connections = connections
        self._backstage = Backstage(assembly)
        self._feeds = Feeds(self._backstage.hub)
        self._state_class = assembly.state_class(StateManager)
        self._backstage.at_end(self._feeds.close)
        self.near_cache = self._make_near(assembly)
        """What is served from memory; None unless the options ask for it."""
        kept = ResultCache()
        tapped = BlockingTap(connections, kept)
        assembly.core.caches.append(kept.wrote)
        if self.near_cache is not None:
            tapped = BlockingTap(cast("BlockingDriver", tapped), self.near_cache)
            assembly.core.caches.append(self.near_cache.wrote)
        self._driver = SyncDriver(
            assembly.core,
            cast("BlockingDriver", tapped),
            housekeeping=assembly.options.housekeeping,
        )
        self.hooks = Hooks(self._driver, self._backstage, kept)
        """What runs before and after everything that this client does to shared state."""
        self._driver.seen = self.hooks.interceptor
        seen = self.hooks.interceptor
        self._watches = Watches(self._driver, self._backstage, self._feeds, seen)
        self.state = self._state_over(self._driver)
        """Shared state by scope and key."""
        self.log = ChangeLog(self._driver)
        """What every commit did, in order."""
        self.events = Events(self._backstage)
        """Events between processes: heard live, or handled durably."""
        self.events.observer = EventHooks(self.hooks.points, self._run_in_a_thread)
        self.leases = Leases(self._driver, self._backstage, self._state_of)
        """Exclusive or shared use of a scope for a time, with fencing tokens."""
        self.leases.points = self.hooks.points
        self.agents = Agents(self._driver, self.leases, points=self.hooks.points)
        """Agents: their state, their processes, effects that run once."""

    @cached_property
    def correlation(self) -> Correlations:
        """What belongs to a correlation id, as a timeline."""
        from llmspell_dist.blocking._correlation import Correlations  # noqa: PLC0415

        return Correlations(self._driver)

    @cached_property
    def backups(self) -> Backups:
        """Backups of this namespace: snapshots, an archive of the log, any moment restored."""
        from llmspell_dist.backup.service import Backups as AsyncBackups  # noqa: PLC0415
        from llmspell_dist.blocking._backups import Backups  # noqa: PLC0415
        from llmspell_dist.blocking.points import PointsInThreads  # noqa: PLC0415
        from llmspell_dist.client import scratch_of  # noqa: PLC0415

        points = PointsInThreads(self.hooks.points, self._run_in_a_thread)
        driver, leases = self._backstage.driver, self._backstage.own_leases()
        scratch = scratch_of(self._assembly)
        there = AsyncBackups(driver, leases, scratch, self._tell_backups, points)
        self._backstage.at_end(there.close)
        return Backups(self._backstage, there)

    async def _tell_backups(self, event_type: str, data: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self.events.publish, event_type, dict(data), source="backup")

    @cached_property
    def replay(self) -> Replays:
        """Recorded hooks, run again: one, many, step by step, on a schedule."""
        from llmspell_dist.blocking.replay import Replays  # noqa: PLC0415

        return Replays(self._backstage, self.hooks)

    async def _run_in_a_thread(self, steps: Steps[Any]) -> Any:
        """Carry steps out for the background's event loop: plain hooks may take their time."""
        return await asyncio.to_thread(self._driver.run, steps)

    def _state_of(self, core: Core) -> StateManager:
        return self._state_over(self._driver.over(core))

    def _state_over(self, driver: SyncDriver) -> StateManager:
        seen = self.hooks.interceptor
        return self._state_class(driver, watches=self._watches, near=self.near_cache, seen=seen)

    def _make_near(self, assembly: Assembly) -> NearReads | None:
        settings = assembly.options.near_cache
        if settings is None:
            return None
        return NearReads(assembly.core, self._feeds, settings, self._backstage)

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
        info, listening = self._connections.info, self._feeds.listening
        self._assembly.begin_telemetry(self, info, listening)

    def close(self) -> None:
        """Wait for what is in flight, at most five seconds, and disconnect; twice is allowed."""
        limit = self._connections.options.close_timeout
        deadline = monotonic() + limit
        # A server that does not answer holds up nobody: what is waited for fails then.
        cutting = threading.Timer(limit, self._cut)
        cutting.daemon = True
        cutting.start()
        # One after the other, whatever happens to the one before. All share one deadline, and hooks
        # leave some of it to the others.
        with ExitStack() as stack:
            stack.callback(self._assembly.release)
            stack.callback(self._assembly.end_telemetry, self)
            stack.callback(cutting.cancel)
            stack.callback(self._connections.close)
            stack.callback(lambda: self._backstage.close(max(0, deadline - monotonic())))
            stack.callback(self.leases.close)
            until = deadline - limit * KEPT
            stack.callback(lambda: self.hooks.close(max(0.0, until - monotonic())))
            stack.callback(self.hooks.tell, "SystemShutdown")

    def _cut(self) -> None:
        self._backstage.cut()
        self._connections.close(0)


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
        spell = Spell(assembly, _metered(connections, assembly))
        try:
            spell.open()
        except BaseException:
            spell.close()
            raise
    except BaseException as error:
        note_default_url(error, url)
        assembly.release()
        raise
    return spell


def _metered(connections: BlockingDriver, assembly: Assembly) -> BlockingDriver:
    """Return connections that count, if anybody wants to know."""
    if assembly.meter is None:
        return connections
    from llmspell_dist.redis.metering import MeteredConnections  # noqa: PLC0415

    return cast("BlockingDriver", MeteredConnections(connections, assembly.meter))
