"""What can be asked of a driver, as I/O-free descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmspell_dist.redis.resp import pack

__all__ = ["BULK_BYTES", "Command", "ScriptCall", "ScriptSource"]

BULK_BYTES = 64 * 1024
"""Requests over this size go by the bulk lane, so that small ones never queue behind them."""


class ScriptSource(Protocol):
    """A script as the drivers need it."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def sha(self) -> bytes:
        """SHA-1 of the body, in hex."""

    @property
    def body(self) -> bytes:
        """The source that the server runs."""


@dataclass(slots=True)
class Command:
    """One request, packed.

    A plain command is a read: it is sent again after a lost connection. One with `write` set never
    is once it may have left; it then fails with ``StoreUnavailableError(may_have_happened=True)``.
    """

    packed: bytes
    name: str
    bulk: bool = False
    write: bool = False

    def request(self, *, with_body: bool = False) -> bytes:  # noqa: ARG002 - as ScriptCall's
        """Return the bytes to send."""
        return self.packed


@dataclass(slots=True)
class ScriptCall:
    """One call of a script: by its hash, and by its body where the server does not know it."""

    script: ScriptSource
    keys: tuple[bytes, ...]
    args: tuple[bytes, ...]
    bulk: bool = False
    write: bool = False
    prompt: bool = False
    """Small, and its caller waits for nothing else: it leaves at once if the lane is quiet."""

    @property
    def name(self) -> str:
        """The script's name, for messages."""
        return self.script.name

    def request(self, *, with_body: bool = False) -> bytes:
        """Return the bytes to send."""
        if with_body:
            head: tuple[bytes | int, ...] = (b"EVAL", self.script.body, len(self.keys))
        else:
            head = (b"EVALSHA", self.script.sha, len(self.keys))
        return pack(*head, *self.keys, *self.args)
