"""After a fork the child drops the connections that it inherited, without a word to the server."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket

__all__ = ["child_safe_lock", "close_silently", "keep_forever", "on_fork"]


class _Forkable(Protocol):
    def forget(self) -> None:
        """Drop everything inherited and start from nothing."""


_live: weakref.WeakSet[Any] = weakref.WeakSet()
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_graveyard: list[Any] = []


def on_fork(holder: _Forkable) -> None:
    """Call `holder.forget()` in every forked child."""
    _live.add(holder)


def child_safe_lock() -> threading.RLock:
    """Return a re-entrant lock that a forked child finds open, whoever held it in the parent."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def keep_forever(*inherited: object) -> None:
    """Never finalise these: that could take the parent's socket out of the shared epoll set."""
    _graveyard.append(inherited)


def close_silently(sock: socket.socket) -> None:
    """Close just this process's descriptor; a shutdown would end the parent's connection."""
    if sock.fileno() >= 0:
        os.close(sock.detach())


def _forget_all() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # noqa: SLF001 - as the standard library does with its own
    for holder in list(_live):
        holder.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
