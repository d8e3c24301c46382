"""How long to wait before trying again. The policy is tenacity's; the loops are the drivers'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.wait import wait_base

__all__ = ["Backoff"]


class Backoff:
    """Pauses that grow with each failure and are jittered, so that no fleet comes at once."""

    __slots__ = ("_first_s", "_max_s", "_state", "_wait", "failures")

    def __init__(self, *, first_s: float = 0.02, max_s: float = 0.5) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._wait: wait_base | None = None
        self._state: RetryCallState | None = None
        self.failures = 0

    @classmethod
    def within(cls, budget_s: float) -> Backoff:
        """Return pauses of which several fit into a call's budget."""
        return cls(max_s=min(0.5, budget_s / 5))

    def next_s(self) -> float:
        """Count a failure and return the seconds to wait after it."""
        self.failures += 1
        return self.pause_s()

    def pause_s(self) -> float:
        """Return the seconds to wait after as many failures as were counted."""
        if self._wait is None or self._state is None:
            # Not before something fails: most calls never do, and the import takes its time.
            from tenacity import RetryCallState, wait_fixed, wait_random_exponential  # noqa: PLC0415

            first_s = self._first_s
            self._wait = wait_fixed(first_s / 4) + wait_random_exponential(first_s, max=self._max_s)
            self._state = RetryCallState(cast("Any", None), None, (), {})
        self._state.attempt_number = max(1, self.failures)
        return float(self._wait(self._state))

    def reset(self) -> None:
        """Begin anew after a success."""
        self.failures = 0
