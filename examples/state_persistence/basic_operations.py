"""Write, read, list and delete: the first ten minutes.

``python basic_operations.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import ConflictError, Scope


async def main(url: str) -> None:
    """Show the basic calls, each with what it answers."""
    async with llmspell_dist.connect(url, namespace="example-basics") as spell:
        state = spell.state
        alice = Scope.agent("alice")  # or simply the text "agent:alice"
        await state.clear(alice)

        # A value is anything that MessagePack knows, and dates, sets, decimals, UUIDs besides.
        revision = await state.set(alice, "plan", {"goal": "fix #42", "steps": ["read", "patch"]})
        plan = await state.get(alice, "plan")
        print(f"plan, revision {revision}: {plan}")
        assert plan == {"goal": "fix #42", "steps": ["read", "patch"]}
        assert await state.get(alice, "nothing here", "a default") == "a default"

        # Every write has a revision; compare_and_set refuses to overwrite what you have not seen.
        record = await state.get_record(alice, "plan")
        assert record is not None
        assert record.revision == revision
        await state.set(alice, "plan", {"goal": "fix #43", "steps": []})
        try:
            await state.compare_and_set(alice, "plan", {"goal": "mine"}, expected=revision)
        except ConflictError as conflict:
            print(f"refused: {conflict}")
        else:
            raise AssertionError("a stale write went through")

        # update() does the reading, the comparing and the trying again for you.
        plan = await state.update(alice, "plan", lambda old: {**old, "steps": ["reproduce"]})
        assert plan == {"goal": "fix #43", "steps": ["reproduce"]}

        # Several keys in one round trip, several changes in one atomic commit.
        await state.set_many(alice, {"mood": "curious", "budget": 12.5})
        print(f"two of them: {await state.get_many(alice, ['mood', 'budget'])}")
        print(f"keys: {sorted([key async for key in state.keys(alice)])}")
        assert await state.count(alice) == 3

        # Each scope is a world of its own; scopes can be listed.
        await state.set("workflow:w1/step:plan", "status", "done")
        print(f"scopes: {sorted([str(scope) async for scope in state.scopes()])}")

        assert await state.delete(alice, "mood")
        assert not await state.exists(alice, "mood")
        print(f"removed at the end: {await state.clear(alice)} keys")
        await state.clear("workflow:w1/step:plan")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://basics"))
