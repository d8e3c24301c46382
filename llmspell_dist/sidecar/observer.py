"""The seam at which requests are counted and timed; telemetry stands behind it."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["NOT_OBSERVED", "Observer"]


class Observer(Protocol):
    """Hears of every request."""

    def started(self, method: str, scheme: str) -> float:
        """Hear that a request came; what it returns is given to `ended`."""

    def ended(self, started: float, method: str, route: str, status: int, scheme: str) -> None:
        """Hear that it is answered; `route` is the declared path, never the one that came."""

    def unauthenticated(self) -> None:
        """Hear of credentials that were not accepted."""

    def forbidden(self) -> None:
        """Hear of a right that was missing."""

    def streams(self, change: int) -> None:
        """Hear that a stream began (1) or ended (-1)."""


class _NotObserved:
    """Nobody wants to know."""

    def started(self, method: str, scheme: str) -> float:  # noqa: ARG002 - as the protocol has it
        return 0.0

    def ended(self, started: float, method: str, route: str, status: int, scheme: str) -> None:
        pass

    def unauthenticated(self) -> None:
        pass

    def forbidden(self) -> None:
        pass

    def streams(self, change: int) -> None:
        pass


NOT_OBSERVED: Final[Observer] = _NotObserved()
"""For a sidecar without telemetry."""
