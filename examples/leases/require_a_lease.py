"""A scope that can be written only under its lease, whoever writes and whatever they know.

``python require_a_lease.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist import LeaseRequiredError

LEDGER = "custom:example-ledger"
ACCOUNT = "user:example-account"


async def somebody_else(url: str) -> None:
    """Write as a process that has never heard of the demand: refused, and nothing is changed."""
    async with llmspell_dist.connect(url, namespace="example-leases") as other:
        state = other.state
        for write in (
            state.set(LEDGER, "balance", 1_000_000),
            state.increment(LEDGER, "balance", 1),
            state.delete(LEDGER, "balance"),
            state.clear(LEDGER),
        ):
            try:
                await write
            except LeaseRequiredError as refused:
                print(f"{refused.code}: {refused.scope} needs its lease {refused.name}")
            else:
                raise AssertionError("a write without the lease went through")
        assert await state.get(LEDGER, "balance") == 100  # reading is free


async def main(url: str) -> None:
    """Demand the lease, be refused, write under it, and lift the demand again."""
    async with llmspell_dist.connect(url, namespace="example-leases") as spell:
        await spell.state.set(LEDGER, "balance", 100)
        await spell.state.set(ACCOUNT, "balance", 0)
        await spell.leases.require(LEDGER)
        await spell.leases.require(ACCOUNT)

        await somebody_else(url)

        # A commit over both scopes carries both leases, or nothing of it happens.
        async with spell.leases.acquire_all([LEDGER, ACCOUNT], wait=10) as group:
            async with group.state.transaction() as tx:
                tx.increment(LEDGER, "balance", -30)
                tx.increment(ACCOUNT, "balance", 30)
            for lease in group:
                # The demand ends as it began, by a commit; only who holds the lease can make it.
                await spell.leases.unrequire(lease.scope, lease=lease)
        balances = [await spell.state.get(scope, "balance") for scope in (LEDGER, ACCOUNT)]
        print(f"under both leases: {balances}")
        assert balances == [70, 30]

        await spell.state.set(LEDGER, "note", "free again")
        for scope in (LEDGER, ACCOUNT):
            await spell.state.clear(scope)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://require"))
