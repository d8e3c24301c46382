"""What the tests of agents share: a clock of their own."""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = ["Ticking"]


class Ticking:
    """A clock that moves a second with every look."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now
