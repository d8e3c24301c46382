"""Acknowledgement levels: how safe a write is before its caller hears of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["LOCAL_FSYNC", "MEMORY", "REPLICATED_ALL", "Ack", "AckKind", "replicated"]

MAX_REPLICAS: Final = 64
_REPLICATED: Final = re.compile(r"replicated\(([0-9]{1,3})\)", re.ASCII).fullmatch


class AckKind(StrEnum):
    """What an acknowledgement waits for."""

    MEMORY = "memory"
    LOCAL_FSYNC = "local-fsync"
    REPLICATED = "replicated"
    REPLICATED_ALL = "replicated-all"


_REPLICAS: Final = {
    AckKind.MEMORY: (0, 0),
    AckKind.LOCAL_FSYNC: (0, 0),
    AckKind.REPLICATED: (1, MAX_REPLICAS),
    AckKind.REPLICATED_ALL: (-1, -1),
}


@dataclass(frozen=True, slots=True)
class Ack:
    """One level: ``memory``, ``local-fsync``, ``replicated(k)`` or ``replicated-all``.

    Prints as that text, and `Ack.parse` reads it back.
    """

    kind: AckKind
    replicas: int = 0
    """How many replicas must have the write; -1 for all of them."""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, AckKind):
            raise InvalidArgumentError("kind", self.kind, "must be an AckKind")
        low, high = _REPLICAS[self.kind]
        if type(self.replicas) is not int or not low <= self.replicas <= high:
            rule = f"must be an int from {low} to {high} for {self.kind.value}"
            raise InvalidArgumentError("replicas", self.replicas, rule)

    @property
    def local_fsync(self) -> bool:
        """Whether the primary's own disk must have the write."""
        return self.kind is AckKind.LOCAL_FSYNC

    @property
    def durable(self) -> bool:
        """Whether the level waits for anything beyond the server's memory."""
        return self.kind is not AckKind.MEMORY

    @classmethod
    def parse(cls, text: str) -> Ack:
        """Return the level that prints as `text`."""
        if isinstance(text, str):
            match = _REPLICATED(text)
            if match:
                return cls(AckKind.REPLICATED, int(match[1]))
            for level in (MEMORY, LOCAL_FSYNC, REPLICATED_ALL):
                if text == level.kind.value:
                    return level
        rule = "must be memory, local-fsync, replicated(k) or replicated-all"
        raise InvalidArgumentError("ack", text, rule)

    def __str__(self) -> str:
        if self.kind is AckKind.REPLICATED:
            return f"replicated({self.replicas})"
        return self.kind.value


MEMORY: Final = Ack(AckKind.MEMORY)
"""The primary has the write in memory."""
LOCAL_FSYNC: Final = Ack(AckKind.LOCAL_FSYNC)
"""The primary has synced the write to its disk."""
REPLICATED_ALL: Final = Ack(AckKind.REPLICATED_ALL, -1)
"""Every connected replica has the write."""


def replicated(replicas: int) -> Ack:
    """Return the level at which `replicas` replicas (1 to 64) have the write."""
    return Ack(AckKind.REPLICATED, replicas)
