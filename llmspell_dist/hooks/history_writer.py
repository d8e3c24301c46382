"""Writes executions to the history in the background: bounded, in batches, drained at the end.

Whoever runs hooks only puts; a task of an event loop packs and sends. When the queue is full there
is back-pressure: `full` says so, and `room` waits. What can never be written is counted in `lost`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.fork import child_safe_lock, keep_forever, on_fork

if TYPE_CHECKING:
    from llmspell_dist.hooks.history_steps import HistorySteps
    from llmspell_dist.hooks.recording import Execution

__all__ = ["HistoryWriter", "WriterStats"]

logger = logging.getLogger("llmspell_dist.hooks")

MAX_QUEUED: Final = 10_000
BATCH: Final = 200
BATCH_BYTES: Final = 1 << 20
ROOM_WITHIN_S: Final = 5.0
CLOSE_WITHIN_S: Final = 5.0
_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 2.0

Run = Callable[[Any], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class WriterStats:
    """What became of the executions of this process."""

    written: int
    lost: int
    """Could not be written: the queue was full for too long, or the server refused for good."""
    queued: int


class HistoryWriter:
    """The executions of one process on their way into the history.

    `run` carries steps out; `call` has a function called in the event loop that `run` belongs to.
    """

    def __init__(
        self,
        steps: HistorySteps,
        run: Run,
        call: Callable[[Callable[[], None]], None] | None = None,
        *,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._steps = steps
        self._run = run
        self._call = _here if call is None else call
        self._max_queued = max_queued
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._queue: deque[Execution] = deque()
        self._lock = child_safe_lock()
        self._room = threading.Condition(self._lock)
        self._client = os.urandom(8).hex()
        self._number = 0
        self._busy = False
        self._in_hand = 0
        self._flusher: asyncio.Task[None] | None = None
        self._closing_by: float | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._written = self._lost = 0

    @property
    def stats(self) -> WriterStats:
        """What became of what was put."""
        return WriterStats(self._written, self._lost, len(self._queue) + self._in_hand)

    @property
    def full(self) -> bool:
        """Whether whoever puts should wait for `room` before it goes on."""
        return len(self._queue) >= self._max_queued

    # --- from any thread

    def put(self, execution: Execution) -> bool:
        """Take an execution; False if there is no room, or the writer is closed: it is lost."""
        with self._lock:
            refused = len(self._queue) >= self._max_queued or self._closing_by is not None
            if refused:
                self._lost += 1
            else:
                self._queue.append(execution)
            start = not (refused or self._busy)
            self._busy = self._busy or start
        if refused and self._lost == 1:
            logger.warning("the history of hooks cannot keep up: executions are not recorded")
        if start:
            self._call(self._start)
        return not refused

    def wait_for_room(self, within_s: float = ROOM_WITHIN_S) -> bool:
        """Block this thread until there is room, at most for so long; whether there is."""
        with self._room:
            return self._room.wait_for(lambda: not self.full, within_s)

    # --- in the event loop

    async def room(self, within_s: float = ROOM_WITHIN_S) -> bool:
        """Wait until there is room, at most for so long; whether there is."""
        if not self.full:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            return not self.full
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return True

    def _start(self) -> None:
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="llmspell-hook-history")

    async def _flush(self) -> None:
        try:
            while executions := self._take():
                packed = self._packed(executions)
                while packed:
                    some: list[tuple[bytes, ...]] = []
                    size = 0
                    while packed and (not some or size < BATCH_BYTES):
                        some.append(packed.popleft())
                        size += len(some[-1][0])
                    await self._send(some)
                    self._in_hand -= len(some)
        finally:
            with self._lock:  # however it ended: the next that is put has it begin again
                self._busy = False
                self._lost += self._in_hand
                self._in_hand = 0

    def _packed(self, executions: list[Execution]) -> deque[tuple[bytes, ...]]:
        """Return the executions as they are sent; one that cannot be packed stops no other."""
        packed: deque[tuple[bytes, ...]] = deque()
        for one in executions:
            try:
                packed.append(self._steps.arguments(one))
            except Exception:
                logger.exception("a run of hook %s is not recorded", one.hook)
                self._lost += 1
                self._in_hand -= 1
        return packed

    def _take(self) -> list[Execution]:
        with self._room:
            some = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._in_hand = len(some)
            self._busy = bool(some)
            self._room.notify_all()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return some

    async def _send(self, some: list[tuple[bytes, ...]]) -> None:
        """Send a batch until it is there; its number makes sure that it is there once."""
        self._number += 1
        arguments, pause_s = tuple(chain.from_iterable(some)), _PAUSE_S
        while True:
            try:
                await self._run(self._steps.record(self._client, self._number, arguments))
            except SpellError as error:
                over = self._closing_by is not None and monotonic() >= self._closing_by
                if over or not error.retryable:
                    self._lost += len(some)
                    logger.warning("%d executions of hooks are not recorded: %s", len(some), error)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            except Exception:  # it must not keep those behind it from being written
                self._lost += len(some)
                logger.exception("%d executions of hooks are not recorded", len(some))
                return
            else:
                self._written += len(some)
                return

    async def flush(self) -> None:
        """Return when everything put so far is written, or lost for good."""
        while self._flusher is not None and not self._flusher.done():
            await asyncio.shield(self._flusher)
        if self._queue:
            self._start()
            await self.flush()

    async def close(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Write what is queued, for at most so long; nothing can be put from now on."""
        with self._lock:
            if self._closing_by is None:
                self._closing_by = monotonic() + within_s
        try:
            async with asyncio.timeout(within_s):
                await self.flush()
        except TimeoutError:
            pass
        flusher, self._flusher = self._flusher, None
        left = len(self._queue) + self._in_hand
        if flusher is not None and not flusher.done():
            flusher.cancel()
            await asyncio.gather(flusher, return_exceptions=True)
        if left:
            self._lost += len(self._queue)
            self._queue.clear()
            logger.warning("%d executions of hooks could not be recorded before the end", left)

    def forget(self) -> None:
        """In a forked child: what is queued is the parent's to write."""
        keep_forever(self._flusher, self._waiters)
        self._begin()


def _here(function: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(function)
