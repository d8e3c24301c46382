"""Hooks that only look: logging, metrics, debugging. None of them ever shows a value."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.metrics import DurationWindow, Timing
from llmspell_dist.hooks.points import is_before

__all__ = ["Captured", "DebuggingHook", "LoggingHook", "MetricsHook"]

_BEGAN: Final = "metrics.began"
LAST_BUT_ONE: Final = Priority.LOWEST - 1
"""Behind all that judge and change, and before `CachingHook`, with whose answer a chain ends."""


class LoggingHook:
    """Logs every operation: point, method, scope, key, actor, correlation, and the kind of error.

    For any point. Values are never logged. By its priority it runs behind nearly all others, so it
    logs what is carried out; with ``priority=Priority.HIGHEST`` also what others refuse.
    """

    metadata = HookMetadata("logging", "logs every operation", LAST_BUT_ONE)

    def __init__(
        self, logger: logging.Logger | str | None = None, level: int = logging.INFO
    ) -> None:
        if not isinstance(logger, logging.Logger):
            logger = logging.getLogger(logger or "llmspell_dist.hooks.operations")
        self._logger = logger
        self._level = level

    def execute(self, ctx: HookContext) -> None:
        """Log it, if the logger wants to hear of it."""
        if not self._logger.isEnabledFor(self._level):
            return
        failed = "" if ctx.error is None else f" failed: {type(ctx.error).__name__}"
        self._logger.log(
            self._level,
            "%s %s scope=%s key=%s actor=%s correlation=%s%s",
            *(str(ctx.point), ctx.operation_type or ctx.component.name),
            *(ctx.data.get("scope"), ctx.data.get("key"), ctx.actor, ctx.correlation_id, failed),
        )


class MetricsHook:
    """Counts operations and failures, and measures how long they take, by method.

    Register it before and behind: ``BEFORE_STATE_WRITE`` and ``AFTER_STATE_WRITE``, and so on. What
    is only registered behind is counted and not measured.
    """

    metadata = HookMetadata("metrics", "counts and measures operations", LAST_BUT_ONE)

    def __init__(self, *, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._durations: dict[str, DurationWindow] = {}
        self.counts: dict[str, int] = {}
        """Operations that ended, by method."""
        self.failures: dict[str, int] = {}

    def execute(self, ctx: HookContext) -> None:
        """Note the moment before, the duration behind."""
        now = self._clock()
        if is_before(ctx.point):
            ctx.metadata[_BEGAN] = repr(now)
            return
        name = ctx.operation_type or ctx.point
        self.counts[name] = self.counts.get(name, 0) + 1
        if ctx.error is not None:
            self.failures[name] = self.failures.get(name, 0) + 1
        began = ctx.metadata.pop(_BEGAN, None)
        if began is not None:
            durations = self._durations.setdefault(name, DurationWindow(clock=self._clock))
            durations.take(now, now - float(began))

    def timing(self, operation: str) -> Timing:
        """Return the durations of a method, in seconds."""
        durations = self._durations.get(operation)
        return Timing() if durations is None else durations.timing()

    def stats(self) -> dict[str, Any]:
        """Return counts, failures and durations by method."""
        return {
            name: {
                "count": count,
                "failures": self.failures.get(name, 0),
                "timing": self.timing(name),
            }
            for name, count in self.counts.items()
        }


@dataclass(frozen=True, slots=True)
class Captured:
    """What a `DebuggingHook` keeps of a run; of values only what they are."""

    point: str
    operation: str | None
    time: datetime
    scope: str | None
    key: str | None
    data: dict[str, str]
    """By name: the type and, where it has one, the length."""
    metadata: dict[str, str]
    correlation_id: str | None
    error: str | None


class DebuggingHook:
    """Keeps what the last operations were, and calls you when one is the one that you look for.

    For any point. `when(ctx)` says which; `then(ctx)` is called for these, by default `breakpoint`.
    """

    metadata = HookMetadata("debugging", "keeps the last operations", LAST_BUT_ONE)

    def __init__(
        self,
        *,
        keep: int = 100,
        when: Callable[[HookContext], bool] | None = None,
        then: Callable[[HookContext], Any] | None = None,
    ) -> None:
        if type(keep) is not int or keep < 1:
            raise InvalidArgumentError("keep", keep, "must be an int of at least 1")
        self.captured: deque[Captured] = deque(maxlen=keep)
        self._when = when
        self._then = (lambda _: breakpoint()) if then is None else then  # noqa: T100 - what it is for

    def execute(self, ctx: HookContext) -> None:
        """Keep it, and call if it is one that was looked for."""
        self.captured.append(
            Captured(
                str(ctx.point),
                ctx.operation_type,
                ctx.timestamp,
                ctx.data.get("scope"),
                ctx.data.get("key"),
                {name: _shape(value) for name, value in ctx.data.items()},
                dict(ctx.metadata),
                ctx.correlation_id,
                None if ctx.error is None else type(ctx.error).__name__,
            )
        )
        if self._when is not None and self._when(ctx):
            self._then(ctx)


def _shape(value: Any) -> str:
    kind = type(value).__name__
    try:
        return f"{kind}[{len(value)}]"
    except TypeError:
        return kind
