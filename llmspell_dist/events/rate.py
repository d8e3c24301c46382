"""How many events a publisher may publish in a second, and what happens to those over that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.errors import RateLimitedError
from llmspell_dist.events.steps import OVERFLOWS

if TYPE_CHECKING:
    from llmspell_dist.events.publishing import PublisherStats

__all__ = ["RateLimit"]

DEFAULT_WAITING: Final = 10_000
_ONE: Final = 1 - 1e-9
"""What counts as a whole token: they are counted in floats."""


class RateLimit:
    """A token bucket: `per_second` events in the long run, `burst` at once.

    Over that ``block`` lets the publisher wait its turn, ``reject`` raises `RateLimitedError`,
    ``drop_newest`` leaves the event out, and ``drop_oldest`` lets at most `waiting` of them wait
    and leaves out the one that waits for longest. What is left out is counted.
    """

    def __init__(
        self,
        per_second: float = 1000.0,
        burst: int = 2000,
        *,
        overflow: str = "block",
        waiting: int = DEFAULT_WAITING,
        now: Callable[[], float] = monotonic,
    ) -> None:
        if (
            type(per_second) not in (int, float)
            or not isfinite(per_second)
            or not 0 < per_second <= 1e9
        ):
            rule = "must be more than 0 and at most 1,000,000,000"
            raise InvalidArgumentError("per_second", per_second, rule)
        for name, value in (("burst", burst), ("waiting", waiting)):
            if type(value) is not int or not 1 <= value <= 1_000_000_000:
                raise InvalidArgumentError(name, value, "must be an int from 1 to 1,000,000,000")
        if type(overflow) is not str or overflow not in OVERFLOWS:
            rule = f"must be one of {', '.join(OVERFLOWS)}"
            raise InvalidArgumentError("overflow", overflow, rule)
        self.per_second = float(per_second)
        self.burst = burst
        self.overflow = overflow
        self._most = waiting
        self._now = now
        self._tokens = float(burst)
        self._at = now()
        self._line: deque[asyncio.Future[bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many events wait for their turn."""
        return len(self._line)

    def _refill(self) -> None:
        now = self._now()
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_second)
        self._at = now

    def take(self) -> bool:
        """Take a token, if there is one and nobody waits."""
        self._refill()
        if self._line or self._tokens < _ONE:
            return False
        self._tokens -= 1
        return True

    async def admit(self, event_type: str, stats: PublisherStats) -> bool:
        """Return whether an event may be sent, when it may; False: it is to be left out."""
        if self.take():
            return True
        if self.overflow == "reject":
            stats.rejected += 1
            raise RateLimitedError(event_type, self.per_second, self.burst)
        if self.overflow == "drop_newest":
            stats.dropped += 1
            return False
        stats.limited += 1
        if self.overflow == "drop_oldest" and self.waiting >= self._most:
            self._drop_oldest()
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._schedule()
        try:
            sent = await place
        except asyncio.CancelledError:
            if place in self._line:
                self._line.remove(place)
            raise
        stats.dropped += not sent
        return sent

    def _drop_oldest(self) -> None:
        oldest = self._line.popleft()
        if not oldest.done():
            oldest.set_result(False)

    def _schedule(self) -> None:
        if self._timer is None and self._line:
            wait_s = max(0.0, (1 - self._tokens) / self.per_second)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.serve)

    def serve(self) -> None:
        """Let those go on for whom there are tokens now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refill()
        while self._line and (self._tokens >= _ONE or self._line[0].done()):
            first = self._line.popleft()
            if not first.done():  # else its caller was cancelled
                self._tokens -= 1
                first.set_result(True)
        self._schedule()
