"""Calling a function of the user's within a time limit, on an event loop and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

__all__ = ["LimitOverError", "call_async", "call_blocking"]


class LimitOverError(Exception):
    """The function had not returned when its time was over; it was cancelled."""


async def call_async(
    limit_ms: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Return what a function returns, awaited if it can be; after its limit it is cancelled."""
    limit = asyncio.timeout(limit_ms / 1000)
    try:
        async with limit:
            result = function(*arguments)
            return await result if isawaitable(result) else result
    except TimeoutError as error:
        if limit.expired():
            raise LimitOverError from error
        raise  # the function's own


def call_blocking(limit_ms: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:  # noqa: ARG001 - a thread cannot be interrupted
    """Return what a function returns; others see an unknown outcome once its limit is over."""
    return function(*arguments)
