"""`redis.asyncio.lock.Lock` for coroutines, over our leases."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from llmspell_dist.compat.async_clients import async_leases_of
from llmspell_dist.compat.base import LockBase, label_of
from llmspell_dist.compat.holds import Hold, TaskHolds
from llmspell_dist.compat.names import Name
from llmspell_dist.errors import LeaseNotHeldError, LeaseUnavailableError
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.manager import Leases
from llmspell_dist.leases.model import LeaseHolder
from llmspell_dist.leases.steps import not_held
from llmspell_dist.redis.lock_errors import LockError, redis_errors

__all__ = ["AsyncLock"]


class AsyncLock(LockBase[Lease]):
    """A lock as redis-py's for asyncio, with a fence and waiters in order; see `compat.Lock`.

    `redis`: an open client of `llmspell_dist.connect`, or a client of redis-py. Everything else is
    as for `llmspell_dist.compat.Lock`. All tasks of the event loop see what was taken last by this
    lock object, as in redis-py; but a task that took it itself sees its own hold, so that it cannot
    give back what another has taken since. `thread_local` changes nothing: a client belongs to one
    event loop, and so to one thread.

    While a lock without a timeout is held the event loop must not be blocked for ten seconds: it
    could not be renewed.
    """

    def __init__(  # noqa: PLR0917 - redis-py's signature
        self,
        redis: Any,
        name: Name,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
    ) -> None:
        super().__init__(
            redis,
            name,
            timeout,
            sleep,
            blocking,
            blocking_timeout,
            thread_local,
            raise_on_release_error,
        )
        self.local = TaskHolds()
        self._leases = async_leases_of(redis)

    # --- taking

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: Name | None = None,
    ) -> bool:
        """Take the lock; whether it was taken.

        `blocking` and `blocking_timeout` (seconds) go before those of the constructor. `token` is
        what ``local.token`` is then, with which another process can take over the lock; by default
        a new one. The lock is not re-entrant: who holds it waits for itself.
        """
        try:
            await self._take(blocking, blocking_timeout, token)
        except LeaseUnavailableError:
            return False
        return True

    async def _take(
        self, blocking: bool | None, blocking_timeout: float | None, token: Name | None
    ) -> None:
        given = self._token(token)
        label = _label()
        wanted = self._want(blocking, blocking_timeout, given, label)
        with redis_errors:
            lease = await (await self._leases()).acquire(self.scope, **wanted)
        self.local.hold = Hold(given, lease)

    async def __aenter__(self) -> Self:
        try:
            await self._take(None, None, None)
        except LeaseUnavailableError as busy:
            raise self._unavailable(busy) from busy
        return self

    # --- giving back

    async def release(self) -> None:
        """Give the lock back; the next in line has it at once.

        Raises `LockError` if it is not held here, and `LockNotOwnedError` if it is not held any
        more. If the server could not be reached it can be released again. A caller that is
        cancelled here has released it all the same, and may release it again.
        """
        hold = self._held("release")
        try:
            with redis_errors:
                await self._give_back(hold)
        except LeaseNotHeldError as gone:
            hold.over = True
            raise self._not_owned("release", gone) from gone
        hold.over = True

    async def _give_back(self, hold: Hold[Lease]) -> None:
        leases, lease = await self._leases(), hold.lease
        if lease is None:
            holder = self._sure_holder(await leases.show(self.scope, waiters=0), hold, "release it")
            await leases.release(self.scope, owner=holder.owner, token=holder.token)
        elif not lease.grant.ended:
            await lease.release()
        else:
            # Near its end, or tried before: the server decides, and knows a release by its nonce.
            claim = lease.grant.claim
            reply = await leases.execute(leases.steps.release_call(claim, lease.token))
            if reply[0] == 0:
                raise not_held(claim, "release it", reply, lease.token)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except LockError as lost:
            self._release_failed(lost)

    # --- keeping

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Add seconds to the time that the lock has left, or with `replace_ttl` to none; True.

        Raises `LockError` if it is not held here or has no timeout, `LockNotOwnedError` if it is
        not held any more, and `InvalidTTLError` if less than 50 ms or more than a day would be
        left.
        """
        await self._renew("extend", "additional_time", additional_time, add=not replace_ttl)
        return True

    async def reacquire(self) -> Literal[True]:
        """Give the lock its whole timeout again, from now; True. Errors are those of `extend`."""
        await self._renew("reacquire", "timeout", None, add=False)
        return True

    async def _renew(
        self, operation: str, argument: str, time_s: float | None, *, add: bool
    ) -> None:
        hold = self._held(operation)
        timeout = self._needs_timeout(operation)
        wanted_s = timeout if time_s is None else time_s
        try:
            with redis_errors:
                await self._hold_for(hold, argument, wanted_s, add=add)
        except LeaseNotHeldError as gone:
            raise self._not_owned(operation, gone) from gone

    async def _hold_for(
        self, hold: Hold[Lease], argument: str, time_s: float, *, add: bool
    ) -> None:
        leases, lease, left = await self._leases(), hold.lease, 0.0
        holder: LeaseHolder | None = None
        if add or lease is None:
            # Asked and not reckoned: somebody else who knows the token may have changed it.
            info = await leases.show(self.scope, waiters=0)
            holder = self._sure_holder(info, hold, "renew it")
            left = (holder.expires - info.time).total_seconds() if add else 0.0
        ttl = self._new_time(argument, time_s, left)
        if lease is None:
            assert holder is not None  # noqa: S101 - asked above
            await leases.renew(self.scope, owner=holder.owner, token=holder.token, ttl=ttl)
        elif lease.grant.ended:
            hold.lease = await self._again(leases, lease, ttl)
        else:
            await lease.renew(ttl)

    async def _again(self, leases: Leases, lease: Lease, ttl: float) -> Lease:
        """Keep a lease that counts as lost here already, if it has not ended on the server."""
        await leases.renew(self.scope, owner=lease.owner, token=lease.token, ttl=ttl)
        # Held once more by the same owner, which gives a new handle with the same token.
        try:
            again = await leases.acquire(
                self.scope,
                ttl=ttl,
                wait=0,
                owner=lease.owner,
                reentrant=True,
                label=_label(),
                on_lost="event",
                renew=False,
            )
        except LeaseUnavailableError as busy:
            raise self._taken_since(busy) from busy
        if again.token != lease.token:
            # Broken in between: what was granted now is another lock.
            with suppress(LeaseNotHeldError):
                await again.release()
            lease.must_be_open("renew it")
        await leases.execute(leases.steps.release_call(lease.grant.claim, lease.token))
        return again

    # --- looking

    async def locked(self) -> bool:
        """Return whether anybody holds the lock, by the server's clock."""
        with redis_errors:
            leases = await self._leases()
            return (await leases.show(self.scope, waiters=0)).held

    async def owned(self) -> bool:
        """Return whether the lock is held by this lock object, by the server's clock."""
        hold = self.local.hold
        if hold is None or hold.inherited:
            return False
        with redis_errors:
            leases = await self._leases()
            return self._holder(await leases.show(self.scope, waiters=0), hold) is not None


def _label() -> str | None:
    task = asyncio.current_task()
    return None if task is None else label_of(task.get_name())
