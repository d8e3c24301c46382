"""An event loop in a thread of its own: where a blocking client waits, listens and renews.

It starts with the first work that needs it and ends with the client. Work that a caller waits for
in its own thread does not go through it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from llmspell_dist.errors import ClosedError, WrongEventLoopError
from llmspell_dist.fork import keep_forever, on_fork

__all__ = ["Background"]

logger = logging.getLogger("llmspell_dist.blocking")

T = TypeVar("T")
_CANCEL_WITHIN_S = 1.0
_JOIN_WITHIN_S = 10.0
"""More than the connections wait for what is in flight."""


class Background:
    """A daemon thread with an event loop, started at its first use, and anew after a fork."""

    def __init__(self) -> None:
        self._begin()
        self._closed = False
        on_fork(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether there is such a thread."""
        return self._thread is not None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is not None:
            return loop
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=loop.run_forever, name="llmspell-background", daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop

    def call(self, function: Callable[[], Any]) -> None:
        """Call a function in the loop, some time soon."""
        self._running_loop().call_soon_threadsafe(function)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and return its result; an interrupt of the caller ends it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise WrongEventLoopError("the background thread cannot wait for itself")
        try:
            loop = self._running_loop()
        except ClosedError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except CancelledError:
            if self._closed:
                raise ClosedError("the client was closed meanwhile") from None
            raise
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a last coroutine, if there ever was a first, and end the thread."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        ending = asyncio.run_coroutine_threadsafe(last(), loop)
        try:
            ending.result(_JOIN_WITHIN_S)
        except TimeoutError:
            logger.warning("closing took longer than %g s, and is broken off", _JOIN_WITHIN_S)
        finally:
            asyncio.run_coroutine_threadsafe(_stop(), loop)
            thread.join(_JOIN_WITHIN_S)
            if not thread.is_alive():
                loop.close()

    def forget(self) -> None:
        """In a forked child: the thread did not come along."""
        keep_forever(self._loop, self._thread)
        closed = self._closed
        self._begin()
        self._closed = closed


async def _stop() -> None:
    """End what still runs, since a thread may wait for it, and then the loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_WITHIN_S)
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)  # once those who wait have been told
