"""The wire format: requests to bytes, bytes to replies. hiredis does the work."""

from __future__ import annotations

from typing import Any, Final, cast

import hiredis
from hiredis import ProtocolError, PushNotification

__all__ = [
    "NOTHING",
    "ErrorReply",
    "ProtocolError",
    "PushNotification",
    "make_reader",
    "pack",
]

Argument = str | bytes | int | float


class _Nothing:
    """The type of `NOTHING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()
"""What a reader returns while no whole reply is there. By default hiredis returns False, which is
also how it reads RESP3's `#f`."""


class ErrorReply(Exception):  # noqa: N818 - it is a reply that the server sent, not a failure of ours
    """The server's error reply, as text that begins with a code."""

    @property
    def text(self) -> str:
        """The whole line."""
        return str(self.args[0]) if self.args else ""


def make_reader() -> hiredis.Reader:
    """Return a reader that gives bytes, `ErrorReply` instances and `NOTHING`."""
    return hiredis.Reader(replyError=ErrorReply, notEnoughData=NOTHING)


def pack(*arguments: Argument) -> bytes:
    """Return one request."""
    return cast("bytes", hiredis.pack_command(cast("Any", arguments)))
