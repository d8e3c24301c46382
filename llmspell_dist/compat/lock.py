"""`redis.lock.Lock` for threads, over our leases."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from llmspell_dist.blocking.leases import Lease, Leases
from llmspell_dist.compat.base import LockBase, label_of
from llmspell_dist.compat.clients import leases_of
from llmspell_dist.compat.holds import Hold, ThreadHolds, ThreadLocalHolds
from llmspell_dist.compat.names import Name
from llmspell_dist.errors import LeaseNotHeldError, LeaseUnavailableError
from llmspell_dist.leases.model import LeaseHolder
from llmspell_dist.leases.steps import not_held
from llmspell_dist.redis.lock_errors import LockError, redis_errors

__all__ = ["Lock"]


class Lock(LockBase[Lease]):
    """A lock as redis-py's, with a fence, waiters in order and nothing left of a dead holder.

    `redis`: an open client of `llmspell_dist.blocking`, or a client of redis-py, whose server is
    then used over connections of our own, made once for its pool at the first use (see
    `llmspell_dist.compat`). `name`: any text. `timeout`: seconds from 0.05 to 86,400 after which
    the lock is free again, unless `extend` or `reacquire` say otherwise; None (or 0): it is held
    until it is released or the process ends, and then at most ten seconds longer. redis-py's stays
    for ever when its holder dies.

    `sleep` is accepted and not used: who waits is woken, in the order of coming. `blocking`,
    `blocking_timeout`, `thread_local` and `raise_on_release_error` are as in redis-py, but all of
    the blocking timeout is waited. Nothing is sent before the first call.

    Errors: `LockError` and `LockNotOwnedError`, which are redis-py's too; `InvalidTTLError` for a
    time that cannot be; `LockStoreError` or `LockTimeoutError`, which are redis-py's
    ``ConnectionError`` and ``TimeoutError`` too, when the server is out of reach.

    This lock and redis-py's do not see each other: change all users of a name at one time.
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
        self.local = ThreadLocalHolds() if self.thread_local else ThreadHolds()
        self._leases = leases_of(redis)

    # --- taking

    def acquire(
        self,
        sleep: float | None = None,  # noqa: ARG002 - accepted and not used
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
            self._take(blocking, blocking_timeout, token)
        except LeaseUnavailableError:
            return False
        return True

    def _take(
        self, blocking: bool | None, blocking_timeout: float | None, token: Name | None
    ) -> None:
        given = self._token(token)
        label = label_of(threading.current_thread().name)
        wanted = self._want(blocking, blocking_timeout, given, label)
        with redis_errors:
            lease = self._leases().acquire(self.scope, **wanted)
        self.local.hold = Hold(given, lease)

    def __enter__(self) -> Self:
        try:
            self._take(None, None, None)
        except LeaseUnavailableError as busy:
            raise self._unavailable(busy) from busy
        return self

    # --- giving back

    def release(self) -> None:
        """Give the lock back; the next in line has it at once.

        Raises `LockError` if it is not held here, and `LockNotOwnedError` if it is not held any
        more. If the server could not be reached it can be released again.
        """
        hold = self._held("release")
        try:
            with redis_errors:
                self._give_back(hold)
        except LeaseNotHeldError as gone:
            hold.over = True
            raise self._not_owned("release", gone) from gone
        hold.over = True

    def _give_back(self, hold: Hold[Lease]) -> None:
        leases, lease = self._leases(), hold.lease
        if lease is None:
            holder = self._sure_holder(leases.show(self.scope, waiters=0), hold, "release it")
            leases.release(self.scope, owner=holder.owner, token=holder.token)
        elif not lease.grant.ended:
            lease.release()
        else:
            # Near its end, or tried before: the server decides, and knows a release by its nonce.
            claim = lease.grant.claim
            reply = leases.execute(leases.steps.release_call(claim, lease.token))
            if reply[0] == 0:
                raise not_held(claim, "release it", reply, lease.token)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except LockError as lost:
            self._release_failed(lost)

    # --- keeping

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Add seconds to the time that the lock has left, or with `replace_ttl` to none; True.

        Raises `LockError` if it is not held here or has no timeout, `LockNotOwnedError` if it is
        not held any more, and `InvalidTTLError` if less than 50 ms or more than a day would be
        left.
        """
        self._renew("extend", "additional_time", additional_time, add=not replace_ttl)
        return True

    def reacquire(self) -> Literal[True]:
        """Give the lock its whole timeout again, from now; True. Errors are those of `extend`."""
        self._renew("reacquire", "timeout", None, add=False)
        return True

    def _renew(self, operation: str, argument: str, time_s: float | None, *, add: bool) -> None:
        hold = self._held(operation)
        timeout = self._needs_timeout(operation)
        wanted_s = timeout if time_s is None else time_s
        try:
            with redis_errors:
                self._hold_for(hold, argument, wanted_s, add=add)
        except LeaseNotHeldError as gone:
            raise self._not_owned(operation, gone) from gone

    def _hold_for(self, hold: Hold[Lease], argument: str, time_s: float, *, add: bool) -> None:
        leases, lease, left = self._leases(), hold.lease, 0.0
        holder: LeaseHolder | None = None
        if add or lease is None:
            # Asked and not reckoned: somebody else who knows the token may have changed it.
            info = leases.show(self.scope, waiters=0)
            holder = self._sure_holder(info, hold, "renew it")
            left = (holder.expires - info.time).total_seconds() if add else 0.0
        ttl = self._new_time(argument, time_s, left)
        if lease is None:
            assert holder is not None  # noqa: S101 - asked above
            leases.renew(self.scope, owner=holder.owner, token=holder.token, ttl=ttl)
        elif lease.grant.ended:
            hold.lease = self._again(leases, lease, ttl)
        else:
            lease.renew(ttl)

    def _again(self, leases: Leases, lease: Lease, ttl: float) -> Lease:
        """Keep a lease that counts as lost here already, if it has not ended on the server."""
        leases.renew(self.scope, owner=lease.owner, token=lease.token, ttl=ttl)
        # Held once more by the same owner, which gives a new handle with the same token.
        try:
            again = leases.acquire(
                self.scope,
                ttl=ttl,
                wait=0,
                owner=lease.owner,
                reentrant=True,
                label=label_of(threading.current_thread().name),
                on_lost="event",
                renew=False,
            )
        except LeaseUnavailableError as busy:
            raise self._taken_since(busy) from busy
        if again.token != lease.token:
            # Broken in between: what was granted now is another lock.
            with suppress(LeaseNotHeldError):
                again.release()
            lease.must_be_open("renew it")
        leases.execute(leases.steps.release_call(lease.grant.claim, lease.token))
        return again

    # --- looking

    def locked(self) -> bool:
        """Return whether anybody holds the lock, by the server's clock."""
        with redis_errors:
            return self._leases().show(self.scope, waiters=0).held

    def owned(self) -> bool:
        """Return whether the lock is held by this lock object, by the server's clock."""
        hold = self.local.hold
        if hold is None or hold.inherited:
            return False
        with redis_errors:
            return self._holder(self._leases().show(self.scope, waiters=0), hold) is not None
