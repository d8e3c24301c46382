"""Hooks for code without an event loop.

Plain hooks run in line, in the thread of the operation. Hooks that are coroutine functions run on
the client's background loop, and the operation waits for them there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.closing import KEPT
from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.engine import HookEngine, HookOutcome
from llmspell_dist.hooks.history_keeping import history_of
from llmspell_dist.hooks.history_writer import HistoryWriter
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.queueing import BlockingHookQueue, Queued
from llmspell_dist.hooks.recorder import Recorder
from llmspell_dist.hooks.registration import Registration, checked_wait
from llmspell_dist.hooks.running import (
    AsyncRunner,
    Outcome,
    Pending,
    call_with_limit,
    coroutine_of,
)
from llmspell_dist.hooks.secrets import is_secret

if TYPE_CHECKING:
    from llmspell_dist.blocking._hook_history import HookHistory
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.blocking.fleet import Fleet
    from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
    from llmspell_dist.hooks.memory import ResultCache
    from llmspell_dist.hooks.points import HookPoint
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.points import Points

__all__ = ["Hooks"]

DRAIN_S: Final = 5.0
logger = logging.getLogger("llmspell_dist.hooks")


class _BlockingRunner:
    """Carries hooks for threads: coroutines on the background loop."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._there = AsyncRunner()
        backstage.at_end(self._there.close)

    def begin(self, work: Coroutine[Any, Any, Any], limit_s: float) -> Pending:
        """Have a coroutine run on the loop from its first step on."""
        return Pending(self._finish, (work, limit_s))

    def _finish(self, work: Coroutine[Any, Any, Any], limit_s: float) -> Outcome:
        try:
            return self._backstage.run(self._there.finish(work, None, limit_s))
        except SpellError as error:  # the client is closed, or this is the background thread
            work.close()
            return Outcome(None, error)
        except CancelledError as error:  # the loop ends
            return Outcome(None, error)

    def threaded(
        self, call: Callable[[HookContext], Any], context: HookContext, limit_s: float
    ) -> Pending:
        """Have a function called in a thread that is left alone at the limit."""
        return Pending(self._in_thread, (call, context, limit_s))

    def _in_thread(
        self, call: Callable[[HookContext], Any], context: HookContext, limit_s: float
    ) -> Outcome:
        until = monotonic() + limit_s
        outcome = call_with_limit(call, context, limit_s)
        work = coroutine_of(outcome.result)
        return outcome if work is None else self._finish(work, until - monotonic())


class Hooks(Registration):
    """Hooks of this process; as `llmspell_dist.hooks.manager.Hooks`, without an event loop."""

    def __init__(self, driver: SyncDriver, backstage: Backstage, kept: ResultCache) -> None:
        super().__init__()
        self._driver = driver
        self._told: set[str] = set()
        self._queue = BlockingHookQueue(self._run_queued)
        self.engine = HookEngine(
            *(self._registry, _BlockingRunner(backstage), self._queue, kept),
            actor=driver.core.own_actor,
        )
        self.history_steps = steps = history_of(driver.core)
        self.writer = writer = HistoryWriter(steps, backstage.driver.run, backstage.call)
        backstage.at_end(writer.close)
        self.engine.executor.recorder = Recorder(writer, is_secret(driver.core), blocking=True)
        if driver.core.observer.tracing:
            self.engine.executor.observer = driver.core.observer
        driver.core.chores.append(steps.tidy)

        self._backstage = backstage

    # Few programs ask for these; loading them takes time.

    @cached_property
    def history(self) -> HookHistory:
        """What replayable hooks were told and answered, in the whole namespace."""
        from llmspell_dist.blocking._hook_history import HookHistory  # noqa: PLC0415

        return HookHistory(self._driver, self.history_steps, self.writer, self._flush)

    def _flush(self) -> None:
        if self.writer.stats.queued:
            self._backstage.run(self.writer.flush())

    @cached_property
    def fleet(self) -> Fleet:
        """Hooks that run for what happens in any process."""
        from llmspell_dist.blocking.fleet import Fleet  # noqa: PLC0415

        executor, sealer = self.engine.executor, self.history_steps.sealer
        return Fleet(self, self._backstage, sealer, lambda: executor.recorder)

    @property
    def points(self) -> Points:
        """Where services of the library let hooks in."""
        return self.engine

    @property
    def interceptor(self) -> Interceptor:
        """What stands between the state's methods and what carries them out."""
        return self.engine.state

    def run(
        self,
        point: HookPoint | str,
        component: ComponentId | str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        operation: OperationContext | str | None = None,
        parent: HookContext | None = None,
    ) -> HookOutcome:
        """Run the hooks of a point; `OperationCancelledError` if one cancels."""
        self._check_open()
        steps = self.engine.run(
            point, component, data, metadata=metadata, operation=operation, parent=parent
        )
        return self._driver.run(steps)

    def _run_queued(self, run: Queued) -> None:
        self._driver.run(self.engine.run_queued(run))

    def tell(self, point: HookPoint | str) -> None:
        """Run the hooks of a point of the system, once; what goes wrong is logged."""
        where = point_of(point)
        if where in self._told or not self.engine.wants(where):
            return
        self._told.add(where)
        try:
            self._driver.run(self.engine.at(where, ("system", "client"), {}))
        except SpellError as error:
            logger.warning("hooks at %s failed: %s", where, error)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all queued hooks have run, at most `timeout` seconds; whether they have."""
        self._check_open()
        return self._queue.drain(checked_wait(timeout))

    def close(self, timeout: float = DRAIN_S) -> None:
        """Wait for queued hooks, no longer than `timeout` seconds, and stop; twice is allowed."""
        until = monotonic() + timeout
        self._queue.close(timeout * (1 - KEPT))
        if "fleet" in self.__dict__:
            self.fleet.leave()
        if self._backstage.running:
            self._backstage.run(self.writer.close(max(0.0, until - monotonic())))
        self._closed = True
