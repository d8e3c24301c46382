"""Let values expire, and choose per value how much is done for it.

``python ttl_and_classes.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import llmspell_dist
from llmspell_dist import InvalidArgumentError, StateClass

SESSION = "session:s2"


async def main(url: str) -> None:
    """Set, keep, change and drop TTLs, and write values of several classes."""
    async with llmspell_dist.connect(url, namespace="example-ttl") as spell:
        state = spell.state
        await state.clear(SESSION)

        # The TTL is part of the write; an update keeps it unless it says otherwise.
        await state.set(SESSION, "draft", "v1", ttl=timedelta(hours=1))
        await state.set(SESSION, "draft", "v2")
        record = await state.get_record(SESSION, "draft")
        assert record is not None
        assert record.expires is not None
        print(f"the draft still expires: {record.expires:%H:%M:%S}")

        await state.set(SESSION, "draft", "v3", ttl=None)
        record = await state.get_record(SESSION, "draft")
        assert record is not None
        assert record.expires is None
        assert await state.expire(SESSION, "draft", 30)
        assert await state.persist(SESSION, "draft")

        # An expired value is seen by no call, whether or not it has been swept away yet.
        await state.set(SESSION, "typing", True, ttl=0.1)
        assert await state.exists(SESSION, "typing")
        await asyncio.sleep(0.25)
        assert not await state.exists(SESSION, "typing")
        assert await state.get(SESSION, "typing") is None
        assert [key async for key in state.keys(SESSION)] == ["draft"]
        print("the typing indicator is gone, by itself")

        try:
            await state.set(SESSION, "typing", True, ttl=0)
        except InvalidArgumentError as error:
            print(f"refused: {error}")

        # A class decides what is done for a value; reading, listing, deleting work alike for all.
        await state.set(SESSION, "page", "<html>…", state_class=StateClass.BULK)
        await state.set(SESSION, "decision", "merge", state_class=StateClass.STANDARD)
        for key in ("page", "decision"):
            record = await state.get_record(SESSION, key)
            assert record is not None
            changes = await state.history(SESSION, key)
            kept = "in the history" if changes[0].has_value else "only its metadata in the history"
            print(f"{key}: {record.state_class.name}, {kept}")
        await state.clear(SESSION)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://ttl"))
