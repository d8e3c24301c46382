"""Follow an agent's state live, stop, and go on later without a gap; and reads from memory.

``python follow_an_agent.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import NearCache, Options, Revision

AGENT = "agent:example-watched"
NAMESPACE = "example-watch"


async def follow(url: str, since: Revision | None, last: str) -> Revision | None:
    """Print what happens until a key comes; return up to where everything was seen."""
    async with (
        llmspell_dist.connect(url, namespace=NAMESPACE) as spell,
        spell.state.watch(AGENT, since=since) as watch,
    ):
        async for change in watch:
            print(f"{change.op:8} {change.key:8} {change.value}")
            if change.key == last:
                break
        return watch.revision


async def main(url: str) -> None:
    """Work while somebody follows; then work while nobody does, and let him catch up."""
    async with llmspell_dist.connect(url, namespace=NAMESPACE) as spell:
        state = spell.state
        await state.clear(AGENT)
        start = (await state.snapshot(AGENT)).revision
        following = asyncio.create_task(follow(url, start, "status"))
        await state.set(AGENT, "task", "write a report")
        await state.append(AGENT, "steps", "outline")
        await state.set(AGENT, "status", "half done")
        seen = await following

        await state.append(AGENT, "steps", "draft")  # nobody follows now
        await state.increment(AGENT, "pages", 3)
        await state.set(AGENT, "result", "report.md")
        resumed = await follow(url, seen, "result")
        assert resumed == (await state.stat(AGENT)).revision

        waiting = asyncio.create_task(
            state.wait_for(AGENT, "status", lambda status: status == "done", timeout=10)
        )
        await state.set(AGENT, "status", "done")
        assert await waiting == "done"

        options = Options(namespace=NAMESPACE, near_cache=NearCache(scopes=("agent:*",)))
        async with llmspell_dist.connect(url, options=options) as cached:
            near = cached.near_cache
            assert near is not None
            await near.warm(AGENT)
            for _ in range(1000):
                assert await cached.state.get(AGENT, "status") == "done"
            print(f"{near.stats().hits} of 1000 reads came from memory")
            assert near.stats().hits == 999
            await cached.state.clear(AGENT)
            assert await cached.state.get(AGENT, "status") is None


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://example-watch"))
