"""Runs one hook of this process for another one: with all that is asked before it runs at home."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llmspell_dist.hooks.calling import called
from llmspell_dist.hooks.kept import RecordedFailure, keep_error
from llmspell_dist.hooks.nesting import deeper, surface

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.hook import RegisteredHook
    from llmspell_dist.hooks.recorder import Recorder
    from llmspell_dist.hooks.results import HookResult
    from llmspell_dist.hooks.running import AsyncRunner

__all__ = ["Ran", "run_for_another"]

_CANCELLED: Final = RecordedFailure("CancelledError", "the process that ran it ended")


class Ran(NamedTuple):
    """What came of a hook."""

    result: HookResult | None = None
    error: RecordedFailure | None = None
    ran: bool = True


_LEFT_OUT: Final = Ran(
    error=RecordedFailure("HookError", "it is left out, for its circuit breaker is open"), ran=False
)


async def run_for_another(
    runner: AsyncRunner,
    hook: RegisteredHook,
    ctx: HookContext,
    limit_s: float,
    *,
    switched_on: Callable[[RegisteredHook], bool],
    recorder: Recorder | None,
) -> Ran:
    """Run a hook as its own process would: if it is switched on, wants to, and may.

    One that is switched off, or that does not want to, says to go on. One that its breaker leaves
    out has failed: whoever asked knows what becomes of the operation then.
    """
    if not switched_on(hook):
        return Ran(ran=False)
    breaker = hook.breaker
    if breaker is not None and not breaker.allows():
        hook.skipped += 1
        return _LEFT_OUT
    wants = _wants(hook, ctx)
    if wants is not True:
        if breaker is not None:
            breaker.gave_up()
        return Ran(error=wants, ran=False)
    record = recorder if hook.replayable else None
    run = None if record is None else record.begin(ctx)
    began = perf_counter()
    error: RecordedFailure | None = _CANCELLED
    result = None
    try:
        result, error = await called(runner, hook.call, ctx, limit_s)
    finally:
        took = perf_counter() - began
        if record is not None and run is not None:
            record.end(run, hook, result if error is None else error.error(), took)
        hook.durations.take(began + took, took)
        if error is not None:
            hook.failures += 1
    if breaker is not None:
        if error is None:
            breaker.succeeded(took)
        else:
            breaker.failed()
    return Ran(result, error)


def _wants(hook: RegisteredHook, ctx: HookContext) -> Literal[True] | RecordedFailure | None:
    """Return True if it wants to run, None if not, and what it raised if it could not say."""
    if hook.should_execute is None:
        return True
    token = deeper()
    try:
        return True if hook.should_execute(ctx) else None
    except Exception as error:  # noqa: BLE001 - a hook may raise anything
        hook.failures += 1
        return keep_error(error)
    finally:
        surface(token)
