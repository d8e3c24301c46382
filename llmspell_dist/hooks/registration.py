"""Registering hooks and looking at them: the part of `Hooks` that is the same on both surfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any, TypeVar

from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.hooks.breaker import BreakerConfig, CircuitBreaker
from llmspell_dist.hooks.hook import HookStats, OnFailure, RegisteredHook
from llmspell_dist.hooks.nesting import nested
from llmspell_dist.hooks.points import HookPoint, point_of
from llmspell_dist.hooks.registry import HookCounts, Registry

__all__ = ["Registration", "checked_wait"]

F = TypeVar("F")


class Registration:
    """Hooks by point: register, switch, remove, look at."""

    def __init__(self) -> None:
        self._registry = Registry()
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the client is closed: no hook runs any more")

    def register(
        self,
        point: HookPoint | str,
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
    ) -> RegisteredHook:
        """Run a hook at a point from now on, in this process.

        `hook`: a function of the `HookContext`, or an object with `execute(ctx)`, plain or
        coroutine; it returns a `HookResult` or None. `name`: by default the function's or what the
        object's `metadata` says; one per point. `priority`: lower runs first, at equal priority who
        was registered first. `timeout`, in seconds: at the limit the operation goes on, and what
        the hook may still return has no effect; a plain function then runs in a thread. Without
        one a coroutine has 100 ms; a plain function runs in line and cannot be interrupted.
        `on_failure`: what becomes of the operation if the hook raises, runs out of time or is left
        out by its breaker: "ignore" (it goes on), "cancel" (`OperationCancelledError`: for whatever
        guards something) or "raise" (`HookError`). `queued`: behind the operation, which does not
        wait; only at points that follow something. `breaker`: when it is left out for a while;
        False: never. `replayable`: every run is recorded, to be looked at and replayed (see
        `HookHistory`); `retention_priority` says how much those runs are worth to be kept.

        Raises `DuplicateHookError`, `UnknownHookPointError`, `InvalidArgumentError`; `ClosedError`
        once the client is closed.
        """
        return self.add(
            RegisteredHook(
                point_of(point),
                hook,
                name=name,
                priority=priority,
                timeout=timeout,
                on_failure=on_failure,
                queued=queued,
                language=language,
                tags=tags,
                version=version,
                breaker=breaker,
                replayable=replayable,
                retention_priority=retention_priority,
            )
        )

    def add(self, hook: RegisteredHook) -> RegisteredHook:
        """Run a hook that was made already; as `register`."""
        self._check_open()
        return self._registry.add(hook)

    def on(self, point: HookPoint | str, **how: Any) -> Callable[[F], F]:
        """Register the decorated function, or an object of the decorated class; as `register`."""

        def decorate(hook: F) -> F:
            self.register(point, hook() if isinstance(hook, type) else hook, **how)
            return hook

        return decorate

    def register_bulk(
        self, hooks: Iterable[tuple[HookPoint | str, Any] | Mapping[str, Any]]
    ) -> list[RegisteredHook]:
        """Register several, all or none: pairs of point and hook, or arguments of `register`."""
        done: list[RegisteredHook] = []
        try:
            for one in hooks:
                if isinstance(one, Mapping):
                    done.append(self.register(**one))
                else:
                    done.append(self.register(*_pair_of(one)))
        except BaseException:
            for hook in done:
                self._registry.discard(hook)
            raise
        return done

    def unregister(self, name: str, point: HookPoint | str | None = None) -> int:
        """Take the hook of a name away, at one point or at all; return at how many it was.

        `HookNotFoundError` if there is none; as of `enable` and `disable`.
        """
        return self._registry.remove(name, point)

    def discard(self, hook: RegisteredHook) -> bool:
        """Take just this hook away, not another one of its name; return whether it was there."""
        return self._registry.discard(hook)

    @contextmanager
    def replacing(self, name: str, point: HookPoint | str) -> Iterator[None]:
        """Have a hook away while another one of its name is put in its place.

        If the block raises, the hook is there again; `HookNotFoundError` if there is none.
        """
        before = self.find(name, point)
        self.unregister(name, point)
        try:
            yield
        except BaseException:
            if before is not None and self.find(name, point) is None:
                self.add(before)
            raise

    def clear(self, point: HookPoint | str | None = None) -> int:
        """Take all hooks of a point away, or all; return how many there were."""
        return self._registry.clear(point)

    def enable(self, name: str, point: HookPoint | str | None = None) -> None:
        """Let a hook run again."""
        self._registry.switch(name, point, enabled=True)

    def disable(self, name: str, point: HookPoint | str | None = None) -> None:
        """Keep a hook registered and do not run it."""
        self._registry.switch(name, point, enabled=False)

    @property
    def enabled(self) -> bool:
        """Whether hooks run at all in this client; can be set."""
        return self._registry.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if type(enabled) is not bool:
            raise InvalidArgumentError("enabled", enabled, "must be True or False")
        self._registry.enabled = enabled

    def get_hooks(
        self,
        point: HookPoint | str | None = None,
        *,
        language: str | None = None,
        priority: tuple[int, int] | None = None,
    ) -> list[RegisteredHook]:
        """Return hooks, at a point in the order in which they run, with the disabled ones.

        Of a language, or of a range of priorities (lowest, highest; both included), if given.
        """
        hooks = self._registry.all() if point is None else self._registry.at(point)
        if priority is not None:
            lowest, highest = _range_of(priority)
            hooks = [hook for hook in hooks if lowest <= hook.priority <= highest]
        return [hook for hook in hooks if language in (None, hook.language)]

    def find(self, name: str, point: HookPoint | str) -> RegisteredHook | None:
        """Return the hook of a name at a point, if there is one."""
        return next((hook for hook in self._registry.at(point) if hook.name == name), None)

    def stats(self) -> dict[str, list[HookStats]]:
        """Return how every hook has done so far, by point."""
        return self._registry.stats()

    def counts(self) -> dict[tuple[str, str], HookCounts]:
        """Return how often hooks have run, failed and been left out so far, by name and point.

        Those count too that were taken away, up to a thousand names: no figure goes down.
        """
        return self._registry.counts()

    def report(self) -> str:
        """Return the figures of all hooks as a table; times in milliseconds."""
        lines = [f"{'point':<24} {'hook':<24} {'runs':>8} {'failed':>7} {'p50':>8} {'p99':>8}"]
        for point, hooks in sorted(self.stats().items()):
            for one in hooks:
                timing = one.timing
                lines.append(
                    f"{point:<24} {one.name:<24} {timing.count:>8} {one.failures:>7}"
                    f" {timing.p50 * 1000:>8.3f} {timing.p99 * 1000:>8.3f}"
                )
        return "\n".join(lines)

    nested = staticmethod(nested)


def checked_wait(timeout: Any) -> float | None:
    """Return how long to wait, in seconds; None is without end."""
    if timeout is None:
        return None
    if type(timeout) not in (int, float) or not isfinite(timeout) or timeout < 0:
        raise InvalidArgumentError("timeout", timeout, "must be seconds from 0 on, or None")
    return float(timeout)


def _pair_of(one: Any) -> tuple[Any, Any]:
    if not isinstance(one, tuple) or len(one) != 2:
        rule = "must be pairs of point and hook, or mappings of register's arguments"
        raise InvalidArgumentError("hooks", one, rule)
    return one


def _range_of(priority: Any) -> tuple[int, int]:
    if not isinstance(priority, tuple) or len(priority) != 2:
        raise InvalidArgumentError("priority", priority, "must be a pair: lowest, highest")
    for name, value in zip(("lowest", "highest"), priority, strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArgumentError(name, value, "must be an int")
    lowest, highest = priority
    if lowest > highest:
        rule = f"must be a range: lowest {lowest:,} is over highest {highest:,}"
        raise InvalidArgumentError("priority", priority, rule)
    return lowest, highest
