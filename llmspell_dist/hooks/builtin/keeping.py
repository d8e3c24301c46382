"""Hooks that spare or repeat work: caching reads, trying failed operations again."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from math import isfinite
from typing import Any, Final

from llmspell_dist.errors import (
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import Cache, HookResult, Retry

__all__ = ["CachingHook", "RetryHook"]

_NUMBERS: Final = count(1)
_REPEATABLE: Final = ("set", "delete", "expire", "persist", "set_many", "delete_many", "clear")
"""Writes that come to the same if they happen twice."""


class CachingHook:
    """Answers `get` from this process's memory for `ttl` seconds, until this client writes the key.

    For ``BEFORE_STATE_READ``. Whatever this client does to the key ends it: also what hooks, forks,
    leases or transactions do. What other processes write is seen when the time is over: for more,
    use the near cache. Keys with an expiry are always read from the server. `key` names what is
    the same for whom, within a key of the state (by actor, say); None: that read is not cached.
    """

    metadata = HookMetadata("caching", "answers reads from memory", Priority.LOWEST)

    def __init__(
        self, ttl: float, *, key: Callable[[HookContext], str | None] | None = None
    ) -> None:
        if type(ttl) not in (int, float) or not isfinite(ttl) or ttl <= 0:
            raise InvalidArgumentError("ttl", ttl, "must be seconds over 0")
        self._ttl = float(ttl)
        self._key = key
        self._id = next(_NUMBERS)

    def execute(self, ctx: HookContext) -> HookResult | None:
        """Name where the answer is kept."""
        plain = ctx.operation_type == "get" and "batch" not in ctx.metadata
        if ctx.point != HookPoint.BEFORE_STATE_READ or not plain:
            return None
        place = f"{ctx.data.get('scope')} {ctx.data.get('key')}"
        name = "" if self._key is None else self._key(ctx)
        if name is None:
            return None
        return Cache(f"{self._id} {place} {name}", self._ttl, until_written=True)


class RetryHook:
    """Tries a failed operation again, with a growing, jittered delay.

    For ``AFTER_STATE_READ`` and ``AFTER_STATE_WRITE``: `errors`, by default an unreachable server.
    A write whose outcome is unknown is only repeated if it comes to the same twice. The library
    itself has tried within its own budget before; this is for longer outages. An `update` tries
    again by itself, and keys of a batch cannot alone: both are left as they are. For
    ``STATE_CONFLICT``: only with `overwrite`, which takes the revision that is there as the
    expected one (so the last writer wins); with the same expectation it would only fail again.
    """

    metadata = HookMetadata("retry", "tries failed operations again", Priority.LOW)

    def __init__(
        self,
        *,
        errors: tuple[type[BaseException], ...] = (StoreUnavailableError,),
        max_attempts: int = 3,
        delay: float = 0.1,
        factor: float = 2.0,
        max_delay: float = 5.0,
        overwrite: bool = False,
    ) -> None:
        if type(max_attempts) is not int or max_attempts < 1:
            raise InvalidArgumentError("max_attempts", max_attempts, "must be an int of at least 1")
        for name, value in (("delay", delay), ("factor", factor), ("max_delay", max_delay)):
            if type(value) not in (int, float) or not isfinite(value) or value < 0:
                raise InvalidArgumentError(name, value, "must be a number of at least 0")
        self._errors = errors
        self._overwrite = overwrite
        self._max_attempts = max_attempts
        self._delay, self._factor, self._max_delay = delay, factor, max_delay
        self._place = f"retry.{next(_NUMBERS)}"
        """Where an operation keeps how often this hook was asked about it."""
        self.retries = 0

    def execute(self, ctx: HookContext) -> Retry | None:
        """Ask for another attempt, if there may be one."""
        error = ctx.error
        if error is None or "batch" in ctx.metadata or ctx.operation_type == "update":
            return None
        if not self._may_repeat(ctx, error):
            return None
        made = int(ctx.metadata.get(self._place, "0"))
        ctx.metadata[self._place] = str(made + 1)
        if made + 1 >= self._max_attempts:
            return None
        self.retries += 1
        try:
            most = min(self._max_delay, self._delay * self._factor**made)
        except OverflowError:  # after a thousand attempts
            most = self._max_delay if self._delay else 0.0
        return Retry(most * random.uniform(0.5, 1.0), self._max_attempts)

    def _may_repeat(self, ctx: HookContext, error: BaseException) -> bool:
        if ctx.point == HookPoint.STATE_CONFLICT:
            if not self._overwrite or "expected" not in ctx.data:
                return False
            ctx.data["expected"] = getattr(error, "actual", None)
            return True
        if not isinstance(error, self._errors):
            return False
        happened = isinstance(error, OutcomeUnknownError) or getattr(
            error, "may_have_happened", False
        )
        return not happened or ctx.operation_type in _REPEATABLE or ctx.point.endswith("Read")

    def stats(self) -> dict[str, Any]:
        """Return how often it tried again."""
        return {"retries": self.retries}
