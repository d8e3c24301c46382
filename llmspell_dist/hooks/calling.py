"""Calls a hook outside of a chain: for a replay, or because another process asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any

from llmspell_dist.hooks.kept import RecordedFailure, keep_error
from llmspell_dist.hooks.nesting import deeper, surface
from llmspell_dist.hooks.recording import as_result
from llmspell_dist.hooks.running import (
    AsyncRunner,
    Pending,
    TimeIsUpError,
    cancellations,
    is_own_cancellation,
)

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.results import HookResult

__all__ = ["called"]


async def called(
    runner: AsyncRunner, call: Callable[[HookContext], Any], ctx: HookContext, limit_s: float
) -> tuple[HookResult | None, RecordedFailure | None]:
    """Return what a hook answers, or the error that it raises, as data.

    A plain function runs in a thread of its own, so that one that does not end can be left alone.
    Hooks do not run for what it does, as in a chain.
    """
    token, asked = deeper(), cancellations()
    try:
        if iscoroutinefunction(call):
            came: Any = runner.begin(call(ctx), limit_s)
        else:
            came = runner.threaded(call, ctx, limit_s)
        if type(came) is Pending:
            outcome = await came.function(*came.arguments)
            if isinstance(outcome.error, TimeIsUpError):
                raise outcome.error  # noqa: TRY301 - it was the hook's
            if outcome.error is not None:  # in a thread, it may be no `Exception`
                return None, keep_error(outcome.error)
            came = outcome.result
        if isawaitable(came):
            came = await asyncio.wait_for(came, limit_s)
        return as_result(came), None
    except TimeIsUpError:
        return None, RecordedFailure("TimeoutError", f"it had not ended after {limit_s:g} s")
    except (Exception, asyncio.CancelledError) as error:
        if is_own_cancellation(error, asked):
            raise
        return None, keep_error(error)
    finally:
        surface(token)
