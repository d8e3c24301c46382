"""Carries hooks that are not done at once: coroutines that wait, functions with a time limit.

A coroutine goes on in its caller's task, so that whatever knows of tasks (`asyncio.timeout`, task
groups, cancellation) works in a hook as it does anywhere. At its limit it is cancelled; if it holds
on to life it is put aside, ended a little later, and whatever it returns has no effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from llmspell_dist.hooks.nesting import deeper, left_alone, surface
from llmspell_dist.hooks.results import HookResult

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext

__all__ = [
    "AsyncRunner",
    "Outcome",
    "Pending",
    "Runner",
    "TimeIsUpError",
    "call_with_limit",
    "cancellations",
    "coroutine_of",
    "is_own_cancellation",
]

GRACE_S: Final = 1.0
"""What a coroutine is given that goes on after it was cancelled."""


class TimeIsUpError(Exception):
    """The hook had not ended at its limit."""


def cancellations() -> int:
    """Return how often somebody has asked this task to end so far; 0 outside of a task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return 0
    return 0 if task is None else task.cancelling()


def is_own_cancellation(error: BaseException, before: int = 0) -> bool:
    """Whether this is a `CancelledError` because somebody cancelled this task.

    Else it came out of something that a hook waited for (a task of its own that it cancelled): then
    it is a failure like any other. `before` is what `cancellations` gave when the hook began.
    """
    return isinstance(error, asyncio.CancelledError) and cancellations() > before


def coroutine_of(result: Any) -> Coroutine[Any, Any, Any] | None:
    """Return what a hook gave as a coroutine; None if it is its answer."""
    if type(result) is CoroutineType:
        return result
    if isinstance(result, HookResult | Pending) or not isawaitable(result):
        return None
    return _awaited(result)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


class Outcome(NamedTuple):
    """How a hook ended."""

    result: Any = None
    error: BaseException | None = None


class Pending(NamedTuple):
    """What has to be called, and perhaps awaited, for a hook's `Outcome`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Runner(Protocol):
    """Carries hooks for one of the two surfaces."""

    def begin(self, work: Coroutine[Any, Any, Any], limit_s: float) -> Any:
        """Return a coroutine's result if it need not wait, else `Pending`."""

    def threaded(
        self, call: Callable[[HookContext], Any], context: HookContext, limit_s: float
    ) -> Pending:
        """Have a function called in a thread that is left alone at the limit."""


class AsyncRunner:
    """Carries hooks on an event loop."""

    def __init__(self) -> None:
        self._aside: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, Any], limit_s: float) -> Any:
        """Take the first step here and now: most coroutines of hooks never wait."""
        try:
            first = work.send(None)
        except StopIteration as done:
            return done.value
        return Pending(self.finish, (work, first, limit_s))

    async def finish(self, work: Coroutine[Any, Any, Any], first: Any, limit_s: float) -> Outcome:
        """Carry a coroutine on that waits for `first`."""
        token, asked = deeper(), cancellations()
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return Outcome(await _Rest(work, first, self._put_aside))
        except TimeoutError as error:
            return Outcome(None, TimeIsUpError() if limit.expired() else error)
        except (Exception, asyncio.CancelledError) as error:
            if is_own_cancellation(error, asked):
                raise
            return Outcome(None, error)
        finally:
            surface(token)

    def threaded(
        self, call: Callable[[HookContext], Any], context: HookContext, limit_s: float
    ) -> Pending:
        """Have a function called in a thread, with this task's context variables."""
        return Pending(self._in_thread, (call, context, limit_s))

    async def _in_thread(
        self, call: Callable[[HookContext], Any], context: HookContext, limit_s: float
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Outcome] = loop.create_future()

        def end(outcome: Outcome) -> None:
            if not ended.done():
                ended.set_result(outcome)

        def tell(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(end, outcome)

        start_thread(call, context, tell)
        until = loop.time() + limit_s
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                outcome = await ended
        except TimeoutError:
            return Outcome(None, TimeIsUpError())
        work = coroutine_of(outcome.result)
        if work is not None:  # it was a coroutine function in disguise
            return await self.finish(work, None, until - loop.time())
        return outcome

    def _put_aside(self, work: Coroutine[Any, Any, Any], waiting_for: Any) -> None:
        """Let a coroutine end that did not when it was cancelled; cancelled again after a grace."""
        task = asyncio.create_task(_to_its_end(work, waiting_for), name="llmspell-hook-aside")
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        asyncio.get_running_loop().call_later(GRACE_S, task.cancel)

    async def close(self) -> None:
        """End what was put aside."""
        aside = list(self._aside)
        for task in aside:
            task.cancel()
        if aside:
            await asyncio.wait(aside, timeout=GRACE_S)


class _Rest:
    """Awaits the rest of a coroutine whose first step was taken."""

    __slots__ = ("_aside", "_first", "_work")

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        first: Any,
        aside: Callable[[Coroutine[Any, Any, Any], Any], None],
    ) -> None:
        self._work = work
        self._first = first
        self._aside = aside

    def __await__(self) -> Generator[Any, Any, Any]:
        work, waiting_for = self._work, self._first
        asked = cancellations()
        while True:
            given = cancelled = None
            try:
                given = yield waiting_for
            except asyncio.CancelledError as error:
                cancelled = error
            except GeneratorExit:
                work.close()
                raise
            try:
                waiting_for = work.send(given) if cancelled is None else work.throw(cancelled)
            except StopIteration as done:
                if cancelled is not None and is_own_cancellation(cancelled, asked):
                    raise cancelled from None  # it cannot keep its caller from being cancelled
                return done.value
            if cancelled is not None and is_own_cancellation(cancelled, asked):
                self._aside(work, waiting_for)
                raise cancelled


async def _to_its_end(work: Coroutine[Any, Any, Any], waiting_for: Any) -> None:
    left_alone.set(True)
    with contextlib.suppress(Exception):  # whatever becomes of it has no effect
        await _Rest(work, waiting_for, lambda late, _: late.close())


def start_thread(
    call: Callable[[HookContext], Any], context: HookContext, tell: Callable[[Outcome], None]
) -> None:
    """Call a function in a thread of its own, a daemon: one that never ends holds up nobody."""

    def work() -> None:
        token = deeper()
        try:
            outcome = Outcome(call(context))
        except BaseException as error:  # noqa: BLE001 - also sys.exit(): whoever waits is told
            outcome = Outcome(None, error)
        finally:
            surface(token)
        tell(outcome)

    threading.Thread(
        target=copy_context().run, args=(work,), name="llmspell-hook", daemon=True
    ).start()


def call_with_limit(
    call: Callable[[HookContext], Any], context: HookContext, limit_s: float
) -> Outcome:
    """Call a function in a thread and wait for it, no longer than the limit; without a loop."""
    ended = threading.Event()
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    start_thread(call, context, tell)
    if not ended.wait(limit_s):
        return Outcome(None, TimeIsUpError())
    return outcomes[0]
