"""An estimate of the server's clock, good enough to judge an expiry without asking the server."""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Liveness", "ServerClock"]

DRIFT = 0.001
"""Seconds by which two clocks may drift apart in a second: both may be slewed by 500 ppm."""
MAX_AGE_S = 2.0
"""After so long without a sample nothing is certain: the server's clock may have been set, and
this machine may have slept, which its monotonic clock does not show."""


class Liveness(Enum):
    """What the estimate says about an expiry."""

    ALIVE = "alive"
    EXPIRED = "expired"
    UNSURE = "unsure"
    """Within the error bound: only the server can say."""


class ServerClock:
    """The server's time within bounds, from samples of its TIME command.

    Each sample was taken by the server between two moments of the local monotonic clock, and that
    bounds the offset between the clocks on both sides. The newest sample replaces the earlier
    ones, so that a step of the server's clock is noticed with the next sample; only a sample that
    was much delayed, and so says less than a recent one that it agrees with, is left out.
    """

    __slots__ = ("_max_age_s", "_now", "_sample")

    def __init__(
        self, *, max_age_s: float = MAX_AGE_S, now: Callable[[], float] = monotonic
    ) -> None:
        self._now = now
        self._max_age_s = max_age_s
        # Moment, lowest and highest offset in seconds; one tuple, so that threads never see a mix.
        self._sample = (float("-inf"), 0.0, 0.0)

    def observe(self, sent: float, received: float, server_s: float) -> None:
        """Take a sample: the server read `server_s` between the local moments given (seconds)."""
        at, old_low, old_high = self._sample
        if received < at:
            return  # from a slower connection
        low, high = server_s - received, server_s - sent
        recent = received - at < self._max_age_s / 4
        if recent and low <= old_low and old_high <= high:
            return
        self._sample = (received, low, high)

    @property
    def age_s(self) -> float:
        """Seconds since the newest sample; infinite before the first."""
        return self._now() - self._sample[0]

    @property
    def error_ms(self) -> float:
        """Half the width of the bounds now, in milliseconds; infinite if nothing is certain."""
        bounds = self.bounds_ms()
        return float("inf") if bounds is None else (bounds[1] - bounds[0]) / 2

    def bounds_ms(self) -> tuple[float, float] | None:
        """Return the earliest and the latest that it can be on the server, or None if unknown."""
        now = self._now()
        at, low, high = self._sample
        age = now - at
        if age > self._max_age_s:
            return None
        slack = age * DRIFT
        return (now + low - slack) * 1000.0, (now + high + slack) * 1000.0

    def compare(self, expires_ms: float) -> Liveness:
        """Tell whether something that expires at `expires_ms` of server time is over by now."""
        now = self._now()
        at, low, high = self._sample
        age = now - at
        if age > self._max_age_s:
            return Liveness.UNSURE
        slack = age * DRIFT
        if (now + high + slack) * 1000.0 < expires_ms:
            return Liveness.ALIVE
        if (now + low - slack) * 1000.0 >= expires_ms:
            return Liveness.EXPIRED
        return Liveness.UNSURE
