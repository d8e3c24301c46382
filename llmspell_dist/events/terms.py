"""How a consumer of a durable subscription handles what it is given, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["ConsumerStats", "DurableTerms"]

_MOST_DOUBLED: Final = 100


@dataclass(frozen=True, slots=True)
class DurableTerms:
    """How a consumer handles what it is given; times in seconds."""

    max_deliveries: int = 5
    claim_idle: float = 30.0
    retry_delay: float = 0.5
    max_retry_delay: float = 60.0
    max_unacked: int = 1000
    poll: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("max_deliveries", 1), ("max_unacked", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= 1_000_000:
                rule = f"must be an int from {least} to 1,000,000"
                raise InvalidArgumentError(name, value, rule)
        for name, low in (
            ("claim_idle", 0.05),
            ("retry_delay", 0.0),
            ("max_retry_delay", 0.0),
            ("poll", 0.01),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= 86_400:
                raise InvalidArgumentError(name, value, f"must be {low:g} to 86,400 seconds")

    def pause_s(self, deliveries: int) -> float:
        """Return the seconds before an event comes again that was delivered so often."""
        doubled = min(deliveries - 1, _MOST_DOUBLED)  # further no float goes
        return min(self.retry_delay * 2.0**doubled, self.max_retry_delay)


@dataclass(slots=True)
class ConsumerStats:
    """Counters of one consumer since it began."""

    delivered: int = 0
    """Handed out, redeliveries included."""
    redelivered: int = 0
    acknowledged: int = 0
    failed: int = 0
    """`nack`s and handlers that raised."""
    dead: int = 0
    """Moved to the dead letters."""
    expired: int = 0
    """Taken out of the queue undelivered, since their time to live was over."""
    claimed: int = 0
    """Taken over from consumers that died or gave them back."""
    taken_over: int = 0
    """Held by this consumer, and then claimed by another because it did not keep them."""
    waiting: int = 0
    """Fetched and not handed out yet."""
    unacknowledged: int = 0
    """Handed out and not acknowledged yet."""

    def add(self, other: ConsumerStats) -> None:
        """Add what another consumer has counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
