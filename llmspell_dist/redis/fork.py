"""After a fork the child drops the connections that it inherited, without a word to the server."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket

__all__ = ["close_silently", "keep_forever", "on_fork"]


class _Forkable(Protocol):
    def forget(self) -> None:
        """Drop everything inherited and start from nothing."""


_live: weakref.WeakSet[Any] = weakref.WeakSet()
_graveyard: list[Any] = []


def on_fork(holder: _Forkable) -> None:
    """Call `holder.forget()` in every forked child."""
    _live.add(holder)


def keep_forever(*inherited: object) -> None:
    """Never finalise these: that could take the parent's socket out of the shared epoll set."""
    _graveyard.append(inherited)


def close_silently(sock: socket.socket) -> None:
    """Close just this process's descriptor; a shutdown would end the parent's connection."""
    if sock.fileno() >= 0:
        os.close(sock.detach())


def _forget_all() -> None:
    for holder in list(_live):
        holder.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
