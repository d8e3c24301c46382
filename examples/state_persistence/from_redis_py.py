"""From redis-py in ten lines: what each habit becomes, and what it gains.

``python from_redis_py.py [URL]``; without a URL everything happens inside this process.
"""

# ruff: noqa: ERA001 - the lines of redis-py are the point
from __future__ import annotations

import asyncio
import sys

import llmspell_dist

BOT = "agent:bot"


async def main(url: str) -> None:
    """Go through the habits one by one; the redis-py line stands above ours."""
    # r = redis.asyncio.Redis.from_url(url)
    async with llmspell_dist.connect(url, namespace="example-from-redis-py") as spell:
        state = spell.state
        await state.clear(BOT)

        # 1  await r.hset("agent:bot", "plan", json.dumps(plan))
        await state.set(BOT, "plan", {"goal": "ship"})
        # 2  json.loads(await r.hget("agent:bot", "plan") or "null")
        assert await state.get(BOT, "plan") == {"goal": "ship"}
        # 3  await r.set("agent:bot:lock", "me", nx=True, ex=30)
        assert await state.set_if_absent(BOT, "lock", "me", ttl=30) is not None
        assert await state.set_if_absent(BOT, "lock", "you", ttl=30) is None
        # 4  await r.hincrby("agent:bot", "calls", 1)
        assert await state.increment(BOT, "calls") == 1
        # 5  await r.rpush("agent:bot:messages", json.dumps(message))
        assert await state.append(BOT, "messages", {"role": "user", "content": "hi"}) == 1
        # 6  [json.loads(m) for m in await r.lrange("agent:bot:messages", 0, -1)]
        assert await state.get(BOT, "messages") == [{"role": "user", "content": "hi"}]
        # 7  await r.hmget("agent:bot", ["plan", "calls"])  - a missing key is not in the answer
        assert await state.get_many(BOT, ["plan", "calls", "no"]) == {
            "plan": {"goal": "ship"},
            "calls": 1,
        }
        # 8  r.pipeline(transaction=True) with WATCH, MULTI, EXEC and a loop around all of it
        async with state.transaction() as tx:
            plan = await tx.get(BOT, "plan")
            tx.set(BOT, "plan", {**plan, "done": True})
            tx.increment(BOT, "calls")
        # 9  async for key in r.scan_iter("agent:bot:*")
        assert sorted([key async for key in state.keys(BOT)]) == [
            "calls",
            "lock",
            "messages",
            "plan",
        ]
        # 10 await r.delete("agent:bot", "agent:bot:lock", "agent:bot:messages")
        assert await state.clear(BOT) == 4
        # And what redis-py has no line for: who changed it, and what it was.
        print(*[f"{c.revision} {c.op}" for c in await state.history(BOT, "plan")], sep="\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://from-redis-py"))
