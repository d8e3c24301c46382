"""Processes that restore scopes from a file of items, until they are killed.

Run by the tests of restores as ``restore_process.py URL NAMESPACE FILE SCOPE…``. A byte of its
input makes a process, which says ``ready`` and its number when it is connected, begins at the next
byte, which it tells, and says ``done``; ``ended`` is said when it is gone. So a hundred deaths cost
one start. Batches are small: there are many moments at which it can die.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import llmspell_dist
from llmspell_dist import Options, Scope
from llmspell_dist.backup.items import unpack_items
from llmspell_dist.backup.restoring import (
    Staging,
    Swap,
    abandon,
    batches,
    check,
    leftovers,
    staging,
    swap,
)


def say(what: str) -> None:
    """Tell the test."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


async def main(url: str, namespace: str, raw: bytes, *scopes: str) -> None:
    """Restore once."""
    options = Options(namespace=namespace, housekeeping=False)
    async with llmspell_dist.connect(url, options=options) as spell:
        driver = spell.state._driver
        await spell.state.get(scopes[0], "none")
        say(f"ready {os.getpid()}")
        await asyncio.to_thread(os.read, 0, 1)
        say("begun")
        one = Staging(driver.core)
        await driver.run(leftovers(driver.core, "0", quiet_ms=-1))
        await driver.run(one.load(unpack_items(raw, "items")))
        swaps = [Swap(Scope.parse(scope), scope.encode()) for scope in scopes]
        await driver.run(check(one, swaps))
        for each in swaps:
            await driver.run(swap(one, [each]))
        await driver.run(abandon(one))
        say("done")


if __name__ == "__main__":
    for module, name, value in (
        (batches, "BATCH_CHANGES", 2), (staging, "BATCH_RECORDS", 10), (staging, "TOGETHER", 2)
    ):  # fmt: skip
        setattr(module, name, value)
    url, namespace, file, *scopes = sys.argv[1:]
    items = Path(file).read_bytes()
    while os.read(0, 1):
        child = os.fork()
        if child == 0:
            asyncio.run(main(url, namespace, items, *scopes))
            os._exit(0)
        os.waitpid(child, 0)
        say("ended")
