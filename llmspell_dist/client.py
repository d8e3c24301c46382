"""The client: everything wired together, opened and closed as one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from llmspell_dist.agents.manager import Agents
from llmspell_dist.assembly import Assembly, assemble, complete_options
from llmspell_dist.cache.near import Near
from llmspell_dist.cache.tap import LanesTap
from llmspell_dist.closing import KEPT, AsyncClosing, AsyncOpening
from llmspell_dist.config import (
    NAMESPACE_VARIABLE,
    Options,
    default_url,
    names_sidecar,
    note_default_url,
)
from llmspell_dist.errors import InvalidArgumentError, InvalidURLError
from llmspell_dist.events.manager import Events
from llmspell_dist.hooks.emitting import EventHooks
from llmspell_dist.hooks.manager import Hooks
from llmspell_dist.hooks.memory import ResultCache
from llmspell_dist.hooks.running import is_own_cancellation
from llmspell_dist.leases.manager import Leases
from llmspell_dist.log import ChangeLog
from llmspell_dist.redis.hub import Hub
from llmspell_dist.redis.lanes import Ending, Lanes
from llmspell_dist.state.driver import AsyncDriver, driver_of
from llmspell_dist.state.housekeeping import INTERVAL_S, complain, housekeep
from llmspell_dist.state.manager import StateManager
from llmspell_dist.watch.feed import Feeds
from llmspell_dist.watch.service import Watches

if TYPE_CHECKING:
    from llmspell_dist.backup.proving import Scratch
    from llmspell_dist.backup.service import Backups
    from llmspell_dist.correlation.service import Correlations
    from llmspell_dist.hooks.replays import Replays
    from llmspell_dist.redis.connection import ServerInfo
    from llmspell_dist.state.core import Core

__all__ = ["Spell", "connect"]

logger = logging.getLogger("llmspell_dist.client")

Token = str | os.PathLike[str] | None


class Spell(AsyncClosing):
    """A connection of one event loop to the shared state of a namespace; `connect` makes it."""

    def __init__(self, assembly: Assembly, lanes: Lanes) -> None:
        self._assembly = assembly
        self._lanes = lanes
        self._hub = Hub(assembly.resolver, options=assembly.lane_options)
        self._feeds = Feeds(self._hub)
        self._state_class = assembly.state_class(StateManager)
        self._tasks: set[asyncio.Task[None]] = set()
        self.near_cache = self._make_near(assembly)
        """What is served from memory; None unless the options ask for it."""
        kept = ResultCache()
        tapped = LanesTap(lanes, kept)
        assembly.core.caches.append(kept.wrote)
        if self.near_cache is not None:
            tapped = LanesTap(cast("Lanes", tapped), self.near_cache)
            assembly.core.caches.append(self.near_cache.wrote)
        self._driver = AsyncDriver(assembly.core, cast("Lanes", tapped))
        self._housekeeper: asyncio.Task[None] | None = None
        self.events = Events(self._driver, self._hub)
        """Events between processes: heard live, or handled durably."""
        self.hooks = Hooks(self._driver, self._hub, self.events, kept)
        """What runs before and after everything that this client does to shared state."""
        self.events.observer = EventHooks(self.hooks.points, self._driver.run)
        self._watches = Watches(self._driver, self._feeds, self.hooks.interceptor)
        self.state = self._state_over(self._driver)
        """Shared state by scope and key."""
        self.log = ChangeLog(self._driver)
        """What every commit did, in order."""
        self.leases = Leases(self._driver, self._hub, self._state_of)
        """Exclusive or shared use of a scope for a time, with fencing tokens."""
        self.leases.points = self.hooks.points
        self.agents = Agents(self._driver, self.leases, points=self.hooks.points)
        """Agents: their state, their processes, effects that run once."""

    # What few programs use is loaded and made when it is asked for: importing takes time too.

    @cached_property
    def correlation(self) -> Correlations:
        """What belongs to a correlation id, as a timeline."""
        from llmspell_dist.correlation.service import Correlations  # noqa: PLC0415

        return Correlations(self._driver)

    @cached_property
    def backups(self) -> Backups:
        """Backups of this namespace: snapshots, an archive of the log, any moment restored."""
        from llmspell_dist.backup.service import Backups  # noqa: PLC0415

        own = self._own_leases()
        tell, points = self._tell_backups, self.hooks.points
        return Backups(self._driver, own, scratch_of(self._assembly), tell, points)

    async def _tell_backups(self, event_type: str, data: Mapping[str, Any]) -> None:
        await self.events.publish(event_type, dict(data), source="backup")

    @cached_property
    def replay(self) -> Replays:
        """Recorded hooks, run again: one, many, step by step, on a schedule."""
        from llmspell_dist.hooks.replays import Replays  # noqa: PLC0415

        return Replays(self.hooks.history, self.hooks.find, self._driver, self._own_leases())

    def _own_leases(self) -> Leases:
        """Return leases for what the library keeps for itself: no business of hooks."""

        def state_of(core: Core) -> StateManager:
            return StateManager(self._driver.over(core))

        return Leases(self._driver, self._hub, state_of)

    def _state_of(self, core: Core) -> StateManager:
        return self._state_over(self._driver.over(core))

    def _state_over(self, driver: AsyncDriver) -> StateManager:
        seen = self.hooks.interceptor
        return self._state_class(driver, watches=self._watches, near=self.near_cache, seen=seen)

    def _make_near(self, assembly: Assembly) -> Near | None:
        settings = assembly.options.near_cache
        return None if settings is None else Near(assembly.core, self._feeds, settings, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        return self._lanes.info

    async def ping(self) -> float:
        """Return how many seconds a round trip takes."""
        return await self._lanes.ping()

    async def open(self) -> None:
        """Connect, and check that the namespace is one that this release can work with."""
        await self._lanes.ping()
        await self._driver.run(self._assembly.register(self._lanes.info))
        self._assembly.begin_telemetry(self, self._lanes.info, self._feeds.listening)
        if self._assembly.options.housekeeping:
            self._housekeeper = asyncio.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        """Remove what expired and shorten the log, if it is this process's turn."""
        while True:
            # Jittered, so that the processes of a fleet do not ask at the same moment.
            await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.0))
            core, seen = self._assembly.core, self.hooks.interceptor
            try:
                while await self._driver.run(housekeep(core, seen)):  # noqa: ASYNC110
                    await asyncio.sleep(0)  # others come first
            except asyncio.CancelledError as error:
                if is_own_cancellation(error):  # else some hook let it out
                    raise
                complain(core, "housekeeping", error)
            except Exception as error:  # noqa: BLE001 - nothing may end it
                complain(core, "housekeeping", error)

    async def close(self) -> None:
        """Wait for what is in flight, at most five seconds, and disconnect; twice is allowed."""
        self._lanes.check_loop()  # before anything is closed
        # One after the other, whatever happens to the one before: a caller that is cancelled here
        # leaves no socket behind. All share one deadline, and hooks leave some of it to the others.
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._assembly.release)
            stack.callback(self._assembly.end_telemetry, self)
            ending = await stack.enter_async_context(self._lanes.ending())
            stack.push_async_callback(self._leave)
            stack.push_async_callback(self._end_hooks, ending)
            stack.push_async_callback(self._tell_hooks, ending)
            if "replay" in self.__dict__:
                stack.push_async_callback(self.replay.close)
            if "backups" in self.__dict__:
                stack.push_async_callback(self.backups.close)

    async def _tell_hooks(self, ending: Ending) -> None:
        try:
            async with asyncio.timeout(ending.left_s(kept=KEPT)):
                await self.hooks.tell("SystemShutdown")
        except TimeoutError:
            logger.warning("hooks at SystemShutdown had not ended when the client was closed")

    async def _end_hooks(self, ending: Ending) -> None:
        await self.hooks.close(ending.left_s(kept=KEPT))

    async def _leave(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._hub.close)
            stack.push_async_callback(self._feeds.close)
            stack.push_async_callback(self.leases.close)
            stack.push_async_callback(self._stop_housekeeping)
            stack.callback(self._lanes.refuse)  # what was given back is on its way: nothing new
            stack.push_async_callback(self.leases.leave)
            stack.push_async_callback(self.events.close)

    async def _stop_housekeeping(self) -> None:
        housekeeper, self._housekeeper = self._housekeeper, None
        # After a fork it is a task of the parent's event loop.
        if housekeeper is not None and housekeeper.get_loop() is asyncio.get_running_loop():
            housekeeper.cancel()
            await asyncio.wait([housekeeper])


class _Connecting(AsyncOpening[Spell]):
    """What `connect` returns: opened by ``async with``, or by ``await`` and closed by hand."""

    call = "connect()"
    blocking = "llmspell_dist.blocking.connect()"

    def __init__(
        self, url: str | None, options: Options, namespace: str | None, token: Token
    ) -> None:
        super().__init__()
        self._url = url
        self._options = options
        self._namespace = namespace
        self._token = token

    async def open(self) -> Spell:
        """Connect."""
        url = default_url() if self._url is None else self._url
        if isinstance(url, str) and names_sidecar(url):
            return await self._open_remote(url)
        if self._token is not None:
            raise InvalidArgumentError("token", "***", "must be left out: only a sidecar asks it")
        # Starting or finding a server takes a moment: not on the event loop.
        assembly = await asyncio.to_thread(assemble, self._url, self._options)
        try:
            lanes = Lanes(
                assembly.resolver,
                options=assembly.lane_options,
                scripts=assembly.scripts,
                clock=assembly.core.clock,
                meter=assembly.meter,
            )
            spell = Spell(assembly, lanes)
            try:
                await spell.open()
            except BaseException:
                await spell.close()
                raise
        except BaseException as error:
            note_default_url(error, self._url)
            assembly.release()
            raise
        return spell

    async def _open_remote(self, url: str) -> Spell:
        try:
            from llmspell_dist.remote.client import connect_remote  # noqa: PLC0415 - few need it
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "llmspell_dist":
                raise
            rule = "needs the extra remote: pip install 'llmspell-dist[remote]'"
            raise InvalidURLError("url", f"{url.partition('://')[0]}://…", rule) from None
        opened = await connect_remote(
            url, self._options, namespace=self._namespace, token=self._token
        )
        return cast("Spell", opened)  # its surface, with what is left out told by name


def connect(
    url: str | None = None,
    *,
    namespace: str | None = None,
    client_name: str | None = None,
    options: Options | None = None,
    token: Token = None,
) -> _Connecting:
    """Connect to shared state, with ``async with``; or with ``await``, to be closed by hand.

    `url`: ``redis://``, ``rediss://``, ``unix://``, ``embedded:///folder`` (a real server that is
    started if need be) or ``memory://name`` (inside this process); by default ``LLMSPELL_URL``,
    else a server on this machine. ``http://``, ``https://`` and ``http+unix://`` go through a
    sidecar: the same surface, without what `remote.client.ABSENT` names. To it `token` is shown,
    text or the path of a file that is read as it changes; by default ``LLMSPELL_TOKEN``, else the
    file ``LLMSPELL_TOKEN_FILE``. `namespace` separates tenants; by default ``LLMSPELL_NAMESPACE``,
    else ``llmspell``. `client_name` is how the server and the change log call this process; by
    default host and process id.

    One client serves any number of tasks of one event loop over a few connections. Raises
    `InvalidURLError`, `StoreUnavailableError` or its children, and `NamespaceMismatchError`.
    """
    wanted = namespace or (options and options.namespace) or os.environ.get(NAMESPACE_VARIABLE)
    return _Connecting(url, complete_options(namespace, client_name, options), wanted, token)


def scratch_of(assembly: Assembly) -> Scratch:
    """Return what starts an empty server of its own, where backups are tried out, and ends it."""
    options = replace(
        assembly.options,
        near_cache=None,
        telemetry=None,
        housekeeping=False,
        shards=assembly.core.keyspace.shards,
    )

    @asynccontextmanager
    async def scratch() -> AsyncIterator[AsyncDriver]:
        from llmspell_dist.redis.embedded import EmbeddedServer  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="llmspell-scratch-") as folder:
            config = {"appendonly": "no", "save": ""}
            server = EmbeddedServer(folder=folder, fsync="no", config=config)
            await asyncio.to_thread(server.start)
            try:
                async with connect(server.url, options=options) as spell:
                    yield driver_of(spell)
            finally:
                await asyncio.to_thread(server.stop)

    return scratch
