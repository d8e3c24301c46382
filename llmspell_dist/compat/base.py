"""What both locks share: arguments, terms, and the errors that redis-py raises; no I/O."""

from __future__ import annotations

import logging
from math import isfinite
from typing import Any, Final, Generic, TypedDict, TypeVar

from llmspell_dist.compat.holds import Hold, Holds
from llmspell_dist.compat.names import Name, as_bytes, is_owner, lock_scope, make_owner, new_token
from llmspell_dist.errors import InvalidTTLError, LeaseNotHeldError, LeaseUnavailableError
from llmspell_dist.leases.held import Held
from llmspell_dist.leases.model import LeaseHolder, LeaseInfo
from llmspell_dist.leases.terms import DEFAULT_NAME, DEFAULT_TTL_S, MAX_WAIT_S
from llmspell_dist.redis.lock_errors import LockError, LockNotOwnedError

__all__ = ["LockBase", "Wanted", "label_of", "logger"]

logger = logging.getLogger("llmspell_dist.compat")

L = TypeVar("L", bound=Held[Any])
_MIN_S, _MAX_S = 0.05, 86_400.0
_MAX_LABEL_BYTES: Final = 128


class Wanted(TypedDict):
    """How `Leases.acquire` is to be called."""

    ttl: float
    wait: float | None
    owner: str
    label: str | None
    on_lost: str
    renew: bool


class LockBase(Generic[L]):
    """The parts of a lock that send nothing."""

    local: Holds
    """What is held; its ``token`` is redis-py's."""

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
        self.redis = redis
        self.name = name
        self.timeout = timeout
        self.sleep = sleep
        self.blocking = blocking
        self.blocking_timeout = blocking_timeout
        self.thread_local = bool(thread_local)
        self.raise_on_release_error = raise_on_release_error
        self.scope = lock_scope(name)
        """The scope whose lease ``main`` this lock is."""
        if timeout:
            self._check_time("timeout", timeout, timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.scope}>"

    @property
    def lease(self) -> L | None:
        """The lease that this thread or task holds by this lock, or None.

        Its ``token`` is the fencing token; every write through its ``state`` is refused when the
        lock is not held any more; ``lost`` fires when that is known. None too if the lock was taken
        over by setting ``local.token``: that process does not hold it.
        """
        hold = self.local.hold
        return None if hold is None else hold.lease

    # --- what is wanted

    def _want(
        self, blocking: bool | None, blocking_timeout: float | None, token: bytes, label: str | None
    ) -> Wanted:
        timeout = self.timeout
        if timeout:
            self._check_time("timeout", timeout, timeout)
        return Wanted(
            # Without a timeout, or with 0, it is kept up while the process lives.
            ttl=float(timeout or DEFAULT_TTL_S),
            wait=self._wait_s(blocking, blocking_timeout),
            owner=make_owner(token),
            label=label,
            # As redis-py's lock: nobody is cancelled.
            on_lost="event",
            renew=not timeout,
        )

    def _wait_s(self, blocking: bool | None, blocking_timeout: float | None) -> float | None:
        if not (self.blocking if blocking is None else blocking):
            return 0.0
        within_s = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        if within_s is None or within_s > MAX_WAIT_S:
            return None
        return max(0.0, float(within_s))

    def _token(self, token: Name | None) -> bytes:
        return new_token() if token is None else as_bytes("token", token)

    def _check_time(self, argument: str, given: float, time_s: float) -> None:
        """Raise `InvalidTTLError` if a lock cannot be held for so long."""
        if not (isfinite(time_s) and _MIN_S <= time_s <= _MAX_S):
            held = "the lock would be held for" if given != time_s else "a lock is held for"
            rule = f"{held} 0.05 (50 ms) to 86,400 s (a day), or without a timeout until release()"
            raise InvalidTTLError(argument, given, f"must fit: {rule}")

    # --- what is held

    def _held(self, operation: str) -> Hold[L]:
        """Return what the caller holds; `LockError` if it holds nothing."""
        hold = self.local.hold
        if hold is None:
            raise self._error(operation, "it is not held here, or was released already")
        if hold.inherited:
            why = "the process that this one was forked from holds it; set local.token to take over"
            raise LockNotOwnedError(self.scope.text, self.name, operation, why)
        return hold

    def _needs_timeout(self, operation: str) -> float:
        if not self.timeout:
            # 0 too: redis-py's reacquire() then deletes the lock and says that all is well.
            raise self._error(operation, "it has no timeout, and is held until it is released")
        return self.timeout

    def _new_time(self, argument: str, given: float, left: float) -> float:
        """Return for how long a lock is to be held from now."""
        self._check_time(argument, given, given + left)
        return given + left

    def _holder(self, info: LeaseInfo, hold: Hold[L]) -> LeaseHolder | None:
        """Return the holder that a hold is, if it still is one."""
        for holder in info.holders:
            if not is_owner(holder.owner, hold.token):
                continue
            if hold.lease is None or hold.lease.token == holder.token:
                return holder
        return None

    def _sure_holder(self, info: LeaseInfo, hold: Hold[L], operation: str) -> LeaseHolder:
        holder = self._holder(info, hold)
        if holder is None:
            current = info.holders[0] if info.holders else None
            why = "nobody holds it with this token"
            raise LeaseNotHeldError(self.scope.text, DEFAULT_NAME, operation, why, current=current)
        return holder

    # --- errors

    def _error(self, operation: str, reason: str) -> LockError:
        return LockError(self.scope.text, self.name, operation, reason)

    def _unavailable(self, busy: LeaseUnavailableError) -> LockError:
        return self._error("acquire", busy.reason)

    def _not_owned(self, operation: str, gone: LeaseNotHeldError) -> LockNotOwnedError:
        return LockNotOwnedError(
            self.scope.text, self.name, operation, gone.why, current=gone.current
        )

    def _taken_since(self, busy: LeaseUnavailableError) -> LeaseNotHeldError:
        why, current = "it was granted to another since", next(iter(busy.holders), None)
        return LeaseNotHeldError(self.scope.text, DEFAULT_NAME, "renew it", why, current=current)

    def _release_failed(self, error: LockError) -> None:
        """Say at the end of ``with`` that the lock was lost, or raise it."""
        if self.raise_on_release_error:
            raise error
        logger.warning("%s", error)


def label_of(name: str) -> str | None:
    """Return a thread's or task's name as people are shown it, if it can be."""
    fits = name.isprintable() and 0 < len(name.encode("utf-8", "replace")) <= _MAX_LABEL_BYTES
    return name if fits else None
