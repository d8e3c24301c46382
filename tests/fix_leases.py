"""What the tests of leases share: a look at Redis, waiters in a known order, time that is over.

Where time itself is not the subject a test does not wait for it: `LeaseStore.expire` writes an
expiry that has passed into the holders' records, as the server would see it after the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from time import monotonic
from typing import Any

import pytest
from fix_servers import behind
from fix_state import Store, until

from llmspell_dist import blocking, connect
from llmspell_dist.blocking.leases import Leases as BlockingLeases
from llmspell_dist.client import Spell
from llmspell_dist.config import Options
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.keeper import Grant, Keeper
from llmspell_dist.scope import Scope

S = "agent:alice"
EXPIRES = slice(8, 14)
"""Where the expiry lies in a holder's record."""


class LeaseStore:
    """The leases of one namespace, as they lie in Redis."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.raw = store.raw
        self.space = store.space

    def key(self, scope: str, name: str = "main") -> bytes:
        return self.space.lease(Scope.parse(scope), name)

    def queue(self, scope: str, name: str = "main") -> bytes:
        return self.space.lease_queue(Scope.parse(scope), name)

    def readers(self, scope: str, name: str = "main") -> bytes:
        return self.space.lease_readers(Scope.parse(scope), name)

    @property
    def registry(self) -> bytes:
        return self.space.leases("0")

    @property
    def waits(self) -> bytes:
        return self.space.waits("0")

    def waiting(self, scope: str = S, name: str = "main") -> int:
        """Return how many are in line."""
        return int(self.raw("ZCARD", self.queue(scope, name)))

    def holder(self, scope: str = S, name: str = "main") -> bytes | None:
        """Return the record of who holds it exclusively."""
        record: bytes | None = self.raw("HGET", self.key(scope, name), "x")
        return record or None

    def expires_ms(self, scope: str = S, name: str = "main") -> int:
        """Return when the time of the first of those who hold it ends; 0 if nobody does."""
        record = self.holder(scope, name)
        records = [record] if record else self.raw("HVALS", self.readers(scope, name))
        return min((int.from_bytes(one[EXPIRES], "big") for one in records), default=0)

    def expire(self, scope: str = S, name: str = "main") -> None:
        """Let the time of everybody who holds a lease be over."""
        self.put_expiry(self.raw.now_ms() - 1, scope, name)

    def put_expiry(self, at_ms: int, scope: str = S, name: str = "main") -> None:
        """Let the time of everybody who holds a lease end then."""

        def moved(record: bytes) -> bytes:
            return record[: EXPIRES.start] + at_ms.to_bytes(6, "big") + record[EXPIRES.stop :]

        record = self.holder(scope, name)
        if record is not None:
            self.raw("HSET", self.key(scope, name), "x", moved(record))
        flat = self.raw("HGETALL", self.readers(scope, name))
        for owner, reader in zip(flat[::2], flat[1::2], strict=True):
            self.raw("HSET", self.readers(scope, name), owner, moved(reader))

    def age(self, days: int, scope: str = S, name: str = "main") -> None:
        """Let everything about a lease have happened so long ago."""
        key, then_ms = self.key(scope, name), self.raw.now_ms() - days * 86_400_000
        self.put_expiry(then_ms, scope, name)
        flat = self.raw("HGETALL", key)
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            if field.startswith(b"h:"):
                self.raw("HSET", key, field, value[:1] + then_ms.to_bytes(6, "big") + value[7:])
        self.raw("ZADD", self.registry, then_ms, key)

    def left_over(self, scope: str = S, name: str = "main") -> list[Any]:
        """Return what is there of holders and waiters; empty when nobody holds it or waits."""
        found: list[Any] = [self.holder(scope, name)] if self.holder(scope, name) else []
        found += self.raw("HGETALL", self.readers(scope, name))
        found += self.raw("ZRANGE", self.queue(scope, name), 0, -1)
        found += [
            field
            for field in self.raw("HKEYS", self.key(scope, name))
            if field == b"b" or field.startswith(b"w:")
        ]
        return [*found, *self.raw("HGETALL", self.waits)]


def at_rest(*spells: Spell) -> bool:
    """Whether clients have forgotten every lease that they held or waited for."""
    for spell in (*spells, *[behind[one] for one in spells if one in behind]):
        leases = spell.leases
        if leases._grants or leases._leaving or leases.standing()[1]:
            return False
    return True


def hasten(*spells: Spell | blocking.Spell) -> None:
    """Let clients renew what they hold now, and not first at a third of its time."""
    for spell in spells:
        if isinstance(spell, blocking.Spell):
            leases = spell.leases
            leases._backstage.call(partial(_hasten, leases._keeper, leases._grants))
        else:
            _hasten(spell.leases.keeper, spell.leases._grants)


def _hasten(keeper: Keeper, grants: dict[bytes, Grant]) -> None:
    for grant in tuple(grants.values()):
        keeper._look(grant, monotonic())


async def renewals(
    store: LeaseStore, spell: Spell | blocking.Spell, count: int = 3, *, scope: str = S
) -> None:
    """Let a client renew what it holds so often, and see that it would have done so by itself.

    Each time the server prolongs it, and the next time is due within a third of its time.
    """
    leases = spell.leases
    keeper = leases._keeper if isinstance(leases, BlockingLeases) else leases.keeper

    def due() -> bool:
        looks = [(at, id(grant)) for at, _, grant in tuple(keeper._heap)]
        return all(
            keeper._due <= grant.next_look <= grant.sent_at + grant.ttl_s / 3
            and (grant.next_look, id(grant)) in looks
            for grant in tuple(leases._grants.values())
            if not grant.ended
        )

    for _ in range(count):
        before = store.expires_ms(scope)
        assert before

        def prolonged() -> bool:
            if store.expires_ms(scope) > before:  # noqa: B023
                return True
            hasten(spell)  # again and again: one within the same millisecond prolongs nothing
            return False

        await until(prolonged, within_s=10, every_s=0.01)
        await until(due, within_s=10)


async def nothing_left(store: LeaseStore, *spells: Spell, scope: str = S) -> None:
    """Wait until clients have sent their last, and check that nothing is left of them."""
    await until(lambda: at_rest(*spells))
    if any(spell in behind for spell in spells):  # a sidecar hears a little later that they went
        await until(lambda: store.left_over(scope) == [])
    assert store.left_over(scope) == []


async def in_line(
    store: LeaseStore,
    waiter: Awaitable[Any],
    *,
    scope: str = S,
    name: str = "main",
) -> asyncio.Task[Any]:
    """Start a task and return when it is the last one in line."""

    async def run() -> Any:
        return await waiter

    before = store.waiting(scope, name)
    task = asyncio.create_task(run())
    await until(lambda: task.done() or store.waiting(scope, name) > before)
    assert not task.done(), f"it does not wait: {task}"
    return task


async def granted(task: asyncio.Task[Lease]) -> Lease:
    """Return the lease that a waiting task gets."""
    return await asyncio.wait_for(task, 5)


async def outcome(task: asyncio.Task[Any]) -> Any:
    """Return what a task gave, or the exception that ended it."""
    await asyncio.wait([task], timeout=5)
    assert task.done(), "it has not ended"
    return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


Clients = Callable[..., Awaitable[list[Spell]]]


@pytest.fixture
def lease_store(store: Store) -> LeaseStore:
    """The leases of the test's namespace, as they lie in Redis."""
    return LeaseStore(store)


@pytest.fixture
async def clients(url: str, namespace: str) -> AsyncIterator[Clients]:
    """A factory of open clients in the test's namespace; `to` is another URL than the server's."""
    async with AsyncExitStack() as stack:

        async def start(count: int, *, to: str | None = None, **options: Any) -> list[Spell]:
            chosen = Options(namespace=namespace, housekeeping=False, **options)
            return [
                await stack.enter_async_context(connect(to or url, options=chosen))
                for _ in range(count)
            ]

        yield start
