"""The process at the other end of a unix socket, as the kernel knows it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, Protocol

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Peer", "SocketLike"]

_UCRED: Final = struct.Struct("=iII")


class SocketLike(Protocol):
    """A socket, or what asyncio shows of one."""

    @property
    def family(self) -> int:
        """The address family."""
        ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Return an option as bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, at the moment of connecting; nobody can claim to be another."""

    pid: int
    uid: int
    gid: int
    """The primary group only."""

    @classmethod
    def of(cls, sock: SocketLike) -> Peer:
        """Return the peer of a connected unix socket.

        Raises InvalidArgumentError for any other socket, and on a system without SO_PEERCRED.
        """
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None or sock.family != getattr(socket, "AF_UNIX", None):
            rule = "must be a connected unix socket, on a system with SO_PEERCRED"
            raise InvalidArgumentError("sock", sock, rule)
        return cls(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _UCRED.size)))
