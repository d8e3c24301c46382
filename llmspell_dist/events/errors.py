"""What can go wrong with events.

::

    SpellError
     └ EventError
         ├ UnreadableEventError
         ├ PublishError
         │   ├ PublishRejectedError
         │   ├ PublishBlockedError
         │   └ RateLimitedError
         ├ SubscriptionExistsError
         ├ SubscriptionNotFoundError
         └ SubscriberTooSlowError
"""

from __future__ import annotations

from typing import Self

from llmspell_dist.errors import SpellError, shorten

__all__ = [
    "EventError",
    "PublishBlockedError",
    "PublishError",
    "PublishRejectedError",
    "RateLimitedError",
    "SubscriberTooSlowError",
    "SubscriptionExistsError",
    "SubscriptionNotFoundError",
    "UnreadableEventError",
]


class EventError(SpellError):
    """Something about an event, or about those who publish or hear it, is not as it must be."""

    code = "EVENT"


class UnreadableEventError(EventError):
    """Bytes are no event that this release can read; a consumer moves them to the dead letters."""

    code = "UNREADABLE_EVENT"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"these bytes are no event: {reason}")


class PublishError(EventError):
    """An event was not published; nothing of it was stored.

    Of `publish_many` it is not `retryable` once others of the events are stored: whoever published
    them all again would have those twice.
    """

    code = "PUBLISH"

    def partly(self) -> Self:
        """Return the error as that of several events, of which some are stored."""
        self.retryable = False
        return self


class PublishRejectedError(PublishError):
    """A durable subscription is at its capacity and rejects; the event was stored nowhere.

    Of `publish_many` it names the first that was refused; events behind it may be stored.
    """

    code = "PUBLISH_REJECTED"
    retryable = True

    def __init__(self, event_id: str, event_type: str, subscription: str) -> None:
        self.event_id = event_id
        self.event_type = event_type
        self.subscription = subscription
        super().__init__(
            f"event {shorten(event_type)} was not published: durable subscription "
            f"{shorten(subscription)} is at its capacity and rejects more"
        )


class PublishBlockedError(PublishError):
    """A durable subscription stayed at its capacity; the event was stored nowhere."""

    code = "PUBLISH_BLOCKED"
    retryable = True

    def __init__(self, event_id: str, event_type: str, subscription: str, waited_s: float) -> None:
        self.event_id = event_id
        self.event_type = event_type
        self.subscription = subscription
        self.waited_s = waited_s
        super().__init__(
            f"event {shorten(event_type)} was not published: durable subscription "
            f"{shorten(subscription)} stayed at its capacity for {waited_s:.3g} s"
        )


class RateLimitedError(PublishError):
    """This publisher is over its own rate limit; the event was not sent."""

    code = "RATE_LIMITED"
    retryable = True

    def __init__(self, event_type: str, per_second: float, burst: int) -> None:
        self.event_type = event_type
        self.per_second = per_second
        self.burst = burst
        super().__init__(
            f"event {shorten(event_type)} was not published: over the rate limit of "
            f"{per_second:g} a second (burst {burst})"
        )


class SubscriptionExistsError(EventError):
    """A durable subscription of this name exists with another pattern; nothing was changed."""

    code = "SUBSCRIPTION_EXISTS"

    def __init__(self, name: str, pattern: str, existing: str) -> None:
        self.name = name
        self.pattern = pattern
        self.existing = existing
        super().__init__(
            f"durable subscription {shorten(name)} has the pattern {existing!r}, not {pattern!r}: "
            "remove it first, or choose another name"
        )


class SubscriptionNotFoundError(EventError):
    """There is no durable subscription of this name, or no longer."""

    code = "SUBSCRIPTION_NOT_FOUND"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no durable subscription {shorten(name)}")


class SubscriberTooSlowError(EventError):
    """A live subscription that rejects got more than its buffer holds, and ended."""

    code = "SUBSCRIBER_TOO_SLOW"

    def __init__(self, pattern: str, buffer: int) -> None:
        self.pattern = pattern
        self.buffer = buffer
        super().__init__(
            f"the live subscription to {pattern!r} was too slow: {buffer:,} events waited and "
            "another came, so it ended"
        )
