"""Change several keys of several scopes at once: all of it, or none of it.

``python transactions.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import ConflictError

BUDGETS = ["agent:planner", "agent:coder", "agent:reviewer"]


async def main(url: str) -> None:
    """Move budget between agents from many coroutines and show that none gets lost."""
    async with llmspell_dist.connect(url, namespace="example-transactions") as spell:
        state = spell.state
        for agent in BUDGETS:
            await state.set(agent, "budget", 100)

        # Reads are remembered with their revisions, writes are buffered; leaving the block sends
        # one commit that holds only if everything that was read is still as it was.
        async with state.transaction() as tx:
            mine = await tx.get("agent:planner", "budget")
            theirs = await tx.get("agent:coder", "budget")
            tx.set("agent:planner", "budget", mine - 30)
            tx.set("agent:coder", "budget", theirs + 30)
        print(f"moved 30 with one revision for both changes: {tx.revision}")

        # Somebody changes what we read: the whole transaction is refused, nothing is half done.
        try:
            async with state.transaction() as tx:
                seen = await tx.get("agent:coder", "budget")
                await state.increment("agent:coder", "budget", 1)  # somebody else, meanwhile
                tx.set("agent:coder", "budget", seen * 2)
                tx.set("agent:reviewer", "budget", 0)
        except ConflictError as conflict:
            print(f"refused: {conflict}")
        assert await state.get("agent:coder", "budget") == 131
        assert await state.get("agent:reviewer", "budget") == 100

        # An exception in the block sends nothing at all.
        try:
            async with state.transaction() as tx:
                tx.delete("agent:planner", "budget")
                raise RuntimeError("changed my mind")  # noqa: TRY301 - that is the point
        except RuntimeError:
            assert await state.get("agent:planner", "budget") == 70

        # The function form runs again after a conflict: 60 transfers at once, none lost.
        async def transfer(source: str, target: str) -> None:
            async def move(tx: llmspell_dist.Transaction) -> None:
                left = await tx.get(source, "budget")
                right = await tx.get(target, "budget")
                tx.set(source, "budget", left - 1)
                tx.set(target, "budget", right + 1)

            await state.run_transaction(move, attempts=100)

        pairs = zip(BUDGETS, [*BUDGETS[1:], BUDGETS[0]], strict=True)
        await asyncio.gather(*[transfer(*pair) for pair in list(pairs) * 20])
        budgets = [await state.get(agent, "budget") for agent in BUDGETS]
        print(f"after 60 transfers at once: {budgets}, together {sum(budgets)}")
        assert sum(budgets) == 301
        for agent in BUDGETS:
            await state.clear(agent)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://transactions"))
