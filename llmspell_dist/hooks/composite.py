"""Several hooks as one: in sequence, side by side, the first that says something, by vote.

Each is a hook itself, so they can be put into one another. As long as their parts are plain
functions, so are they; with a coroutine among them they become one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from inspect import isawaitable
from typing import Any, Final, NamedTuple, cast

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.effects import STATE_POINTS
from llmspell_dist.hooks.hook import HookMetadata, RegisteredHook
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cancel,
    Continue,
    Fork,
    HookResult,
    Modified,
    Skipped,
)

__all__ = ["FirstMatch", "Parallel", "Sequential", "TieBreaker", "Voting"]

logger = logging.getLogger("llmspell_dist.hooks")
_QUIET: Final = (Continue, Skipped)
_ROUNDING: Final = 1e-9
"""0.55 of 20 votes is 11 of them, and a little more in floats."""


class _Failed(NamedTuple):
    part: RegisteredHook
    error: Exception


_Vote = HookResult | _Failed


class _Composite:
    """What all compositions share: their parts, and running one."""

    def __init__(self, *hooks: Any, name: str | None = None) -> None:
        if not hooks:
            raise InvalidArgumentError("hooks", hooks, "must be at least one")
        self.parts = tuple(
            # The point does not matter: a part is only called.
            RegisteredHook(HookPoint.SYSTEM_STARTUP, hook, name=f"part {place}", breaker=False)
            for place, hook in enumerate(hooks, 1)
        )
        self.metadata = HookMetadata(name=type(self).__name__ if name is None else name)

    def _call(self, part: RegisteredHook, context: HookContext) -> Any:
        if part.should_execute is not None and not part.should_execute(context):
            return CONTINUE
        return part.call(context)

    def _checked(self, part: RegisteredHook, result: Any) -> HookResult:
        if result is None:
            return CONTINUE
        if not isinstance(result, HookResult):
            said = f"{self.metadata.name}: {part.name} returned {type(result).__name__}"
            raise TypeError(f"{said}, no hook result")
        return result

    def _each(
        self,
        contexts: Iterable[HookContext],
        take: Callable[[HookResult], HookResult | None],
        last: Callable[[], HookResult],
    ) -> Any:
        """Call the parts one by one until `take` gives what they come to."""
        waiting = iter(zip(self.parts, contexts, strict=False))
        for part, context in waiting:
            result = self._call(part, context)
            if isawaitable(result) and not isinstance(result, HookResult):
                return self._each_awaited(part, result, waiting, take, last)
            done = take(self._checked(part, result))
            if done is not None:
                return done
        return last()

    async def _each_awaited(
        self,
        part: RegisteredHook,
        result: Awaitable[Any],
        waiting: Iterable[tuple[RegisteredHook, HookContext]],
        take: Callable[[HookResult], HookResult | None],
        last: Callable[[], HookResult],
    ) -> HookResult:
        done = take(self._checked(part, await result))
        if done is not None:
            return done
        for following, context in waiting:
            given = self._call(following, context)
            if isawaitable(given) and not isinstance(given, HookResult):
                given = await given
            done = take(self._checked(following, given))
            if done is not None:
                return done
        return last()

    def _all(self, context: HookContext, combine: Callable[[list[_Vote]], HookResult]) -> Any:
        """Call all parts, each with data of its own, coroutines at the same time.

        A part that fails does not keep the others from being asked; `combine` sees that it failed.
        """
        results = [self._asked(part, _apart(context)) for part in self.parts]
        if any(isawaitable(one) and not isinstance(one, HookResult) for one in results):
            return self._all_awaited(results, combine)
        return combine(results)

    def _asked(self, part: RegisteredHook, context: HookContext) -> Any:
        """Call one part; a coroutine is returned as what comes to its answer."""
        try:
            result = self._call(part, context)
            if isawaitable(result) and not isinstance(result, HookResult):
                return self._answered(part, result)
            return self._checked(part, result)
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            return _Failed(part, error)

    async def _answered(self, part: RegisteredHook, result: Awaitable[Any]) -> _Vote:
        try:
            return self._checked(part, await result)
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            return _Failed(part, error)

    async def _all_awaited(
        self, results: list[Any], combine: Callable[[list[_Vote]], HookResult]
    ) -> HookResult:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_given(one)) for one in results]
        return combine([task.result() for task in tasks])

    def _unless_failed(self, results: list[_Vote]) -> list[HookResult]:
        """Return all answers, or raise what the first part failed with."""
        for result in results:
            if isinstance(result, _Failed):
                raise result.error
        return cast("list[HookResult]", results)


def _apart(context: HookContext) -> HookContext:
    """Return a context with data of its own; what hooks tell themselves for later is kept."""
    own = context.child(context.point)
    own.metadata = context.metadata
    return own


async def _given(result: Any) -> Any:
    return await result if isawaitable(result) else result


class _Sum:
    """Adds up what goes on: modifications as one, forks as one."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.forks: list[Fork] = []

    def add(self, result: HookResult) -> None:
        if isinstance(result, Modified):
            self.data.update(result.data)
        elif isinstance(result, Fork):
            self.forks.append(result)

    def result(self, context: HookContext) -> HookResult:
        strange = context.point in STATE_POINTS and not context.data.keys() >= self.data.keys()
        if not self.forks or strange:  # whoever judges the sum refuses what is strange
            return Modified(self.data) if self.data else CONTINUE
        context.data.update(self.data)
        return self.forks[0] if len(self.forks) == 1 else Fork.joined(self.forks)


class Sequential(_Composite):
    """One after the other, each with what the one before made of the data, until one ends it."""

    def execute(self, ctx: HookContext) -> Any:
        """Return what ended it, or all modifications and forks as one."""
        total, before = _Sum(), dict(ctx.data)

        def take(result: HookResult) -> HookResult | None:
            if not result.should_continue:
                for fork in total.forks:  # as where each stands at the point by itself
                    ctx.fork(self.metadata.name, fork)
                return result
            total.add(result)
            if isinstance(result, Modified):
                _merge(ctx, result, before)
            return None

        return self._each([ctx] * len(self.parts), take, lambda: total.result(ctx))


def _merge(context: HookContext, result: Modified, before: dict[str, Any]) -> None:
    """Let the next part see it; names that must not be there are left to who judges the sum."""
    any_name = context.point not in STATE_POINTS
    for name, value in result.data.items():
        if any_name or name in before:
            context.data[name] = value


class Parallel(_Composite):
    """All of them, none seeing what another did: the first in their order that ends it counts.

    If none does: all modifications (the later part's where two name the same) and forks as one.
    If a part fails, so does the whole; but a `Cancel` of another part counts all the same.
    """

    def execute(self, ctx: HookContext) -> Any:
        """Return what they come to."""

        def combine(votes: list[_Vote]) -> HookResult:
            failed = [one for one in votes if isinstance(one, _Failed)]
            refusal = next((one for one in votes if isinstance(one, Cancel)), None)
            if failed and refusal is not None:
                kinds = ", ".join(f"{one.part.name}: {type(one.error).__name__}" for one in failed)
                logger.warning("%s refused, and failed in part: %s", self.metadata.name, kinds)
                return refusal
            results = self._unless_failed(votes)
            for result in results:
                if not result.should_continue:
                    return result
            total = _Sum()
            for result in results:
                total.add(result)
            return total.result(ctx)

        return self._all(ctx, combine)


class FirstMatch(_Composite):
    """One after the other until one says more than to go on; the others are not asked."""

    def execute(self, ctx: HookContext) -> Any:
        """Return what the first said that said anything."""

        def take(result: HookResult) -> HookResult | None:
            return None if isinstance(result, _QUIET) else result

        return self._each([ctx] * len(self.parts), take, lambda: CONTINUE)


class TieBreaker(StrEnum):
    """What wins if several answers have equally many votes."""

    FIRST_RESULT = "first_result"
    """That of the earliest part."""
    PREFER_CONTINUE = "prefer_continue"
    """To go on, if that is among them."""
    PREFER_ACTION = "prefer_action"
    """The earliest that is not to go on."""
    BY_PRIORITY = "by_priority"
    """That of the part whose metadata has the lowest priority."""


class Voting(_Composite):
    """All of them have a vote; equal answers add up, and the one with enough of them counts.

    `threshold`: the share of all votes that it needs, over 0 and at most 1. If none has it, the
    operation goes on. Answers are equal if they are of one kind and their parts are equal; every
    `Cancel` is one kind of vote, whatever its reason, and the one that wins gives all reasons.
    """

    def __init__(
        self,
        *hooks: Any,
        threshold: float = 0.5,
        tie_breaker: TieBreaker | str = TieBreaker.FIRST_RESULT,
        name: str | None = None,
    ) -> None:
        super().__init__(*hooks, name=name)
        if type(threshold) not in (int, float) or not 0 < threshold <= 1:
            raise InvalidArgumentError("threshold", threshold, "must be over 0 and at most 1")
        try:
            self.tie_breaker = TieBreaker(tie_breaker)
        except ValueError:
            rule = f"must be one of {', '.join(TieBreaker)}"
            raise InvalidArgumentError("tie_breaker", tie_breaker, rule) from None
        self.threshold = threshold

    def execute(self, ctx: HookContext) -> Any:
        """Return the answer that won."""
        return self._all(ctx, self._elected)

    def _elected(self, given: list[_Vote]) -> HookResult:
        results = self._unless_failed(given)
        refusals = [one.reason for one in results if isinstance(one, Cancel)]
        refusal = Cancel("; ".join(dict.fromkeys(refusals))) if refusals else None
        votes: list[tuple[HookResult, list[int]]] = []
        for place, result in enumerate(results):
            answer = CONTINUE if isinstance(result, _QUIET) else result
            if isinstance(answer, Cancel):
                answer = cast("Cancel", refusal)
            for other, places in votes:
                if type(other) is type(answer) and other == answer:
                    places.append(place)
                    break
            else:
                votes.append((answer, [place]))
        most = max(len(places) for _, places in votes)
        if most < self.threshold * len(results) - _ROUNDING:
            return CONTINUE
        return self._untied([one for one in votes if len(one[1]) == most])

    def _untied(self, tied: list[tuple[HookResult, list[int]]]) -> HookResult:
        answers = [answer for answer, _ in tied]
        if self.tie_breaker is TieBreaker.PREFER_CONTINUE and CONTINUE in answers:
            return CONTINUE
        if self.tie_breaker is TieBreaker.PREFER_ACTION:
            return next((one for one in answers if one is not CONTINUE), CONTINUE)
        if self.tie_breaker is TieBreaker.BY_PRIORITY:
            return min(tied, key=lambda one: min(self.parts[at].priority for at in one[1]))[0]
        return answers[0]
