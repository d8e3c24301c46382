"""Notes what replayable hooks are told, take and answer, while they run."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.inputs import LIVE, Recording
from llmspell_dist.hooks.kept import keep_error
from llmspell_dist.hooks.nesting import deeper, surface
from llmspell_dist.hooks.recording import Execution, as_result, keep_context
from llmspell_dist.hooks.running import Outcome, Pending
from llmspell_dist.ids import new_id

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.history_writer import HistoryWriter
    from llmspell_dist.hooks.results import HookResult

__all__ = ["Recorder", "Replayable", "Run", "watched"]

Secret = Callable[["HookContext"], bool]


class Replayable(Protocol):
    """What is to be known of a hook whose runs are recorded."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> str:
        """What its code is called: another version is another hook to a replay."""

    @property
    def retention_priority(self) -> int:
        """How much its runs are worth to be kept."""


@dataclass(slots=True)
class Run:
    """A run that has begun."""

    context: HookContext
    told: dict[str, Any]
    inputs: Recording
    started_at: datetime
    secret: bool
    correlated: bool
    waited_s: float | None = 0.0
    """How long it waited for room before the hook was called; None while it still waits."""

    def waited(self, seconds: float) -> None:
        """Note that the hook is called now, so long after there should have been room."""
        self.waited_s, self.started_at = seconds, datetime.now(UTC)


class Recorder:
    """Records the runs of replayable hooks.

    `secret` says of a context whether it is about something that may not lie around in the clear;
    in doubt it is. `blocking`: hooks run in threads that can wait.
    """

    def __init__(
        self,
        writer: HistoryWriter,
        secret: Secret,
        *,
        blocking: bool = False,
    ) -> None:
        self._writer = writer
        self._secret = secret
        self._blocking = blocking

    @property
    def full(self) -> bool:
        """Whether a hook should wait for room before it runs."""
        return self._writer.full

    def when_room(self, start: Callable[[], Any]) -> Any:
        """Start a hook when there is room for its run; return its `Outcome`, or await it.

        Room is waited for at most five seconds: then it runs, and is not recorded.
        """
        if self._blocking:
            self._writer.wait_for_room()
            came = _started(start)
            return came.function(*came.arguments) if type(came) is Pending else came
        return self._on_loop(start)

    async def _on_loop(self, start: Callable[[], Any]) -> Outcome:
        await self._writer.room()
        came = _started(start)
        if type(came) is Pending:
            outcome: Outcome = await came.function(*came.arguments)
            return outcome
        return came  # type: ignore[return-value]

    def begin(self, context: HookContext) -> Run:
        """Note what a hook is told, before it can change it, and what it takes from now on."""
        inputs = Recording()
        run = Run(
            context,
            keep_context(context),
            inputs,
            datetime.now(UTC),
            self.is_secret(context),
            context.correlation_id is not None,
        )
        context.inputs = inputs
        return run

    def end(
        self, run: Run, hook: Replayable, answer: HookResult | BaseException | None, seconds: float
    ) -> None:
        """Note what the hook answered, or raised, and have all of it written."""
        run.context.inputs = LIVE
        result = error = None
        if isinstance(answer, BaseException):
            error = keep_error(answer)
        else:
            try:
                result = as_result(answer)
            except (TypeError, SpellError) as wrong:
                error = keep_error(wrong)
        execution = Execution(
            new_id(),
            hook.name,
            hook.version,
            str(run.context.point),
            run.told["correlation_id"],
            run.told["causation_id"],
            run.started_at,
            round(seconds / timedelta(microseconds=1).total_seconds()),
            "error" if result is None else result.name,
            hook.retention_priority,
            run.secret,
            run.told,
            result,
            error,
            tuple(run.inputs.taken),
            run.correlated,
        )
        self._writer.put(execution)

    def is_secret(self, context: HookContext) -> bool:
        """Return whether a context is about something that may not lie around in the clear."""
        try:
            return self._secret(context)
        except (SpellError, TypeError, ValueError, KeyError, AttributeError):
            return True


def _started(start: Callable[[], Any]) -> Pending | Outcome:
    token = deeper()
    try:
        came = start()
    except (Exception, CancelledError) as error:  # noqa: BLE001 - a hook may raise anything
        return Outcome(None, error)
    finally:
        surface(token)
    return came if type(came) is Pending else Outcome(came)


def watched(pending: Pending, cut_off: Callable[[BaseException], None]) -> Pending:
    """Return what to wait for instead, so that `cut_off` is told if nobody waits to the end."""
    return Pending(_watched, (pending, cut_off))


def _watched(pending: Pending, cut_off: Callable[[BaseException], None]) -> Any:
    try:
        came = pending.function(*pending.arguments)
    except BaseException as error:
        cut_off(error)
        raise
    return _awaited(came, cut_off) if isawaitable(came) else came


async def _awaited(came: Awaitable[Any], cut_off: Callable[[BaseException], None]) -> Any:
    try:
        return await came
    except BaseException as error:
        cut_off(error)
        raise
