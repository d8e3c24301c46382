"""Waiting for a stop that may come, for threads, which cannot be stopped, and for clearing up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from llmspell_dist.errors import SpellError

__all__ = ["clearing_up", "to_the_end", "until_set"]

_T = TypeVar("_T")

logger = logging.getLogger("llmspell_dist.backup")


async def until_set(stop: asyncio.Event, seconds: float) -> None:
    """Return when `stop` is set, or so many seconds have passed."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        return


async def to_the_end(
    work: Coroutine[Any, Any, _T], cancelled: Callable[[], None] = lambda: None
) -> _T:
    """Wait for the end of work in a thread, also if nobody waits for this any more.

    `cancelled` is called then, before its end is waited for.
    """
    thread = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancelled()
        await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()  # nobody else will ask for it
        raise


async def clearing_up(what: str, work: Awaitable[object]) -> None:
    """Wait for what clears up behind a backup or restore; that it fails is only logged.

    What the backup or restore came to stands, be it done or failed; the next one clears up.
    """
    try:
        await work
    except SpellError as error:
        logger.warning("%s was left for the next backup or restore to remove: %s", what, error)
