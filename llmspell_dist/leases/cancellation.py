"""Cancelling a task for a reason of ours, and taking that back where the reason is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

__all__ = ["Cancellation"]


class Cancellation:
    """At most one cancellation of a task, told apart from others' as `asyncio.timeout` does."""

    __slots__ = ("_before", "_requested", "_task")

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task
        self._before = 0 if task is None else task.cancelling()
        self._requested = False

    def request(self, error: BaseException) -> None:
        """Cancel the task, once; the `CancelledError` carries `error`."""
        if not self._requested and self._task is not None and not self._task.done():
            self._requested = True
            self._task.cancel(error)

    async def settle(self, error: BaseException | None) -> BaseException | None:
        """Return what went wrong beside our own cancellation, which ends here.

        Raises `CancelledError` if somebody else cancelled the task too and that was not heard yet.
        """
        task = self._task
        if not self._requested or task is None or task is not asyncio.current_task():
            return error
        self._requested = False
        stopped = isinstance(error, asyncio.CancelledError)
        if not stopped:
            # It was asked for and has not arrived yet: it must not hit what comes after.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if task.uncancel() > self._before:
            if stopped:
                return error
            raise asyncio.CancelledError
        return None if stopped else error
