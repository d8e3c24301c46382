"""The client: everything wired together, opened and closed as one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.agents.manager import Agents
from llmspell_dist.assembly import Assembly, assemble, complete_options
from llmspell_dist.config import Options
from llmspell_dist.errors import SpellError
from llmspell_dist.leases.manager import Leases
from llmspell_dist.log import ChangeLog
from llmspell_dist.redis.hub import Hub
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.housekeeping import INTERVAL_S, housekeep
from llmspell_dist.state.manager import StateManager

if TYPE_CHECKING:
    from llmspell_dist.redis.connection import ServerInfo
    from llmspell_dist.state.core import Core

__all__ = ["Spell", "connect"]

logger = logging.getLogger("llmspell_dist")
logger.addHandler(logging.NullHandler())


class Spell:
    """A connection of one event loop to the shared state of a namespace; `connect` makes it."""

    def __init__(self, assembly: Assembly, lanes: Lanes) -> None:
        self._assembly = assembly
        self._lanes = lanes
        self._driver = AsyncDriver(assembly.core, lanes)
        self._housekeeper: asyncio.Task[None] | None = None
        self.state = StateManager(self._driver)
        """Shared state by scope and key."""
        self.log = ChangeLog(self._driver)
        """What every commit did, in order."""
        self._hub = Hub(assembly.resolver, options=assembly.lane_options)
        self.leases = Leases(self._driver, self._hub, self._state_of)
        """Exclusive or shared use of a scope for a time, with fencing tokens."""
        self.agents = Agents(self._driver, self.leases)
        """Agents: their state, their processes, effects that run once."""

    def _state_of(self, core: Core) -> StateManager:
        return StateManager(self._driver.over(core))

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
        if self._assembly.options.housekeeping:
            self._housekeeper = asyncio.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        """Remove what expired and shorten the log, if it is this process's turn."""
        while True:
            # Jittered, so that the processes of a fleet do not ask at the same moment.
            await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.0))
            try:
                while await self._driver.run(housekeep(self._assembly.core)):  # noqa: ASYNC110
                    await asyncio.sleep(0)  # others come first
            except SpellError as error:
                logger.debug("housekeeping failed, another process may do it: %s", error)

    async def close(self) -> None:
        """Wait for what is in flight, at most five seconds, and disconnect; twice is allowed."""
        self._lanes.check_loop()  # before anything is closed
        # One after the other, whatever happens to the one before: a caller that is cancelled here
        # leaves no socket behind.
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._assembly.release)
            stack.push_async_callback(self._lanes.close)
            stack.push_async_callback(self._hub.close)
            stack.push_async_callback(self.leases.close)
            stack.push_async_callback(self._stop_housekeeping)
            await self.leases.leave()
            self._lanes.refuse()  # what was given back is on its way: nothing new after it

    async def _stop_housekeeping(self) -> None:
        housekeeper, self._housekeeper = self._housekeeper, None
        # After a fork it is a task of the parent's event loop.
        if housekeeper is not None and housekeeper.get_loop() is asyncio.get_running_loop():
            housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeper

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class _Connecting:
    """What `connect` returns: opened by ``async with``, or by ``await`` and closed by hand."""

    def __init__(self, url: str | None, options: Options) -> None:
        self._url = url
        self._options = options
        self._spell: Spell | None = None

    async def _open(self) -> Spell:
        # Starting or finding a server takes a moment: not on the event loop.
        assembly = await asyncio.to_thread(assemble, self._url, self._options)
        try:
            lanes = Lanes(
                assembly.resolver,
                options=assembly.lane_options,
                scripts=assembly.scripts,
                clock=assembly.core.clock,
            )
            spell = Spell(assembly, lanes)
            try:
                await spell.open()
            except BaseException:
                await spell.close()
                raise
        except BaseException:
            assembly.release()
            raise
        return spell

    def __await__(self) -> Generator[Any, None, Spell]:
        return self._open().__await__()

    async def __aenter__(self) -> Spell:
        self._spell = await self._open()
        return self._spell

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._spell is not None  # noqa: S101 - entered before
        await self._spell.close()


def connect(
    url: str | None = None,
    *,
    namespace: str | None = None,
    client_name: str | None = None,
    options: Options | None = None,
) -> _Connecting:
    """Connect to shared state, with ``async with``; or with ``await``, to be closed by hand.

    `url`: ``redis://``, ``rediss://``, ``unix://``, ``embedded:///folder`` (a real server that is
    started if need be) or ``memory://name`` (inside this process); by default ``LLMSPELL_URL``,
    else a server on this machine. `namespace` separates tenants; by default ``LLMSPELL_NAMESPACE``,
    else ``llmspell``. `client_name` is how the server and the change log call this process; by
    default host and process id.

    One client serves any number of tasks of one event loop over a few connections. Raises
    `InvalidURLError`, `StoreUnavailableError` or its children, and `NamespaceMismatchError`.
    """
    return _Connecting(url, complete_options(namespace, client_name, options))
