"""What consumers of durable subscriptions have in common, wherever their events come from."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.steps import check_name
from llmspell_dist.events.subscription import Subscription
from llmspell_dist.events.terms import ConsumerStats

if TYPE_CHECKING:
    from llmspell_dist.events.model import Event
    from llmspell_dist.events.steps import Definition
    from llmspell_dist.events.terms import DurableTerms

__all__ = ["Consumer", "said_of"]


class Delivery(Protocol):
    """An event that a consumer holds on the server."""

    @property
    def event(self) -> Event:
        """What was published."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included."""


H = TypeVar("H", bound=Delivery)


class Consumer(Subscription[H], Generic[H]):
    """Hands out what it fetched, and keeps account of it until it is settled."""

    def __init__(self, name: str, pattern: str, consumer: str, terms: DurableTerms) -> None:
        super().__init__()
        self.name = check_name(name, "durable")
        self.pattern = pattern
        self.consumer = check_name(consumer, "consumer")
        self.terms = terms
        self.definition: Definition | None = None
        """What the subscription is on the server, once it has begun."""
        self._stats = ConsumerStats()
        self._buffer: deque[H] = deque()
        self._out: dict[int, H] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.pattern!r} consumer={self.consumer!r}>"

    def stats(self) -> ConsumerStats:
        """Return the counters as they are now."""
        return replace(self._stats, waiting=len(self._buffer), unacknowledged=len(self._out))

    def deliveries(self, event: Event) -> int:
        """Return how often an event that was handed out has been delivered, this time included."""
        return self._held(event).deliveries

    def _held(self, event: Event) -> H:
        held = self._out.get(id(event))
        if held is None:
            rule = "must be one that this subscription handed out and that is not settled yet"
            raise InvalidArgumentError("event", getattr(event, "id", event), rule)
        return held

    def drain(self) -> None:
        """Hand out nothing more: the iterations stop, acknowledging goes on until `close`."""
        self._finish(None)


def said_of(error: BaseException | str | None) -> str:
    """Return what a dead letter says of why an event could not be handled."""
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error or ""
