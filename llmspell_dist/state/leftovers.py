"""What goes on behind a write whose caller was cancelled: the write happens all the same.

Once a commit has left, nobody can take it back. Whoever is to see every write (hooks behind it) has
to see this one too, with its real outcome, though nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.state.steps import CallerLeftError

__all__ = ["Leftovers"]

logger = logging.getLogger("llmspell_dist.state")

CAPACITY: Final = 1000


class Leftovers:
    """Work of an event loop that nobody waits for, except who closes the client."""

    __slots__ = ("_loop", "_tasks", "lost")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.lost = 0
        """So many writes were seen by nobody behind them."""

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, work: Coroutine[Any, Any, Any]) -> None:
        """Carry this on, with its caller's context variables; if there is too much, lose it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # after a fork: what was going on is the parent's
            self._loop, self._tasks = loop, set()
        ending = asyncio.current_task() in self._tasks
        if ending or len(self._tasks) >= CAPACITY:
            work.close()
            if not ending:
                self._lose(1, "too many callers were cancelled")
            return
        task = loop.create_task(_quietly(work), name="llmspell-behind")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        logger.error("what stands behind %d writes of cancelled callers is lost: %s", count, why)

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until all of it is done, at most so long; whether it is."""
        if not self._tasks or asyncio.get_running_loop() is not self._loop:
            return True
        _, left = await asyncio.wait(self._tasks, timeout=timeout)
        return not left

    async def close(self, timeout: float) -> None:
        """Wait, at most so long, and end the rest."""
        await asyncio.sleep(0)  # whoever was cancelled just now has its turn
        if await self.drain(timeout):
            return
        left = list(self._tasks)
        if left:
            self._lose(len(left), "the client is closed")
            for task in left:
                task.cancel()
            await asyncio.wait(left)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except (SpellError, CallerLeftError) as error:
        logger.debug("behind a write whose caller was cancelled: %s", error)
    except Exception:
        logger.exception("what stands behind a write whose caller was cancelled failed")
