"""The errors of `llmspell_dist.compat`: caught as redis-py's and as ours, with our facts.

::

    LockError                 (also LeaseError and redis.exceptions.LockError, so ValueError too)
     └ LockNotOwnedError      (also redis.exceptions.LockNotOwnedError)
    LockStoreError            (also StoreUnavailableError and redis.exceptions.ConnectionError)
    LockTimeoutError          (also StoreTimeoutError and redis.exceptions.TimeoutError)
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import redis.exceptions

from llmspell_dist.errors import LeaseError, StoreTimeoutError, StoreUnavailableError, shorten

__all__ = [
    "LockError",
    "LockNotOwnedError",
    "LockStoreError",
    "LockTimeoutError",
    "redis_errors",
]

# What redis-py's constructors put into an instance beside our facts.
_THEIRS: Final = frozenset({"error_type", "message", "status_code"})


class _Facts:
    """Shows an error as ours are shown."""

    @property
    def facts(self) -> dict[str, Any]:
        """The attributes that describe the error, by name, without the private ones."""
        shown = self.__dict__.items()
        return {name: fact for name, fact in shown if name[0] != "_" and name not in _THEIRS}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class LockError(_Facts, LeaseError, redis.exceptions.LockError):
    """A lock could not be taken or given back."""

    code = "LOCK"

    def __init__(self, scope: str, lock_name: object, operation: str, reason: str) -> None:
        super().__init__(scope, "main", reason)
        self.lock_name = lock_name  # type: ignore[assignment]
        """The name as it was given."""
        self.operation = operation
        said = f"cannot {operation} the lock {shorten(lock_name)}: {reason}"
        self.args = (said,)
        self.message = said


class LockNotOwnedError(LockError, redis.exceptions.LockNotOwnedError):
    """The lock is not this holder's any more; nothing was changed."""

    code = "LOCK_NOT_OWNED"

    def __init__(
        self, scope: str, lock_name: object, operation: str, reason: str, *, current: Any = None
    ) -> None:
        self.current = current
        """Who holds it now (`LeaseHolder`), if anybody."""
        super().__init__(scope, lock_name, operation, reason)


class LockStoreError(_Facts, StoreUnavailableError, redis.exceptions.ConnectionError):
    """The server of a lock could not be reached, or refused."""


class LockTimeoutError(_Facts, StoreTimeoutError, redis.exceptions.TimeoutError):
    """The server of a lock did not answer in time."""


class _RedisErrors:
    """Raises what is raised for a server out of reach as something that redis-py raises too.

    The facts are the same; the error itself is its cause.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, StoreUnavailableError):
            return
        both: StoreUnavailableError = (
            LockTimeoutError(error.server)
            if isinstance(error, StoreTimeoutError)
            else LockStoreError(error.server)
        )
        both.__dict__.update(error.__dict__)
        both.args = error.args
        raise both from error


redis_errors: Final = _RedisErrors()
"""Entered around everything that a lock sends."""
