"""One worker at a time: a count that is only right if nobody else is at it.

``python exclusive_worker.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import LeaseUnavailableError

JOB = "workflow:example-report"
WORKERS, ROUNDS = 10, 5


def step(section: str) -> str:
    """Return the scope of a section of the report."""
    return f"{JOB}/step:{section}"


async def count_up(state: llmspell_dist.StateManager) -> None:
    """Read, think, write: two who do this at the same time lose an update."""
    count = await state.get(JOB, "count", 0)
    await asyncio.sleep(0)  # here the others have their chance
    await state.set(JOB, "count", count + 1)


async def without_a_lease(spell: llmspell_dist.Spell) -> int:
    """Let all workers count at once."""

    async def work() -> None:
        for _ in range(ROUNDS):
            await count_up(spell.state)

    await spell.state.clear(JOB)
    await asyncio.gather(*[work() for _ in range(WORKERS)])
    count: int = await spell.state.get(JOB, "count")
    return count


async def with_a_lease(spell: llmspell_dist.Spell) -> tuple[int, list[int]]:
    """Let them take turns; who waits is woken, in the order of coming."""
    turns: list[int] = []

    async def work(number: int) -> None:
        for _ in range(ROUNDS):
            async with spell.leases.acquire(JOB, wait=30, label=f"worker {number}") as lease:
                turns.append(number)
                await count_up(lease.state)

    await spell.state.clear(JOB)
    await asyncio.gather(*[work(number) for number in range(WORKERS)])
    return await spell.state.get(JOB, "count"), turns


async def main(url: str) -> None:
    """Show what is lost without a lease, and what holding one looks like."""
    async with llmspell_dist.connect(url, namespace="example-leases") as spell:
        lost = WORKERS * ROUNDS - await without_a_lease(spell)
        print(f"without a lease: {lost} of {WORKERS * ROUNDS} updates are lost")
        assert lost > 0

        count, turns = await with_a_lease(spell)
        print(f"with a lease: {count} of {WORKERS * ROUNDS}, turns of {sorted(set(turns))}")
        assert count == WORKERS * ROUNDS
        assert all(turns.count(number) == ROUNDS for number in range(WORKERS))

        # Who does not want to wait tries once, and hears who has it.
        async with spell.leases.acquire(JOB, label="nightly job"):
            try:
                await spell.leases.acquire(JOB, wait=0, owner="somebody else")
            except LeaseUnavailableError as busy:
                print(f"busy: {busy}")
                holder = busy.holders[0]
            else:
                raise AssertionError("two hold it at once")
        assert holder.label == "nightly job"

        # As a decorator: each call holds the lease of the scope that its argument names.
        @spell.leases.holding(step, pass_as="held")  # noqa: S106 - no password
        async def write(section: str, held: llmspell_dist.Lease | None = None) -> int:
            assert held is not None
            await held.state.set(held.scope, "text", f"about {section}")
            return held.token

        first, second = await write("costs"), await write("costs")
        print(f"tokens only grow: {first} < {second}")
        assert first < second

        await spell.state.clear(step("costs"))
        await spell.state.clear(JOB)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://exclusive"))
