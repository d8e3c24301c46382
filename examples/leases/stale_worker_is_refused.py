"""A worker stalls, another takes over, the first wakes up: the store itself refuses its writes.

``python stale_worker_is_refused.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import LeaseLostError, StaleFencingTokenError

THREAD = "session:example-thread"
TTL_S = 0.2


async def without_a_fence(spell: llmspell_dist.Spell) -> str:
    """Let two have "the lock", one after the other; the late one overwrites all the same."""
    state = spell.state
    assert await state.set_if_absent(THREAD, "lock", "worker 1", ttl=TTL_S) is not None
    # Worker 1 stalls for longer than its lock lasts …
    await asyncio.sleep(TTL_S * 1.5)
    assert await state.set_if_absent(THREAD, "lock", "worker 2", ttl=30) is not None
    await state.set(THREAD, "answer", "of worker 2")
    # … and goes on, as if nothing had happened.
    await state.set(THREAD, "answer", "of worker 1")
    answer: str = await state.get(THREAD, "answer")
    await state.clear(THREAD)
    return answer


async def with_a_fence(spell: llmspell_dist.Spell) -> str:
    """Do the same with leases; the stall is that the first one does not renew its lease."""
    first = await spell.leases.acquire(THREAD, ttl=TTL_S, renew=False, on_lost="event", owner="1")
    await first.state.set(THREAD, "answer", "not yet")
    # Waits until the time of the first one is over; that is for the server's clock to say.
    async with spell.leases.acquire(THREAD, owner="2", label="worker 2") as second:
        assert second.token > first.token
        await second.state.set(THREAD, "answer", "of worker 2")
        before = await spell.state.stat(THREAD)

        for write in (
            first.state.set(THREAD, "answer", "of worker 1"),
            first.state.append(THREAD, "messages", "late"),
            first.state.clear(THREAD),
        ):
            try:
                await write
            except StaleFencingTokenError as refused:
                print(f"refused: {refused}")
                tokens = refused.given, refused.current
            else:
                raise AssertionError("a stale write went through")
            assert tokens == (first.token, second.token)

        # Nothing at all was changed: the scope's last revision is that of the second worker.
        assert await spell.state.stat(THREAD) == before
    answer: str = await spell.state.get(THREAD, "answer")
    await spell.state.clear(THREAD)
    return answer


async def the_holder_is_told(spell: llmspell_dist.Spell) -> None:
    """Cancel a holder that loses its lease where it waits, and tell it why."""
    working = asyncio.Event()

    async def work() -> None:
        async with spell.leases.acquire(THREAD, ttl=TTL_S * 5, label="worker 1"):
            working.set()
            await asyncio.Event().wait()

    worker = asyncio.create_task(work())
    await working.wait()
    await spell.leases.break_lease(THREAD, reason="it hangs")
    try:
        await worker
    except LeaseLostError as lost:
        print(f"told: {lost}")
    else:
        raise AssertionError("nobody was told")


async def main(url: str) -> None:
    """Show the damage without a fence, and that there is none with one."""
    async with llmspell_dist.connect(url, namespace="example-leases") as spell:
        await spell.state.clear(THREAD)
        answer = await without_a_fence(spell)
        print(f"without a fence the answer in the end is that {answer}")
        assert answer == "of worker 1"
        answer = await with_a_fence(spell)
        print(f"with one it is that {answer}")
        assert answer == "of worker 2"
        await the_holder_is_told(spell)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://stale"))
