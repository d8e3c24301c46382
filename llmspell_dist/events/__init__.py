"""Events between processes: published once, heard live or handled durably."""

from __future__ import annotations

from llmspell_dist.events.durable import DurableSubscription
from llmspell_dist.events.emitting import EventObserver
from llmspell_dist.events.errors import (
    EventError,
    PublishBlockedError,
    PublishError,
    PublishRejectedError,
    RateLimitedError,
    SubscriberTooSlowError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
    UnreadableEventError,
)
from llmspell_dist.events.live import LiveStats, LiveSubscription
from llmspell_dist.events.looking import DeadLetter, SubscriptionInfo
from llmspell_dist.events.manager import Events
from llmspell_dist.events.model import Event
from llmspell_dist.events.publishing import PublisherStats
from llmspell_dist.events.rate import RateLimit
from llmspell_dist.events.terms import ConsumerStats

__all__ = [
    "ConsumerStats",
    "DeadLetter",
    "DurableSubscription",
    "Event",
    "EventError",
    "EventObserver",
    "Events",
    "LiveStats",
    "LiveSubscription",
    "PublishBlockedError",
    "PublishError",
    "PublishRejectedError",
    "PublisherStats",
    "RateLimit",
    "RateLimitedError",
    "SubscriberTooSlowError",
    "SubscriptionExistsError",
    "SubscriptionInfo",
    "SubscriptionNotFoundError",
    "UnreadableEventError",
]
