"""Circuit breakers: a hook that keeps failing is left out for a while, so that it harms no one.

Closed: the hook runs; failures and slow calls of the last while are counted. Too many: open, the
hook is skipped. After `open_duration` it is half open: one call at a time is let through to try;
enough successes close it, a failure opens it again. (Nygard, *Release It!*, 2007.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf, isfinite
from time import monotonic
from typing import Final, Self

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.fork import child_safe_lock

__all__ = ["BreakerConfig", "BreakerState", "CircuitBreaker"]


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When a breaker opens, and when it closes again; times in seconds."""

    failure_threshold: int = 3
    """So many failures within the window open it."""
    success_threshold: int = 2
    """So many successes in a row, half open, close it."""
    failure_window: float = 30.0
    """Failures and slow calls older than this no longer count."""
    open_duration: float = 15.0
    """How long hooks are skipped before one is tried."""
    slow_call_threshold: int = 2
    """So many slow calls within the window open it."""
    slow_call_duration: float | None = None
    """A call of at least this is slow; None: the hook's own `timeout`, or 50 ms without one."""

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "success_threshold", "slow_call_threshold"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidArgumentError(name, value, "must be an int of at least 1")
        for name in ("failure_window", "open_duration", "slow_call_duration"):
            value = getattr(self, name)
            if value is None and name == "slow_call_duration":
                continue
            if type(value) not in (int, float) or not isfinite(value) or value <= 0:
                raise InvalidArgumentError(name, value, "must be seconds over 0")

    @classmethod
    def production(cls) -> Self:
        """Quick to open: for hooks that the operation can do without."""
        return cls(2, 1, 20.0, 10.0, 1, 0.025)

    @classmethod
    def conservative(cls) -> Self:
        """Slow to open: for hooks that matter."""
        return cls(5, 3, 60.0, 30.0, 3, 0.100)


SLOW_S: Final = 0.050
_SIDE_LENGTH: Final = 1024


class CircuitBreaker:
    """Remembers how the calls of one hook went; safe to share between threads.

    `settled` is true while it is closed: then nobody need ask `allows`.
    """

    __slots__ = (
        "_clock",
        "_failures",
        "_listeners",
        "_lock",
        "_opened_at",
        "_slow",
        "_successes",
        "_trying_since",
        "config",
        "opened",
        "settled",
        "slow_s",
        "state",
    )

    def __init__(
        self,
        config: BreakerConfig | None = None,
        *,
        slow_s: float = SLOW_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.config = BreakerConfig() if config is None else config
        said = self.config.slow_call_duration
        self.slow_s = slow_s if said is None else said
        """From here on a call is slow."""
        self.state = BreakerState.CLOSED
        self.settled = True
        self.opened = 0
        """How often it opened."""
        self._clock = clock
        self._lock = child_safe_lock()
        self._listeners: list[Callable[[], None]] = []
        self._failures: deque[float] = deque(maxlen=_SIDE_LENGTH)
        self._slow: deque[float] = deque(maxlen=_SIDE_LENGTH)
        self._successes = 0
        self._opened_at = 0.0
        self._trying_since = -inf

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever `settled` has changed."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def _tell(self, was: bool) -> None:
        if self.settled is not was:
            for listener in self._listeners:
                listener()

    def allows(self) -> bool:
        """Whether the hook may run now; half open, one caller at a time is told yes.

        One of whom nothing is heard for `open_duration` no longer counts.
        """
        if self.settled:
            return True
        with self._lock:
            if self.state is BreakerState.CLOSED:
                return True
            if self.state is BreakerState.OPEN:
                if self._clock() - self._opened_at < self.config.open_duration:
                    return False
                self.state = BreakerState.HALF_OPEN
                self._successes = 0
            now = self._clock()
            if now - self._trying_since < self.config.open_duration:
                return False
            self._trying_since = now
            return True

    def succeeded(self, took: float) -> None:
        """Note a call that returned after `took` seconds."""
        slow = took >= self.slow_s
        if self.settled and not slow:
            return
        with self._lock:
            was = self.settled
            self._trying_since = -inf
            if slow:
                self._count(self._slow, self.config.slow_call_threshold)
            elif self.state is BreakerState.HALF_OPEN:
                self._successes += 1
                if self._successes >= self.config.success_threshold:
                    self._close()
        self._tell(was)

    def failed(self) -> None:
        """Note a call that failed or ran out of time."""
        with self._lock:
            was = self.settled
            self._trying_since = -inf
            self._count(self._failures, self.config.failure_threshold)
        self._tell(was)

    def gave_up(self) -> None:
        """Note a call that was let through and never made, or cut off by its caller."""
        with self._lock:
            self._trying_since = -inf

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            was = self.settled
            self._close()
        self._tell(was)

    def _count(self, side: deque[float], threshold: int) -> None:
        now = self._clock()
        if self.state is BreakerState.HALF_OPEN:
            self._open(now)
            return
        side.append(now)
        while side[0] < now - self.config.failure_window:
            side.popleft()
        if self.state is BreakerState.CLOSED and len(side) >= threshold:
            self._open(now)

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self.settled = False
        self.opened += 1
        self._opened_at = now
        self._failures.clear()
        self._slow.clear()

    def _close(self) -> None:
        self.state = BreakerState.CLOSED
        self.settled = True
        self._successes = 0
        self._trying_since = -inf
        self._failures.clear()
        self._slow.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}>"
