"""What a lock object holds, by thread or task: ``lock.local``."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from llmspell_dist.compat.names import Name, as_bytes

__all__ = ["Hold", "Holds", "TaskHolds", "ThreadHolds", "ThreadLocalHolds"]

L = TypeVar("L")


class Hold(Generic[L]):
    """One time that a lock was taken."""

    __slots__ = ("lease", "over", "pid", "token")

    def __init__(self, token: bytes, lease: L | None) -> None:
        self.token = token
        """As redis-py's ``lock.local.token``."""
        self.lease: L | None = lease
        """None if only the token is known: it was taken elsewhere."""
        self.over = False
        """Given back, or known to be lost."""
        self.pid = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether it was taken by the process that this one was forked from."""
        return self.pid != os.getpid()


class _HasToken:
    hold: Hold[Any] | None

    @property
    def token(self) -> bytes | None:
        """The token of what is held here, or None.

        It can be set to take over what was acquired elsewhere with that token: in another thread,
        lock object or process.
        """
        return None if self.hold is None else self.hold.token

    @token.setter
    def token(self, token: Name | None) -> None:
        self.hold = None if token is None else Hold(as_bytes("token", token), None)


class ThreadLocalHolds(threading.local, _HasToken):
    """Each thread sees what it holds itself, and a thread that holds nothing sees nothing.

    In redis-py the attribute is missing in every thread but the one that made the lock.
    """

    def __init__(self) -> None:
        self._hold: Hold[Any] | None = None

    @property
    def hold(self) -> Hold[Any] | None:
        """What this thread holds."""
        return None if self._hold is None or self._hold.over else self._hold

    @hold.setter
    def hold(self, hold: Hold[Any] | None) -> None:
        self._hold = hold


class _Shared(_HasToken):
    """Everybody sees what was taken last, but whoever took something before that sees its own.

    So one who is late cannot give back what another has taken since with the same lock object.
    """

    def __init__(self) -> None:
        self._latest: Hold[Any] | None = None

    @property
    def hold(self) -> Hold[Any] | None:
        """What the caller holds."""
        for hold in (self._get(), self._latest):
            if hold is not None and not hold.over:
                return hold
        return None

    @hold.setter
    def hold(self, hold: Hold[Any] | None) -> None:
        self._put(hold)
        self._latest = hold

    def _get(self) -> Hold[Any] | None:
        raise NotImplementedError

    def _put(self, hold: Hold[Any] | None) -> None:
        raise NotImplementedError


class ThreadHolds(_Shared):
    """What is held, seen by all threads (``thread_local=False``)."""

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.local()

    def _get(self) -> Hold[Any] | None:
        own: Hold[Any] | None = getattr(self._own, "hold", None)
        return own

    def _put(self, hold: Hold[Any] | None) -> None:
        self._own.hold = hold


class TaskHolds(_Shared):
    """What is held, seen by all tasks of an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._own: WeakKeyDictionary[asyncio.Task[Any], Hold[Any]] = WeakKeyDictionary()

    def _get(self) -> Hold[Any] | None:
        task = _task()
        return None if task is None else self._own.get(task)

    def _put(self, hold: Hold[Any] | None) -> None:
        task = _task()
        if task is None:
            return
        if hold is None:
            self._own.pop(task, None)
        else:
            self._own[task] = hold


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # outside of an event loop


Holds = ThreadLocalHolds | ThreadHolds | TaskHolds
