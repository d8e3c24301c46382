"""A consumer to be killed: ``event_process.py URL NAMESPACE NAME CONSUMER``.

For each event it writes its number on a line *before* it acknowledges it, so that a number that was
never written was never handled. It ends when an event's data is ``"end"``.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist.config import Options
from llmspell_dist.events import Event


async def main(url: str, namespace: str, name: str, consumer: str) -> None:
    """Consume until the end."""
    stop = asyncio.Event()

    def handle(event: Event) -> None:
        sys.stdout.write(f"{event.data}\n")
        sys.stdout.flush()
        if event.data == "end":
            stop.set()

    options = Options(namespace=namespace, housekeeping=False)
    async with llmspell_dist.connect(url, options=options) as spell:
        await spell.events.consume(
            name, "*", handle, consumer=consumer or None, claim_idle=0.5, stop=stop
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
