"""Runs the hooks of a point, as steps: one implementation for both surfaces.

Hooks that end at once are called one after the other by `Executor.inline`, without a task, a timer
or a step. Only one that has to wait makes it a step: `Executor.run` yields a `Call` and goes on
where it stopped.
"""

from __future__ import annotations

import logging
import traceback
from asyncio import CancelledError
from collections.abc import Callable
from functools import partial
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.errors import SpellError
from llmspell_dist.hooks.errors import (
    FleetHookError,
    HookError,
    HookTimeoutError,
    InvalidHookResultError,
    OperationCancelledError,
)
from llmspell_dist.hooks.hook import OnFailure
from llmspell_dist.hooks.nesting import deeper, enter, inside, surface
from llmspell_dist.hooks.recorder import watched
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cancel,
    Fork,
    HookResult,
    Modified,
)
from llmspell_dist.hooks.running import Pending, Runner, TimeIsUpError, coroutine_of
from llmspell_dist.state.steps import Call, CallerLeftError

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.hook import RegisteredHook
    from llmspell_dist.hooks.recorder import Recorder, Run
    from llmspell_dist.hooks.registry import Chain
    from llmspell_dist.observation import Observer
    from llmspell_dist.state.steps import Steps

__all__ = ["Ended", "Executor", "Waiting"]

logger = logging.getLogger("llmspell_dist.hooks")
logger.addHandler(logging.NullHandler())

_MEASURED_EVERY: Final = 7
"""Of chains that only look, runs whose number has none of these bits are measured: one in eight."""
_DONE: Final = Pending(lambda: None, ())


class Ended(NamedTuple):
    """The result that ended a chain, and whose it was."""

    result: Any
    """Of a kind that its point allows."""
    hook: RegisteredHook


class Waiting(NamedTuple):
    """A hook that has to wait: what to call for its outcome, and where the chain goes on."""

    pending: Pending
    place: int
    hook: RegisteredHook
    started: float
    before: Run | None

    @property
    def began(self) -> float:
        """When the hook was called: the wait for room in the history is not its doing."""
        return self.started if self.before is None else self.started + (self.before.waited_s or 0)


class _Failed(NamedTuple):
    """A hook that raised."""

    error: BaseException


class Executor:
    """Runs chains of hooks; `recorder`, if set, is told of every run of a replayable hook."""

    def __init__(self, runner: Runner, *, clock: Callable[[], float] = perf_counter) -> None:
        self.runner = runner
        self.recorder: Recorder | None = None
        self.observer: Observer | None = None
        """Is told of the runs inside what is traced."""
        self._clock = clock

    # --- whole chains

    def run(self, chain: Chain, context: HookContext) -> Steps[Ended | None]:
        """Run the hooks of a chain; None if all said to go on, else what ended it.

        What hooks modified is in ``context.data`` then, what they forked in `context.forks`. A
        hook's failure is raised only if that is its policy: `OperationCancelledError`, `HookError`.
        """
        came = yield from self.go_on(chain, context, self.inline(chain, context))
        failure, context.failure = context.failure, None
        if failure is not None:
            raise failure
        return came

    def go_on(
        self, chain: Chain, context: HookContext, came: Ended | Waiting | None
    ) -> Steps[Ended | None]:
        """Go on with a chain of which `inline` gave this.

        Behind a write an error of a hook is in `context.failure` then: the others must run first.
        """
        while type(came) is Waiting:
            pending = came.pending
            if came.before is not None:
                pending = watched(pending, partial(self._cut_off, came))
            try:
                outcome = yield Call(pending.function, pending.arguments)
            except CallerLeftError:
                if not chain.behind:
                    raise
                came = self._left(chain, context, came)
            else:
                came = self.after(chain, context, came, outcome)
        return came  # type: ignore[return-value]

    def _left(self, chain: Chain, context: HookContext, waited: Waiting) -> Ended | Waiting | None:
        """Go on with a chain behind a hook that was cancelled with its caller.

        That is no failure of the hook, and the others are to see the write.
        """
        if context.is_apart:
            context.undo()
        else:
            context.leave()  # it may not have let itself be cancelled
        if waited.hook.breaker is not None:
            waited.hook.breaker.gave_up()
        return self._rest(chain, context, waited.place + 1)

    def inline(self, chain: Chain, context: HookContext) -> Ended | Waiting | None:
        """Run hooks until one ends the chain or has to wait."""
        if not chain.direct:
            return self._rest(chain, context, 0)
        ring = chain.ring
        observer = self.observer
        if observer is not None and observer.recording():
            return self._measured(chain, context, observer)
        if not chain.quiet or not ring.runs & _MEASURED_EVERY:
            return self._measured(chain, context)
        # Nearly always: functions that say nothing. A set is some 25 µs, so each step counts here.
        clock = self._clock
        context.turn = calls = iter(chain.calls)
        result: Any = None
        failure: BaseException | None = None
        token = deeper() if inside() else enter(1)
        began = clock()
        try:
            for call in calls:
                result = call(context)
                if result is not None and result is not CONTINUE:
                    break
        except (Exception, CancelledError) as error:  # noqa: BLE001 - a hook may raise anything
            failure = error
        finally:
            surface(token)
        ended = clock()
        if failure is None and (result is None or result is CONTINUE):
            ring.runs += 1
            if ended - began >= chain.slow_s:
                chain.quiet = False  # from now on we know which one it is
            return None
        chain.quiet = False
        # How long those before took is not known: as good as nothing, they have never been slow.
        place = len(chain.calls) - length_hint(calls) - 1
        marks = [began] * (place + 1)
        if failure is None:
            marks.append(ended)
        return self._cut_short(chain, context, result, failure, marks)

    def _measured(
        self, chain: Chain, context: HookContext, observer: Observer | None = None
    ) -> Ended | Waiting | None:
        """Run hooks, and read the clock after each; what it says is worked out later."""
        clock = self._clock
        result: Any = None
        failure: BaseException | None = None
        token = deeper()
        marks = [clock()]
        mark = marks.append
        context.turn = calls = iter(chain.calls)
        try:
            for call in calls:
                result = call(context)
                mark(clock())
                if result is not None and result is not CONTINUE:
                    break
        except (Exception, CancelledError) as error:  # noqa: BLE001 - a hook may raise anything
            failure = error
        finally:
            surface(token)
        if marks[-1] - marks[0] >= chain.slow_s:
            chain.quiet = False
            self._find_slow(chain, marks)
        if failure is None and (result is None or result is CONTINUE):
            chain.ring.runs += 1
            chain.ring.take(marks)
            if observer is not None:
                for hook, began, ended in zip(chain.hooks, marks, marks[1:], strict=False):
                    _tell(observer, hook, began, ended)
            return None
        chain.quiet = False
        return self._cut_short(chain, context, result, failure, marks)

    def _cut_short(
        self,
        chain: Chain,
        context: HookContext,
        result: Any,
        error: BaseException | None,
        marks: list[float],
    ) -> Ended | Waiting | None:
        """Go on with a chain in which a hook failed or said something: slower from here on."""
        place = len(marks) - (1 if error is not None else 2)
        hook = chain.hooks[place]
        for earlier, began, ended in zip(chain.hooks[:place], marks, marks[1:], strict=False):
            earlier.durations.take(ended, ended - began)
            if self.observer is not None and self.observer.recording():
                _tell(self.observer, earlier, began, ended)
        run = Waiting(_DONE, place, hook, marks[place], None)
        if error is not None:
            self._ended_badly(chain, context, run, error)
            came = None
        else:
            came = self._begun(chain, context, run, result)
        return self._rest(chain, context, place + 1) if came is None else came

    def _rest(self, chain: Chain, context: HookContext, place: int) -> Ended | Waiting | None:
        """Run the hooks of a chain from a place on, with every question asked."""
        for at in range(place, len(chain.hooks)):
            came = self._guarded(chain, context, at)
            if came is not None:
                return came
        context.turn = None
        if context.failure is not None:
            return Ended(CONTINUE, chain.hooks[-1])
        return None

    def _find_slow(self, chain: Chain, marks: list[float]) -> None:
        for hook, began, ended in zip(chain.hooks, marks, marks[1:], strict=False):
            if ended - began >= hook.slow_s:
                self._was_slow(hook, chain, ended - began)

    def after(
        self, chain: Chain, context: HookContext, waited: Waiting, outcome: Any
    ) -> Ended | Waiting | None:
        """Go on with a chain behind a hook that had to wait."""
        result, error = outcome
        if error is not None:
            self._ended_badly(chain, context, waited, error)
        else:
            over = self._ran(chain, context, waited, result, self._clock())
            if over is not None:
                return over
        return self._rest(chain, context, waited.place + 1)

    # --- one hook

    def _guarded(self, chain: Chain, context: HookContext, place: int) -> Ended | Waiting | None:
        """Run one hook, with all that has to be asked, noted or waited for."""
        hook = chain.hooks[place]
        context.turn = iter(())
        breaker = hook.breaker
        if breaker is not None and not breaker.allows():
            hook.skipped += 1
            if hook.fails_closed:
                said = "it is left out, for its circuit breaker is open"
                self._stop(hook, chain, context, said, None)
            return None
        run = Waiting(_DONE, place, hook, self._clock(), None)
        token = deeper()
        try:
            if hook.should_execute is not None and not hook.should_execute(context):
                if breaker is not None:
                    breaker.gave_up()
                return None
            if hook.replayable and self.recorder is not None:
                before = self._begin_record(context)
                run = run._replace(before=before, started=self._clock())
                if before is not None and self.recorder.full:
                    before.waited_s = None
                    start = partial(self._started, run, before, context)
                    pending = Pending(self.recorder.when_room, (start,))
                    return run._replace(pending=pending)
            result = self._called(hook, context)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - a hook may raise anything
            result = _Failed(error)
        finally:
            surface(token)
        return self._begun(chain, context, run, result)

    def _called(self, hook: RegisteredHook, context: HookContext) -> Any:
        if hook.threaded:
            return self.runner.threaded(hook.call, context.apart(), hook.limit_s)
        return hook.call(context)

    def _started(self, waited: Waiting, before: Run, context: HookContext) -> Any:
        """Call a hook for which there is room, and take its first step."""
        before.waited(self._clock() - waited.started)
        result = self._called(waited.hook, context)
        work = coroutine_of(result)
        return result if work is None else self.runner.begin(work, waited.hook.limit_s)

    def _begun(
        self, chain: Chain, context: HookContext, run: Waiting, result: Any
    ) -> Ended | Waiting | None:
        """Judge what a hook gave; if that is a coroutine, what comes of its first step."""
        work = coroutine_of(result)
        if work is not None:
            token = deeper()
            try:
                result = self.runner.begin(work, run.hook.limit_s)
            except (Exception, CancelledError) as error:  # noqa: BLE001 - a hook may raise anything
                result = _Failed(error)
            finally:
                surface(token)
        if type(result) is Pending:
            return run._replace(pending=result)
        if type(result) is _Failed:
            self._ended_badly(chain, context, run, result.error)
            return None
        return self._ran(chain, context, run, result, self._clock())

    def _cut_off(self, run: Waiting, error: BaseException) -> None:
        """Record a hook whose caller was cancelled while it ran: it may have done something."""
        if run.before is not None and run.before.waited_s is not None:
            self._record(run.before, run.hook, error, self._clock() - run.began)

    def _ended_badly(
        self, chain: Chain, context: HookContext, run: Waiting, error: BaseException
    ) -> None:
        if isinstance(error, TimeIsUpError) and not context.is_apart:
            context.leave()
        else:
            context.undo()
        ended = self._clock()
        if self.observer is not None and self.observer.recording():
            code = error.code if isinstance(error, SpellError) else type(error).__qualname__
            _tell(self.observer, run.hook, run.began, ended, code)
        self._record(run.before, run.hook, error, ended - run.began)
        run.hook.durations.take(ended, ended - run.began)
        self._failed(run.hook, chain, context, error)

    def _ran(
        self, chain: Chain, context: HookContext, ran: Waiting, result: Any, ended: float
    ) -> Ended | None:
        """Note that a hook ended well, and judge what it answered."""
        hook, began = ran.hook, ran.began
        took = ended - began
        if self.observer is not None and self.observer.recording():
            _tell(self.observer, hook, began, ended)
        context.rejoin()
        hook.durations.take(ended, took)
        answer = CONTINUE if result is None else result
        self._record(ran.before, hook, answer, took)
        if took >= hook.slow_s:
            self._was_slow(hook, chain, took)
        elif hook.breaker is not None:
            hook.breaker.succeeded(took)
        return self._judged(chain, context, hook, answer)

    def _judged(
        self, chain: Chain, context: HookContext, hook: RegisteredHook, result: Any
    ) -> Ended | None:
        """Carry out what goes on, return what ends the chain, refuse what the point forbids."""
        kind = type(result)
        if kind not in chain.allowed:
            said = _not_allowed(chain, result)
            context.undo()
            self._raise(chain, context, InvalidHookResultError(hook.name, chain.point, said))
            return None
        if kind is Modified:
            if chain.names_fixed and not context.data.keys() >= result.data.keys():
                strange = ", ".join(sorted(map(str, result.data.keys() - context.data.keys())))
                known = ", ".join(sorted(map(str, context.data)))
                said = f"it modified {strange}; the data here has {known}"
                self._raise(chain, context, InvalidHookResultError(hook.name, chain.point, said))
                return None
            context.data.update(result.data)
            context.modified_by = hook.name
            return None
        if kind is Fork:
            context.fork(hook.name, result)
            return None
        if result.should_continue:
            return None
        if kind is Cancel:
            hook.cancelled += 1
        return Ended(result, hook)

    # --- failures

    def _was_slow(self, hook: RegisteredHook, chain: Chain, took: float) -> None:
        if hook.breaker is not None:
            hook.breaker.succeeded(took)
        if took >= hook.limit_s:
            hook.timeouts += 1
            logger.warning(
                "hook %s at %s took %.0f ms, its limit is %.0f ms",
                *(hook.name, chain.point, took * 1000, hook.limit_s * 1000),
            )

    def _failed(
        self, hook: RegisteredHook, chain: Chain, context: HookContext, error: BaseException
    ) -> None:
        """Note that a hook failed, and do what its policy says."""
        hook.failures += 1
        if hook.breaker is not None:
            hook.breaker.failed()
        if isinstance(error, TimeIsUpError):
            hook.timeouts += 1
            reason = f"it had not ended after {hook.limit_s:g} s"
        else:
            reason = _described(error)
        logger.warning("hook %s at %s failed: %s", hook.name, chain.point, reason)
        if hook.fails_closed:
            self._stop(hook, chain, context, reason, error)

    def _stop(
        self,
        hook: RegisteredHook,
        chain: Chain,
        context: HookContext,
        reason: str,
        error: BaseException | None,
    ) -> None:
        hook.cancelled += 1
        if isinstance(error, FleetHookError):
            reason = error.reason  # it says which process, and why
        failure: SpellError
        if hook.on_failure is OnFailure.CANCEL:
            failure = OperationCancelledError(hook.name, chain.point, reason)
        elif isinstance(error, TimeIsUpError):
            failure, error = HookTimeoutError(hook.name, chain.point, reason), None
        else:
            failure = HookError(hook.name, chain.point, reason)
        failure.__cause__ = error
        self._raise(chain, context, failure)

    @staticmethod
    def _raise(chain: Chain, context: HookContext, failure: SpellError) -> None:
        """Raise a hook's failure; behind a write when all the others have run."""
        if not chain.behind:
            raise failure
        if context.failure is None:
            context.failure = failure

    def _begin_record(self, context: HookContext) -> Run | None:
        if self.recorder is None:
            return None
        try:
            return self.recorder.begin(context)
        except Exception as error:  # noqa: BLE001 - the hook does not depend on it
            logger.warning("a run of a hook is not recorded: %s", _described(error))
            return None

    def _record(
        self,
        before: Run | None,
        hook: RegisteredHook,
        answer: HookResult | BaseException,
        took: float,
    ) -> None:
        if before is None or self.recorder is None:
            return
        try:
            self.recorder.end(before, hook, answer, took)
        except Exception as error:  # noqa: BLE001 - the operation does not depend on it
            logger.warning("a run of hook %s was not recorded: %s", hook.name, _described(error))


def _tell(
    observer: Observer,
    hook: RegisteredHook,
    began: float,
    ended: float,
    error: str | None = None,
) -> None:
    said = {"llmspell.hook.name": hook.name, "llmspell.hook.point": hook.point}
    observer.ran("hook.run", said, began, ended, error)


def _not_allowed(chain: Chain, result: Any) -> str:
    allowed = ", ".join(sorted(one.__name__ for one in chain.allowed))
    if isinstance(result, HookResult):
        return f"it answered {type(result).__name__}; allowed here: {allowed}"
    return f"it returned {type(result).__name__}, no hook result; allowed here: {allowed}, or None"


def _described(error: BaseException) -> str:
    """Return an error's type and place; never its message, which may hold the data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{where}"
