"""How patient the drivers are."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LaneOptions"]


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How patient the lanes are. All times in seconds."""

    call_timeout: float = 5.0
    """A reply that is overdue by this ends the connection."""
    retry_budget: float = 10.0
    """From the submission of a request until it is given up, over all attempts."""
    connect_timeout: float = 3.0
    close_timeout: float = 5.0
    health_check_interval: float = 15.0
    """An idle connection is pinged this often."""
    max_in_flight: int = 4096
    """Requests sent and unanswered; more wait in the backlog."""
    max_queued: int = 100_000
    """Requests waiting in the backlog; more are refused at once."""
    clock_interval: float = 0.25
    """How often the server's time is asked for while there is traffic."""
    ack_timeout: float = 1.0
    """How long the server waits for replicas or the disk before it answers what was reached."""
    replicas: int | None = None
    """How many replicas "all" means; None: as many as were ever seen connected."""
