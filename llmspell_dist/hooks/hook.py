"""A hook as it stands in the registry: what to call, when, and what became of it so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from inspect import iscoroutinefunction
from math import isfinite
from typing import Any, Final, Protocol, runtime_checkable

from llmspell_dist.callables import check_takes_one
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.breaker import SLOW_S, BreakerConfig, BreakerState, CircuitBreaker
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.metrics import DurationWindow, Ring, Timing

__all__ = [
    "Hook",
    "HookMetadata",
    "HookStats",
    "OnFailure",
    "Priority",
    "RegisteredHook",
    "checked_tags",
]

MAX_NAME: Final = 256
DEFAULT_LIMIT_S: Final = 0.100
"""How long a hook may take that has no timeout of its own."""
_INT32: Final = 2**31


class Priority(IntEnum):
    """In which order hooks run: lower first; any int of 32 bits will do."""

    HIGHEST = -(2**31)
    HIGH = -100
    NORMAL = 0
    LOW = 100
    LOWEST = 2**31 - 1


class OnFailure(StrEnum):
    """What becomes of the operation when a hook fails."""

    IGNORE = "ignore"
    """It goes on; the failure is logged and counted."""
    CANCEL = "cancel"
    """It is cancelled, also when the hook's breaker is open: for hooks that guard something."""
    RAISE = "raise"
    """Its caller gets `HookError`, from the hook's own; also when the breaker is open."""


@dataclass(frozen=True, slots=True)
class HookMetadata:
    """What a hook says about itself; what `register` is given goes before it."""

    name: str = ""
    description: str = ""
    priority: int = Priority.NORMAL
    language: str = "python"
    tags: tuple[str, ...] = ()
    version: str = "1.0.0"


@runtime_checkable
class Hook(Protocol):
    """A hook as an object. May also have `should_execute(ctx)` and `metadata` (`HookMetadata`)."""

    def execute(self, ctx: HookContext) -> Any:
        """Return a `HookResult` or None; or be a coroutine function that does."""


@dataclass(frozen=True, slots=True)
class HookStats:
    """How a hook has done so far."""

    name: str
    point: str
    enabled: bool
    breaker: BreakerState | None
    """None: it has no breaker."""
    timing: Timing
    failures: int = 0
    """With those that ran out of time."""
    timeouts: int = 0
    skipped: int = 0
    """Calls left out because the breaker was open."""
    cancelled: int = 0
    """Operations that it ended: Cancel, or a failure that cancels."""
    tags: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the hook itself counts (`stats()` of its object)."""


class RegisteredHook:
    """One hook at one point."""

    __slots__ = (
        "breaker",
        "call",
        "cancelled",
        "description",
        "durations",
        "enabled",
        "failures",
        "hook",
        "language",
        "name",
        "on_failure",
        "plain",
        "point",
        "priority",
        "queued",
        "replayable",
        "retention_priority",
        "should_execute",
        "skipped",
        "slow_s",
        "tags",
        "threaded",
        "timeout",
        "timeouts",
        "version",
    )

    def __init__(
        self,
        point: str,
        hook: Any,
        *,
        name: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
        on_failure: OnFailure | str = OnFailure.IGNORE,
        queued: bool = False,
        language: str | None = None,
        tags: Iterable[str] = (),
        version: str | None = None,
        breaker: BreakerConfig | CircuitBreaker | bool = True,
        replayable: bool | None = None,
        retention_priority: int = 0,
    ) -> None:
        self.point = point
        self.hook = hook
        self.call, self.should_execute = _callable_of(hook)
        said = getattr(hook, "metadata", None)
        if callable(said):
            said = said()
        if not isinstance(said, HookMetadata):
            said = HookMetadata()
        self.name = _checked_name((said.name or _name_of(hook)) if name is None else name)
        self.priority = _checked_priority(said.priority if priority is None else priority)
        self.timeout = _checked_timeout(timeout)
        self.on_failure = _checked_policy(on_failure)
        self.queued = _checked_switch("queued", queued)
        self.language = _checked_text("language", said.language if language is None else language)
        self.tags = checked_tags(tags) or checked_tags(said.tags)
        self.version = _checked_text("version", said.version if version is None else version)
        self.description = said.description
        if replayable is None:
            replayable = getattr(hook, "replayable", False) is True
        self.replayable = _checked_switch("replayable", replayable)
        self.retention_priority = _checked_priority(retention_priority, "retention_priority")
        self.breaker = _breaker_of(breaker, self.timeout)
        self.enabled = True
        self.durations = DurationWindow()
        self.failures = self.timeouts = self.skipped = self.cancelled = 0
        self.threaded = timeout is not None and not iscoroutinefunction(self.call)
        """A plain function with a time limit: only in a thread can it be left alone at its end."""
        self.plain = not (self.threaded or self.should_execute or replayable)
        """Whether nothing has to be asked before it is called, as long as its breaker is closed."""
        limit = DEFAULT_LIMIT_S if timeout is None else timeout
        slow = limit if self.breaker is None else self.breaker.slow_s
        self.slow_s = min(limit, slow)
        """From here on a call's duration matters."""

    @property
    def direct(self) -> bool:
        """Whether it can be called now without a question asked."""
        return self.plain and (self.breaker is None or self.breaker.settled)

    @property
    def limit_s(self) -> float:
        """How long it may take."""
        return DEFAULT_LIMIT_S if self.timeout is None else self.timeout

    @property
    def fails_closed(self) -> bool:
        """Whether an operation must not go on without it."""
        return self.on_failure is not OnFailure.IGNORE

    def stats(self, rings: Iterable[tuple[Ring, int]]) -> HookStats:
        """Return how it has done so far, with what stands in rings: `Hooks.stats` knows them."""
        own = getattr(self.hook, "stats", None)
        return HookStats(
            self.name,
            self.point,
            self.enabled,
            None if self.breaker is None else self.breaker.state,
            self.durations.timing(rings),
            self.failures,
            self.timeouts,
            self.skipped,
            self.cancelled,
            self.tags,
            own() if callable(own) else {},
        )

    def __repr__(self) -> str:
        state = "" if self.enabled else ", disabled"
        return f"<{type(self).__name__} {self.name!r} at {self.point}{state}>"


def _callable_of(hook: Any) -> tuple[Callable[[HookContext], Any], Callable[..., Any] | None]:
    if isinstance(hook, type):
        raise InvalidArgumentError("hook", hook, "must be an object of the class, not the class")
    execute = getattr(hook, "execute", None)
    if callable(execute):
        check_takes_one("hook", hook, execute, "the context")
        should = getattr(hook, "should_execute", None)
        return execute, should if callable(should) else None
    if callable(hook):
        check_takes_one("hook", hook, hook, "the context")
        return hook, None
    rule = "must be a function of the context, or an object with execute(ctx)"
    raise InvalidArgumentError("hook", hook, rule)


def _name_of(hook: Any) -> str:
    name = getattr(hook, "__name__", None)
    if type(name) is str and name != "<lambda>":
        return name
    if name is None and not hasattr(hook, "func"):
        return type(hook).__name__
    raise InvalidArgumentError("name", None, "must be given for a function without a name")


def _checked_name(name: Any) -> str:
    if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        rule = f"must be printable text of 1 to {MAX_NAME} characters"
        raise InvalidArgumentError("name", name, rule)
    return name


def _checked_priority(priority: Any, argument: str = "priority") -> int:
    if isinstance(priority, bool) or not isinstance(priority, int):
        rule = "must be an int, lower runs first" if argument == "priority" else "must be an int"
        raise InvalidArgumentError(argument, priority, rule)
    if not -_INT32 <= priority < _INT32:
        raise InvalidArgumentError(argument, priority, "must be from -2**31 to 2**31-1")
    return int(priority)


def _checked_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if type(timeout) not in (int, float) or not isfinite(timeout) or timeout <= 0:
        raise InvalidArgumentError("timeout", timeout, "must be seconds over 0, or None")
    return float(timeout)


def _checked_switch(argument: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidArgumentError(argument, value, "must be True or False")
    return value


def _checked_text(argument: str, value: Any) -> str:
    if type(value) is not str:
        raise InvalidArgumentError(argument, value, "must be text")
    return value


def checked_tags(tags: Any) -> tuple[str, ...]:
    """Return tags, which are several texts; anything else is an `InvalidArgumentError`."""
    several = not isinstance(tags, str | bytes) and isinstance(tags, Iterable)
    found = tuple(tags) if several else ()
    if not several or not all(type(tag) is str for tag in found):
        raise InvalidArgumentError("tags", tags, "must be several texts, such as a list of them")
    return found


def _checked_policy(policy: Any) -> OnFailure:
    try:
        return OnFailure(policy)
    except ValueError:
        rule = f"must be one of {', '.join(OnFailure)}"
        raise InvalidArgumentError("on_failure", policy, rule) from None


def _breaker_of(breaker: Any, timeout: float | None) -> CircuitBreaker | None:
    # Who says how long a hook may take has said what is slow: only what reaches it.
    slow_s = SLOW_S if timeout is None else timeout
    if breaker is False or breaker is None:
        return None
    if breaker is True:
        return CircuitBreaker(slow_s=slow_s)
    if isinstance(breaker, BreakerConfig):
        return CircuitBreaker(breaker, slow_s=slow_s)
    if isinstance(breaker, CircuitBreaker):
        return breaker
    rule = "must be a BreakerConfig, a CircuitBreaker, True or False"
    raise InvalidArgumentError("breaker", breaker, rule)
