"""Hooks that most applications want, each doing what its name says.

Register them where they belong: the docstring of each says at which points.
"""

from llmspell_dist.hooks.builtin.accounting import AuditHook, CostTrackingHook, Price
from llmspell_dist.hooks.builtin.guarding import RateLimitHook, SecurityHook, ValidationHook
from llmspell_dist.hooks.builtin.keeping import CachingHook, RetryHook
from llmspell_dist.hooks.builtin.observing import DebuggingHook, LoggingHook, MetricsHook

__all__ = [
    "AuditHook",
    "CachingHook",
    "CostTrackingHook",
    "DebuggingHook",
    "LoggingHook",
    "MetricsHook",
    "Price",
    "RateLimitHook",
    "RetryHook",
    "SecurityHook",
    "ValidationHook",
]
