"""What a user does, as data: the same steps run over the sidecar and over the library."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

__all__ = ["Kind", "Step"]


class Kind(StrEnum):
    """What is asked of the state layer."""

    GET = auto()
    SLICE = auto()
    SET = auto()
    APPEND = auto()
    INCREMENT = auto()
    CHECKPOINT = auto()
    """Set on condition that the last checkpoint of this user is still the newest revision."""
    READ_BACK = auto()
    """Get, and compare with the value that this user has set."""
    RECALL = auto()
    """Get a list, and compare its length with the appends that were acknowledged."""
    DELETE = auto()
    CLEAR = auto()
    """Remove a whole scope."""
    CLOSE_TURN = auto()
    """One transaction: set a key, and count on a board that all users share."""
    COUNT_UNDER_LEASE = auto()
    """Acquire a lease, read a number, write it plus one, release: the number must end exact."""
    TRANSFER = auto()
    """Move one from an account to another in a transaction: the sum of all stays zero."""
    PUBLISH = auto()
    """Publish an event with the next number of a feed, which others hear."""
    WRITE_NEWS = auto()
    """Set a key to the next number of a feed, whose scope others watch."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation of a script. `scope` may hold ``{user}`` and ``{run}``: whose it is."""

    name: str
    kind: Kind
    scope: str
    key: str
    value: Any = None
    ttl: float | None = None

    def at(self, run: str, user: str) -> str:
        """Return the scope of this step for one user of one run."""
        return self.scope.replace("{run}", run).replace("{user}", user)
