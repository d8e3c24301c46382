"""Queued hooks: run behind the operation that they follow, which does not wait for them.

The queue is bounded: when it is full, operations wait for room. One worker runs the hooks in the
order in which the operations ended, whatever any of them raises. `drain` waits until all have run.
What a stop could not wait for is counted and logged; its operation has happened, so whoever called
it gets what came of it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from llmspell_dist.fork import child_safe_lock, keep_forever, on_fork
from llmspell_dist.hooks.running import cancellations, is_own_cancellation
from llmspell_dist.state.steps import Call, CallerLeftError

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.registry import Chain
    from llmspell_dist.state.steps import Steps

__all__ = ["AsyncHookQueue", "BlockingHookQueue", "HookQueue", "Queued"]

logger = logging.getLogger("llmspell_dist.hooks")
logger.addHandler(logging.NullHandler())

CAPACITY: Final = 1000
_LET_GO_S: Final = 0.01


class Queued(NamedTuple):
    """One run of one hook that waits for its turn."""

    chain: Chain
    context: HookContext
    surroundings: Context


class HookQueue(Protocol):
    """Takes runs of hooks, for one of the two surfaces."""

    def put_all(self, chain: Chain, context: HookContext) -> Steps[None]:
        """Queue the hooks of a chain that are to be queued; waits while there is no room."""


def _runs_of(chain: Chain, context: HookContext) -> list[Queued]:
    seen = context.snapshot()
    return [Queued(one, seen, copy_context()) for one in chain.queued]


class _Losses:
    """Counts the runs that will never be."""

    def __init__(self) -> None:
        self.lost = 0
        """Runs that a stop did not wait for."""

    def _lose(self, run: Queued) -> None:
        self.lost += 1
        names = ", ".join(hook.name for hook in run.chain.hooks)
        logger.error("a run of hook %s at %s is lost: the client is closed", names, run.chain.point)


def _failed(run: Queued, error: BaseException) -> None:
    names = ", ".join(hook.name for hook in run.chain.hooks)
    logger.warning("queued hook %s failed: %s", names, type(error).__name__)


class AsyncHookQueue(_Losses):
    """The queue of an event loop; `carry_out` runs one hook."""

    def __init__(self, carry_out: Callable[[Queued], Any], *, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._carry_out = carry_out
        self._capacity = capacity
        self._queue: asyncio.Queue[Queued] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._putting = 0
        self._in_hand: Queued | None = None
        self._closed = False

    def put_all(self, chain: Chain, context: HookContext) -> Steps[None]:
        """Queue the hooks of a chain that are to be queued; what comes too late is lost."""
        for run in _runs_of(chain, context):
            if self._closed:
                self._lose(run)
                continue
            waiting = self._running()
            try:
                waiting.put_nowait(run)
            except asyncio.QueueFull:
                try:
                    yield Call(self._put, (waiting, run))
                except CallerLeftError:
                    yield Call(self._put, (waiting, run))
                    if not chain.behind:
                        raise

    async def _put(self, waiting: asyncio.Queue[Queued], run: Queued) -> None:
        self._putting += 1
        try:
            await waiting.put(run)
        finally:
            self._putting -= 1

    def _running(self) -> asyncio.Queue[Queued]:
        worker = self._worker
        if self._queue is None or (worker is not None and _foreign(worker)):
            self._queue, worker, self._putting = asyncio.Queue(self._capacity), None, 0
        if worker is None or worker.done():
            self._worker = asyncio.create_task(self._work(self._queue), name="llmspell-hooks")
        return self._queue

    async def _work(self, waiting: asyncio.Queue[Queued]) -> None:
        while True:
            run = self._in_hand = await waiting.get()
            try:
                running = asyncio.create_task(self._guarded(run), context=run.surroundings)
                try:
                    await asyncio.wait([running])  # raises nothing of the hook's
                except asyncio.CancelledError:
                    running.cancel()
                    await asyncio.wait([running])
                    raise
            finally:
                self._in_hand = None
                waiting.task_done()

    async def _guarded(self, run: Queued) -> None:
        asked = cancellations()
        try:
            await self._carry_out(run)
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            if is_own_cancellation(error, asked):  # one must run
                raise
            _failed(run, error)

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn."""
        return 0 if self._queue is None else self._queue.qsize()

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that is queued has run; whether it has."""
        if self._queue is None or self._worker is None or _foreign(self._worker):
            return True
        waiting = self._queue if self._closed else self._running()
        try:
            async with asyncio.timeout(timeout):
                await waiting.join()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout: float) -> None:
        """Wait for what is queued, no longer than `timeout`, take no more, and stop.

        Whoever waits for room is let go.
        """
        until = monotonic() + timeout
        try:
            await self.drain(timeout)
            self._closed = True
            await self.drain(until - monotonic())  # what came between the two
        finally:
            self._closed = True
            await self._stop()

    async def _stop(self) -> None:
        worker, self._worker = self._worker, None
        waiting = self._queue
        if worker is None or waiting is None or _foreign(worker):
            return
        before = self.lost
        if self._in_hand is not None:
            self.lost += 1
        worker.cancel()
        while self._putting or not waiting.empty():
            while not waiting.empty():
                waiting.get_nowait()  # makes room for whoever waits
                waiting.task_done()
                self.lost += 1
            await asyncio.sleep(0)
        if self.lost > before:
            logger.error("%d runs of queued hooks were not waited for at the end", self.lost)
        await asyncio.wait([worker])


def _foreign(worker: asyncio.Task[None]) -> bool:
    """Whether the worker is of another event loop: of the parent of a fork."""
    return worker.get_loop() is not asyncio.get_running_loop()


class BlockingHookQueue(_Losses):
    """The queue of a client without an event loop: a worker thread, started when it is needed."""

    def __init__(self, carry_out: Callable[[Queued], Any], *, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._carry_out = carry_out
        self._capacity = capacity
        self._closed = self._given_up = False
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._lock = child_safe_lock()
        self._queue: queue.Queue[Queued | None] = queue.Queue(self._capacity)
        self._worker: threading.Thread | None = None
        self._putting = 0

    def forget(self) -> None:
        """In a forked child: what is queued is the parent's to run."""
        keep_forever(self._queue, self._worker)
        self._begin()

    def put_all(self, chain: Chain, context: HookContext) -> Steps[None]:
        """Queue the hooks of a chain that are to be queued; what comes too late is lost."""
        for run in _runs_of(chain, context):
            with self._lock:
                if self._closed:
                    self._lose(run)
                    continue
                self._start()
                try:
                    self._queue.put_nowait(run)
                    continue
                except queue.Full:
                    self._putting += 1
            yield Call(self._put, (run,))

    def _put(self, run: Queued) -> None:
        try:
            self._queue.put(run)
        finally:
            with self._lock:
                self._putting -= 1

    def _start(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(
                target=self._work, args=(self._queue,), name="llmspell-hooks", daemon=True
            )
            self._worker.start()

    def _work(self, waiting: queue.Queue[Queued | None]) -> None:
        while (run := waiting.get()) is not None:
            try:
                if self._given_up:
                    self._lose(run)
                else:
                    run.surroundings.run(self._carry_out, run)
            except BaseException as error:  # noqa: BLE001 - also sys.exit(): the next one must run
                _failed(run, error)
            finally:
                waiting.task_done()
        waiting.task_done()

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn."""
        return self._queue.qsize()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that is queued has run; whether it has."""
        until = None if timeout is None else monotonic() + timeout
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def close(self, timeout: float) -> None:
        """Wait for what is queued, no longer than `timeout`, take no more, and stop.

        Whoever waits for room is let go.
        """
        if self._worker is None:
            self._closed = True
            return
        until = monotonic() + timeout
        try:
            self.drain(timeout)
            with self._lock:
                self._closed = True
            self.drain(until - monotonic())  # what came between the two
        finally:
            with self._lock:
                self._closed = self._given_up = True
                worker, self._worker = self._worker, None
            busy = self._give_up()
            if worker is not None:
                self._queue.put(None)
        if worker is not None and not busy:
            worker.join(timeout)  # else a daemon: it ends with the hook that it is in

    def _give_up(self) -> bool:
        """Let go of what waits; whether the worker is in a hook that it does not come out of."""
        before = self.lost
        while self._putting or self._queue.qsize():
            try:
                run = self._queue.get(timeout=_LET_GO_S)  # makes room for whoever waits
            except queue.Empty:
                continue
            self._queue.task_done()
            self.lost += run is not None
        busy = bool(self._queue.unfinished_tasks)
        self.lost += busy
        if self.lost > before:
            logger.error("%d runs of queued hooks were not waited for at the end", self.lost)
        return busy
