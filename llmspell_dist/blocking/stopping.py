"""Work of the background that goes on until a thread says stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["until"]

T = TypeVar("T")
_LOOK_EVERY_S: Final = 0.1


async def until(
    stop: threading.Event, work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]
) -> T:
    """Run what ends in order when an event of the loop is set, until one of threads is."""
    ended = asyncio.Event()

    async def look() -> None:
        # A thread that waits for it could not be interrupted.
        while not stop.is_set():  # noqa: ASYNC110 - it is an event of threads
            await asyncio.sleep(_LOOK_EVERY_S)
        ended.set()

    looking = asyncio.create_task(look())
    try:
        return await work(ended)
    finally:
        looking.cancel()
        await asyncio.wait([looking])
