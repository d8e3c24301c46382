"""What tests of watches share: taking changes in time, and the log to compare them with."""

from __future__ import annotations

import asyncio
from typing import Any

from llmspell_dist import Change, Revision

BEGINNING = Revision(0, 0)


async def take(watch: Any, count: int, within_s: float = 10.0) -> list[Change]:
    """Return the next changes of a watch; fail if they do not come."""
    async with asyncio.timeout(within_s):
        return [await anext(watch) for _ in range(count)]


async def nothing_more(watch: Any) -> bool:
    """Whether a watch has nothing to hand out, without waiting for something to come."""
    waiting = asyncio.ensure_future(anext(watch))
    done: set[Any] = set()
    for _ in range(50):  # what is on its way inside the process arrives
        done, _ = await asyncio.wait({waiting}, timeout=0.001)
        if done:
            break
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return not done


def told(changes: list[Change]) -> list[tuple[str, str, Any]]:
    """Return op, key and value of each."""
    return [(change.op, change.key, change.value) for change in changes]


def logged(store: Any, scope: str) -> list[tuple[Revision, str, int]]:
    """Return revision, key and op of every change of a scope that the log holds."""
    return [
        (entry.revision, change.key, change.op)
        for entry in store.log()
        for change in entry.changes
        if change.scope == scope
    ]
