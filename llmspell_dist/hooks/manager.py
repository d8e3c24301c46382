"""`spell.hooks`: what runs before and after everything that this client does to shared state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.closing import KEPT
from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.engine import HookEngine, HookOutcome
from llmspell_dist.hooks.history_keeping import history_of
from llmspell_dist.hooks.history_writer import HistoryWriter
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.queueing import AsyncHookQueue, Queued
from llmspell_dist.hooks.recorder import Recorder
from llmspell_dist.hooks.registration import Registration, checked_wait
from llmspell_dist.hooks.running import AsyncRunner
from llmspell_dist.hooks.secrets import is_secret

if TYPE_CHECKING:
    from llmspell_dist.events.manager import Events
    from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
    from llmspell_dist.hooks.fleet import Fleet
    from llmspell_dist.hooks.history import HookHistory
    from llmspell_dist.hooks.memory import ResultCache
    from llmspell_dist.hooks.points import HookPoint
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.points import Points

__all__ = ["Hooks"]

DRAIN_S: Final = 5.0
logger = logging.getLogger("llmspell_dist.hooks")


class Hooks(Registration):
    """Hooks of this process: they see, change, refuse and follow what it does to shared state.

    They run for the operations of this client, not for those of other processes, and not for what
    is done inside a hook (see `nested`).
    """

    def __init__(self, driver: AsyncDriver, hub: Hub, events: Events, kept: ResultCache) -> None:
        super().__init__()
        self._driver = driver
        self._told: set[str] = set()
        self._runner = AsyncRunner()
        self._queue = AsyncHookQueue(self._run_queued)
        self.engine = HookEngine(
            *(self._registry, self._runner, self._queue, kept), actor=driver.core.own_actor
        )
        steps = history_of(driver.core)
        self._writer = HistoryWriter(steps, driver.run)
        self.engine.executor.recorder = Recorder(self._writer, is_secret(driver.core))
        if driver.core.observer.tracing:
            self.engine.executor.observer = driver.core.observer
        driver.core.chores.append(steps.tidy)
        self._steps, self._hub, self._events = steps, hub, events

    # Few programs ask for these; loading them takes time.

    @cached_property
    def history(self) -> HookHistory:
        """What replayable hooks were told and answered, in the whole namespace."""
        from llmspell_dist.hooks.history import HookHistory  # noqa: PLC0415

        return HookHistory(self._driver, self._steps, self._writer, self._writer.flush)

    @cached_property
    def fleet(self) -> Fleet:
        """Hooks that run for what happens in any process."""
        from llmspell_dist.hooks.fleet import Fleet  # noqa: PLC0415

        executor, sealer = self.engine.executor, self._steps.sealer
        return Fleet(
            *(self, self._driver, self._hub, self._events),
            sealer=sealer,
            recorder=lambda: executor.recorder,
        )

    @property
    def points(self) -> Points:
        """Where services of the library let hooks in."""
        return self.engine

    @property
    def interceptor(self) -> Interceptor:
        """What stands between the state's methods and what carries them out."""
        return self.engine.state

    async def run(
        self,
        point: HookPoint | str,
        component: ComponentId | str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        operation: OperationContext | str | None = None,
        parent: HookContext | None = None,
    ) -> HookOutcome:
        """Run the hooks of a point of your own (``session:start``), or of any other.

        The outcome says what ended the chain, if anything, and how the hooks left the data; what a
        result means there is up to you, but `Cancel` raises `OperationCancelledError`.
        """
        self._check_open()
        steps = self.engine.run(
            point, component, data, metadata=metadata, operation=operation, parent=parent
        )
        return await self._driver.run(steps)

    async def _run_queued(self, run: Queued) -> None:
        await self._driver.run(self.engine.run_queued(run))

    async def tell(self, point: HookPoint | str) -> None:
        """Run the hooks of a point of the system, once; what goes wrong is logged."""
        where = point_of(point)
        if where in self._told or not self.engine.wants(where):
            return
        self._told.add(where)
        try:
            await self._driver.run(self.engine.at(where, ("system", "client"), {}))
        except SpellError as error:
            logger.warning("hooks at %s failed: %s", where, error)

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until all queued hooks have run, at most `timeout` seconds; whether they have."""
        self._check_open()
        within = checked_wait(timeout)
        until = None if within is None else monotonic() + within
        done = await self._driver.leftovers.drain(within)
        left = None if until is None else until - monotonic()
        return await self._queue.drain(left) and done

    async def close(self, timeout: float = DRAIN_S) -> None:
        """Wait for queued hooks, no longer than `timeout` seconds, and stop; twice is allowed."""
        until = monotonic() + timeout
        behind_until = until - timeout * KEPT
        if self.engine.state.expiring or self._driver.leftovers:  # somebody is behind writes
            await self._driver.leftovers.close(max(0.0, behind_until - monotonic()))
        await self._queue.close(max(0.0, behind_until - monotonic()))
        if "fleet" in self.__dict__:
            await self.fleet.close()
        await self._runner.close()
        await self._writer.close(max(0.0, until - monotonic()))
        self._closed = True
