"""An audit that misses nothing, and a dashboard that may: two ways to hear the same events.

``python audit_trail.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import llmspell_dist
from llmspell_dist.events import Event

QUEUE = "audit"


async def main(url: str) -> None:
    """Publish with nobody there, with a handler that fails, and with a dashboard that is slow."""
    async with llmspell_dist.connect(url, namespace="example-events") as spell:
        events = spell.events
        await events.remove(QUEUE)

        # The queue is there from its first subscription on, its consumers may come later.
        async with events.subscribe("order.*", durable=QUEUE):
            pass
        with llmspell_dist.context("shop", correlation_id="run-1"):
            await events.publish_many(Event("order.paid", number) for number in range(20))
        (queue,) = await events.subscriptions()
        print(f"nobody listens: {queue.lag} events wait")
        assert queue.lag == 20

        handled: Counter[int] = Counter()
        tried: Counter[int] = Counter()
        stop = asyncio.Event()

        async def audit(event: Event) -> None:
            assert event.correlation_id == "run-1"
            tried[event.data] += 1
            if event.data % 3 == 0 and tried[event.data] == 1:
                raise ConnectionError("the archive is away for a moment")
            handled[event.data] += 1
            if len(handled) == 20:
                stop.set()

        await events.consume(QUEUE, "order.*", audit, retry_delay=0.01, stop=stop)
        print(f"handled {len(handled)} events in {sum(tried.values())} tries")
        assert set(handled) == set(range(20))
        assert sum(tried.values()) == 27

        async with events.subscribe("order.*", buffer=5) as dashboard:
            await events.publish_many(Event("order.paid", number) for number in range(100))
            while dashboard.stats().received < 100:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            stats = dashboard.stats()
            shown = [(await anext(dashboard)).data for _ in range(5)]
        print(f"a slow dashboard shows {shown}, and knows that it missed {stats.dropped}")
        assert (shown, stats.dropped) == ([95, 96, 97, 98, 99], 95)
        assert await events.remove(QUEUE)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://example-events"))
