"""A consumer of its own: ``python -m benchmarks.event_worker URL NAMESPACE ours|peer``.

Each line of standard input is a number of events to consume; the answer is a line when the server
has the last acknowledgement.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgpack
import redis.asyncio

import llmspell_dist

__all__ = ["PEER_QUEUE"]

PEER_QUEUE = "peer:queue"
_AT_ONCE = 256


async def _order() -> int:
    line = await asyncio.to_thread(sys.stdin.readline)
    return int(line or 0)


async def _ours(url: str, namespace: str) -> None:
    async with (
        llmspell_dist.connect(url, namespace=namespace) as spell,
        spell.events.subscribe("bench.*", durable="bench") as events,
    ):
        print("ready", flush=True)
        while count := await _order():
            step = None
            async for event in events:
                step = event.data["step"]
                await events.ack(event)
                count -= 1
                if not count:
                    break
            await events.flush()
            print(step, flush=True)


async def _peer(url: str) -> None:
    client = redis.asyncio.Redis.from_url(url)
    await client.delete(PEER_QUEUE)
    await client.xgroup_create(PEER_QUEUE, "q", "0", mkstream=True)
    print("ready", flush=True)
    while count := await _order():
        step = None
        while count:
            found: Any = await client.xreadgroup("q", "me", {PEER_QUEUE: ">"}, _AT_ONCE, block=1000)
            entries = found[0][1] if found else []
            if not entries:
                continue
            for _, fields in entries:
                step = msgpack.unpackb(fields[b"b"])["data"]["step"]
            ids = [entry for entry, _ in entries]
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.xack(PEER_QUEUE, "q", *ids)
                pipeline.xdel(PEER_QUEUE, *ids)
                await pipeline.execute()
            count -= len(ids)
        print(step, flush=True)
    await client.aclose()


if __name__ == "__main__":
    if sys.argv[3] == "ours":
        asyncio.run(_ours(sys.argv[1], sys.argv[2]))
    else:
        asyncio.run(_peer(sys.argv[1]))
