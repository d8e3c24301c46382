"""Calling a function of the user's within a time limit, on an event loop and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
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
    limit_ms: int, function: Callable[..., Any], arguments: Arguments, named: Named
) -> Any:
    """Return what a function returns, awaited if it can be; `LimitOverError` after its limit.

    A coroutine is cancelled then. A plain function runs in a thread, so that a slow one holds up
    neither the event loop nor the renewal of a lease; nobody can end a thread, so it is left alone.
    """
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
    limit_ms: int,  # noqa: ARG001 - a thread cannot be interrupted
    function: Callable[..., Any],
    arguments: Arguments,
    named: Named,
) -> Any:
    """Return what a function returns; others see an unknown outcome once its limit is over."""
    return function(*arguments, **named)
