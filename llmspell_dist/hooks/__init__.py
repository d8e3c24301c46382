"""Hooks: see, change, refuse and follow what happens to shared state.

`Hooks` (``spell.hooks``) registers and runs them. A hook gets a `HookContext` and answers with one
of the nine results, or None to go on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmspell_dist.hooks.breaker import BreakerConfig, BreakerState, CircuitBreaker
from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
from llmspell_dist.hooks.engine import HookOutcome
from llmspell_dist.hooks.errors import (
    DuplicateHookError,
    HookError,
    HookNotFoundError,
    HookTimeoutError,
    InvalidHookResultError,
    OperationCancelledError,
    UnknownHookPointError,
)
from llmspell_dist.hooks.hook import (
    Hook,
    HookMetadata,
    HookStats,
    OnFailure,
    Priority,
    RegisteredHook,
)
from llmspell_dist.hooks.manager import Hooks
from llmspell_dist.hooks.metrics import Timing
from llmspell_dist.hooks.nesting import nested
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cache,
    Cancel,
    Continue,
    Fork,
    ForkOperation,
    HookResult,
    Modified,
    Redirect,
    Replace,
    Retry,
    Skipped,
)

if TYPE_CHECKING:
    from llmspell_dist.hooks.builtin import (
        AuditHook,
        CachingHook,
        CostTrackingHook,
        DebuggingHook,
        LoggingHook,
        MetricsHook,
        Price,
        RateLimitHook,
        RetryHook,
        SecurityHook,
        ValidationHook,
    )
    from llmspell_dist.hooks.composite import FirstMatch, Parallel, Sequential, TieBreaker, Voting

__all__ = [
    "CONTINUE",
    "AuditHook",
    "BreakerConfig",
    "BreakerState",
    "Cache",
    "CachingHook",
    "Cancel",
    "CircuitBreaker",
    "ComponentId",
    "Continue",
    "CostTrackingHook",
    "DebuggingHook",
    "DuplicateHookError",
    "FirstMatch",
    "Fork",
    "ForkOperation",
    "Hook",
    "HookContext",
    "HookError",
    "HookMetadata",
    "HookNotFoundError",
    "HookOutcome",
    "HookPoint",
    "HookResult",
    "HookStats",
    "HookTimeoutError",
    "Hooks",
    "InvalidHookResultError",
    "LoggingHook",
    "MetricsHook",
    "Modified",
    "OnFailure",
    "OperationCancelledError",
    "OperationContext",
    "Parallel",
    "Price",
    "Priority",
    "RateLimitHook",
    "Redirect",
    "RegisteredHook",
    "Replace",
    "Retry",
    "RetryHook",
    "SecurityHook",
    "Sequential",
    "Skipped",
    "TieBreaker",
    "Timing",
    "UnknownHookPointError",
    "ValidationHook",
    "Voting",
    "nested",
]

_COMPOSITIONS = ("FirstMatch", "Parallel", "Sequential", "TieBreaker", "Voting")


def __getattr__(name: str) -> Any:
    """Load what few need when it is asked for: patterns of secrets take their time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "composite" if name in _COMPOSITIONS else "builtin"
    return getattr(import_module(f"{__name__}.{module}"), name)
