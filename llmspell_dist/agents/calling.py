"""Calling a function within a time limit or to its end, on an event loop and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from inspect import isawaitable, iscoroutinefunction
from typing import Any

__all__ = ["LimitOverError", "call_async", "call_blocking"]

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


class LimitOverError(Exception):
    """The function had not returned when its time was over."""

    def __init__(self, limit_ms: int) -> None:
        super().__init__(f"it took longer than its limit of {limit_ms / 1000:g} s")


async def call_async(
    limit_ms: int | None, function: Callable[..., Any], arguments: Arguments, named: Named
) -> Any:
    """Return what a function returns, awaited if it can be; `LimitOverError` after its limit.

    A coroutine is cancelled then. A plain function runs in a thread, so that a slow one holds up
    neither the event loop nor the renewal of a lease; nobody can end a thread, so it is left alone.
    Without a limit a coroutine function is carried to its end: who is cancelled meanwhile hears of
    that afterwards.
    """
    if limit_ms is None:
        return await _to_its_end(function(*arguments, **named))
    limit = asyncio.timeout(limit_ms / 1000)
    try:
        async with limit:
            if _is_async(function):
                result = function(*arguments, **named)
            else:
                result = await asyncio.to_thread(_called, function, arguments, named)
            return await result if isawaitable(result) else result
    except TimeoutError as error:
        if limit.expired():
            raise LimitOverError(limit_ms) from error
        raise  # the function's own


async def _to_its_end(work: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None or task.cancelled():
        return task.result()
    if (failed := task.exception()) is not None:
        raise cancelled from failed
    raise cancelled


def _is_async(function: Callable[..., Any]) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - an object whose call is a coroutine
    )


def _called(function: Callable[..., Any], arguments: Arguments, named: Named) -> Any:
    try:
        return function(*arguments, **named)
    except StopIteration as error:
        # No future can carry it, and who waits would wait for ever; coroutines do the same.
        raise RuntimeError("the function raised StopIteration") from error


def call_blocking(
    limit_ms: int | None,  # noqa: ARG001 - a thread cannot be interrupted
    function: Callable[..., Any],
    arguments: Arguments,
    named: Named,
) -> Any:
    """Return what a function returns; others see an unknown outcome once its limit is over."""
    return function(*arguments, **named)
