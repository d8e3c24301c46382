"""A process that competes for one lease, told what to do line by line; it answers with JSON.

``python -m benchmarks.lease_worker URL NAMESPACE SCOPE WAITERS``, then on standard input:

- ``take N``: each waiter takes and releases the lease N times; the answer lists token, and when it
  was asked for, had, and given back (seconds of the machine's monotonic clock).
- ``ping N``: the answer lists the seconds of N round trips.
- ``wait S``: each waiter stands in line for S seconds; answered when all have given up.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic
from typing import Any

import llmspell_dist
from llmspell_dist import LeaseUnavailableError


async def _take(spell: llmspell_dist.Spell, scope: str, waiters: int, times: int) -> list[Any]:
    found: list[Any] = []

    async def waiter() -> None:
        for _ in range(times):
            asked = monotonic()
            lease = await spell.leases.acquire(scope)
            had = monotonic()
            await asyncio.sleep(0)
            given_back = monotonic()
            await lease.release()
            found.append((lease.token, asked, had, given_back))

    await asyncio.gather(*[waiter() for _ in range(waiters)])
    return found


async def _wait(spell: llmspell_dist.Spell, scope: str, waiters: int, seconds: float) -> int:
    async def waiter() -> int:
        try:
            async with spell.leases.acquire(scope, wait=seconds):
                return 1
        except LeaseUnavailableError:
            return 0

    return sum(await asyncio.gather(*[waiter() for _ in range(waiters)]))


async def main(url: str, namespace: str, scope: str, waiters: int) -> None:
    """Do what the lines say until there are no more."""
    loop = asyncio.get_running_loop()
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await spell.ping()
        print(json.dumps("ready"), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order, number = line.split()
            answer: Any
            if order == "take":
                answer = await _take(spell, scope, waiters, int(number))
            elif order == "ping":
                answer = [await spell.ping() for _ in range(int(number))]
            else:
                answer = await _wait(spell, scope, waiters, float(number))
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    url, namespace, scope, waiters = sys.argv[1:]
    asyncio.run(main(url, namespace, scope, int(waiters)))
