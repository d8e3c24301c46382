"""What killed writers leave in a target: temporary files, uploads that nobody completes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["KeepsUnfinished", "Unfinished"]


class Unfinished(NamedTuple):
    """One write that has not ended; no reader sees it."""

    name: str
    """The object that it was to become; of a folder, the temporary file."""
    started: datetime
    """When it began (of a folder: when it last grew); aware."""
    token: str
    """What the target knows it by."""


@runtime_checkable
class KeepsUnfinished(Protocol):
    """A target where a killed writer may leave something that costs space."""

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the writes that have not ended: those of killed writers and those that go on."""

    def abort_unfinished(self, older_than: timedelta) -> int:
        """Remove those that are older; return how many. Those that go on fail, so be generous."""
