"""Objects that a target does not let go for some time, whoever asks: object lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

__all__ = ["KeepsLocks", "locks_of"]


@runtime_checkable
class KeepsLocks(Protocol):
    """A target whose objects may be locked."""

    def locked_until(self, names: Sequence[str]) -> Mapping[str, datetime]:
        """Return of those that have a lock when it ends, or ended; aware.

        Whose lock may not be looked at counts as one without.
        """


def locks_of(target: object, names: Sequence[str]) -> Mapping[str, datetime]:
    """Return when the locks of objects end; nothing where a target knows of none."""
    if not names or not isinstance(target, KeepsLocks):
        return {}
    return target.locked_until(names)
