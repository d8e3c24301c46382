"""The two clocks of access control, which tests replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clocks"]


@dataclass(frozen=True, slots=True)
class Clocks:
    """What the time is, and how much of it has passed."""

    now: Callable[[], float] = time.time
    """Seconds since 1970: expiries are moments."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds since some moment: intervals do not follow a clock that is set."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, as files have them."""
        return int(self.now() * 1e9)
