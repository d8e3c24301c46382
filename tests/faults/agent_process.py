"""One of several real processes on the same keys: adds, appends, compares, and moves money.

Run by test_processes.py as ``agent_process.py URL NAMESPACE ME ROUNDS SURFACE``; prints what it was
told.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

import llmspell_dist
from llmspell_dist import blocking
from llmspell_dist.errors import ConflictError

SCOPE = "agent:shared"
ACCOUNTS = [f"account{i}" for i in range(5)]


async def by_tasks(url: str, namespace: str, me: int, rounds: int) -> dict[str, Any]:
    """Eight tasks in one event loop."""
    told: dict[str, Any] = {"sums": [], "sets": 0, "transfers": 0, "wrong": 0}
    chance = random.Random(me)

    async def work(task: int) -> None:
        state = spell.state
        for i in range(task, rounds, 8):
            told["sums"].append(await state.increment(SCOPE, "sum"))
            await state.append(SCOPE, "list", [me, i])
            while True:
                record: Any = await state.get_record(SCOPE, "compared")
                try:
                    await state.compare_and_set(
                        SCOPE, "compared", record.value + 1, expected=record.revision
                    )
                except ConflictError:
                    continue
                told["sets"] += 1
                break
            a, b = chance.sample(ACCOUNTS, 2)

            async def transfer(tx: Any, a: str = a, b: str = b) -> None:
                have = await tx.get_many(SCOPE, [a, b])
                await asyncio.sleep(0)
                tx.set(SCOPE, a, have[a] - 1)
                tx.set(SCOPE, b, have[b] + 1)

            await state.run_transaction(transfer, attempts=200)
            told["transfers"] += 1
            seen = await state.get_many(SCOPE, ACCOUNTS)
            told["wrong"] += sum(seen.values()) != 500

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await asyncio.gather(*[work(task) for task in range(8)])
    return told


def by_hand(url: str, namespace: str, me: int, rounds: int) -> dict[str, Any]:
    """One thread with a blocking client."""
    told: dict[str, Any] = {"sums": [], "sets": 0, "transfers": 0, "wrong": 0}
    chance = random.Random(me)
    with blocking.connect(url, namespace=namespace) as spell:
        state = spell.state
        for i in range(rounds):
            told["sums"].append(state.increment(SCOPE, "sum"))
            state.append(SCOPE, "list", [me, i])
            state.update(SCOPE, "compared", lambda value: value + 1, attempts=500)
            told["sets"] += 1
            a, b = chance.sample(ACCOUNTS, 2)

            def transfer(tx: Any, a: str = a, b: str = b) -> None:
                have = tx.get_many(SCOPE, [a, b])
                tx.set(SCOPE, a, have[a] - 1)
                tx.set(SCOPE, b, have[b] + 1)

            state.run_transaction(transfer, attempts=200)
            told["transfers"] += 1
            told["wrong"] += sum(state.get_many(SCOPE, ACCOUNTS).values()) != 500
    return told


if __name__ == "__main__":
    url, namespace, me, rounds, surface = sys.argv[1:]
    if surface == "async":
        result = asyncio.run(by_tasks(url, namespace, int(me), int(rounds)))
    else:
        result = by_hand(url, namespace, int(me), int(rounds))
    json.dump(result, sys.stdout)
