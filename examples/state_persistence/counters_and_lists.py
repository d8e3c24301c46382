"""Count, append and merge on the server: nothing is read first, so nothing can get lost.

``python counters_and_lists.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import WrongKindError

SESSION = "session:s1"


async def main(url: str) -> None:
    """Let a hundred coroutines change the same three keys at once."""
    async with llmspell_dist.connect(url, namespace="example-counters") as spell:
        state = spell.state
        await state.clear(SESSION)

        # Counters: each call gets its own result, so they are also unique numbers.
        tickets = await asyncio.gather(
            *[state.increment(SESSION, "tokens", 10) for _ in range(100)]
        )
        print(f"100 increments of 10: {await state.get(SESSION, 'tokens')}")
        assert sorted(tickets) == list(range(10, 1_010, 10))
        assert await state.increment(SESSION, "cost", 0.25) == 0.25

        # Lists: an append sends the new message and nothing else, however long the list is.
        await state.append(SESSION, "messages", {"role": "system", "content": "Be brief."})
        await asyncio.gather(
            *[
                state.append(SESSION, "messages", {"role": "user", "content": f"question {n}"})
                for n in range(100)
            ]
        )
        messages = await state.get(SESSION, "messages")
        print(f"{len(messages)} messages, the first of them: {messages[0]}")
        assert len(messages) == 101
        assert {message["content"] for message in messages[1:]} == {
            f"question {n}" for n in range(100)
        }

        # Mappings: merge changes the named fields, several writers do not disturb each other.
        await asyncio.gather(
            state.merge(SESSION, "profile", {"name": "Ada", "language": "en"}),
            state.merge(SESSION, "profile", {"city": "London"}),
        )
        await state.merge(SESSION, "profile", {"language": "fr"}, remove=["city"])
        profile = await state.get(SESSION, "profile")
        print(f"merged: {profile}")
        assert profile == {"name": "Ada", "language": "fr"}

        # A counter is not a list; the error says what it is.
        try:
            await state.increment(SESSION, "messages")
        except WrongKindError as error:
            print(f"refused: {error}")
        else:
            raise AssertionError("a list was incremented")
        await state.clear(SESSION)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://counters"))
