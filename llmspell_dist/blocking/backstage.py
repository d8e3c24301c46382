"""A blocking client's background thread, and the connections that live there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.blocking.background import Background
from llmspell_dist.errors import ClosedError
from llmspell_dist.redis.hub import Hub
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.state.driver import AsyncDriver

if TYPE_CHECKING:
    from llmspell_dist.assembly import Assembly
    from llmspell_dist.leases.manager import Leases
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.manager import StateManager

__all__ = ["Backstage"]

T = TypeVar("T")


class Backstage:
    """The background thread of a blocking client, and its lanes, hub and driver.

    The thread starts with the first `run` or `call`; lanes and hub connect at their first use, in
    its event loop, and start anew by themselves after a fork. `at_end` takes coroutine functions
    that run there before they are closed, the last first.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._background = Background()
        self.lanes = Lanes(
            assembly.resolver,
            options=assembly.lane_options,
            scripts=assembly.scripts,
            clock=assembly.core.clock,
            meter=assembly.meter,
        )
        self.hub = Hub(assembly.resolver, options=assembly.lane_options)
        self.driver = AsyncDriver(assembly.core, self.lanes)
        self._last: list[Callable[[], Coroutine[Any, Any, None]]] = []

    @property
    def running(self) -> bool:
        """Whether there is such a thread."""
        return self._background.running

    def call(self, function: Callable[[], Any]) -> None:
        """Call a function in the loop, some time soon."""
        self._background.call(function)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and return its result; an interrupt of the caller ends it."""
        return self._background.run(work)

    def at_end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a coroutine run before the connections are closed."""
        self._last.append(last)

    def own_leases(self) -> Leases:
        """Return leases, of the loop, for what the library keeps for itself: no business of hooks.

        Whoever asks for them closes them.
        """
        from llmspell_dist.leases.manager import Leases  # noqa: PLC0415 - few programs need them
        from llmspell_dist.state.manager import StateManager  # noqa: PLC0415

        def state_of(core: Core) -> StateManager:
            return StateManager(self.driver.over(core))

        return Leases(self.driver, self.hub, state_of)

    def close(self, within: float | None = None) -> None:
        """Run what is to run at the end, disconnect, and end the thread; twice is allowed.

        After so many seconds, by default `close_timeout`, what waits for the server fails.
        """
        self._background.close(lambda: self._end(within))

    def cut(self) -> None:
        """Have what waits for the server fail, if there is such a thread."""
        if self.running:
            with suppress(ClosedError):  # `close` does it
                self.call(self._cut)

    def _cut(self) -> None:
        self._cutting = asyncio.create_task(self.lanes.close(0))

    async def _end(self, within: float | None) -> None:
        async with self.lanes.ending(within):
            try:
                for last in reversed(self._last):
                    await last()
            finally:
                await self.hub.close()
