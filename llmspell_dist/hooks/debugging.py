"""A debugging session: recorded executions run again one by one, with breakpoints that stop it."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.errors import DebugSessionOverError, NotReplayableError
from llmspell_dist.hooks.kept import keep, keep_error
from llmspell_dist.hooks.modifications import Modification, modifications_of, modified
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.recording import Execution, rebuild_context
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, Replayed, ReplayMode

if TYPE_CHECKING:
    from llmspell_dist.hooks.context import HookContext
    from llmspell_dist.hooks.replaying import Replayer

__all__ = ["Breakpoint", "CapturedState", "DebugSession", "Stop", "TimelineEntry"]

logger = logging.getLogger("llmspell_dist.hooks")

MAX_STATES: Final = 1000
Action = Literal["pause", "log", "modify", "skip"]
_ACTIONS: Final = ("pause", "log", "modify", "skip")


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """Where a session does something: at executions of which all that is given here is true.

    `on_error` looks after the hook ran, at whether it raised; all others look before.
    """

    hook: str | None = None
    point: str | None = None
    execution_id: str | None = None
    on_error: bool = False
    when: Callable[[Execution, HookContext], bool] | None = None
    """A function of the execution and of the context that the hook is about to be told."""
    action: Action = "pause"
    """``pause`` stops there, ``log`` writes a line, ``modify`` applies `changes`, ``skip`` does
    not run the hook."""
    changes: Mapping[str, Any] | Sequence[Modification] = ()

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            rule = f"must be one of {', '.join(_ACTIONS)}"
            raise InvalidArgumentError("action", self.action, rule)
        object.__setattr__(self, "changes", modifications_of(self.changes))
        if bool(self.changes) != (self.action == "modify"):
            raise InvalidArgumentError("changes", self.changes, "go with the action modify")
        if self.on_error and self.action in ("modify", "skip"):
            rule = "must be pause or log: the hook has run when its error is known"
            raise InvalidArgumentError("action", self.action, rule)
        if self.when is not None and not callable(self.when):
            raise InvalidArgumentError("when", self.when, "must be a function or None")
        if self.point is not None:
            object.__setattr__(self, "point", point_of(self.point))
        if not (self.on_error or self.hook or self.point or self.execution_id or self.when):
            rule = "must say at least one thing: hook, point, execution_id, on_error or when"
            raise InvalidArgumentError("breakpoint", None, rule)

    def matches(self, execution: Execution, context: dict[str, Any], *, raised: bool) -> bool:
        """Return whether an execution is meant, before it runs or after it raised."""
        return (
            self.on_error is raised
            and self.hook in (None, execution.hook)
            and self.point in (None, execution.point)
            and self.execution_id in (None, execution.id)
            and (self.when is None or bool(self.when(execution, rebuild_context(context))))
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a session stands still."""

    why: Literal["breakpoint", "step", "error"]
    place: int
    """Which of the session's executions it is, from 0."""
    execution: Execution
    context: dict[str, Any] | None
    """What the hook is about to be told, or was told; a copy, to look at."""
    breakpoint: Breakpoint | None = None
    replayed: Replayed | None = None
    """After an error: what became of the run. None: it has not run."""


@dataclass(frozen=True, slots=True)
class CapturedState:
    """What was known when an execution had run."""

    place: int
    execution_id: str
    context: dict[str, Any] | None
    replayed: Replayed


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that a session did."""

    place: int
    execution_id: str
    hook: str
    point: str
    what: Literal["ran", "raised", "skipped", "stopped", "logged", "modified"]
    detail: str = ""


class DebugSession:
    """Runs executions again one by one, in their order; nothing runs between two calls.

    `next` goes on to the next breakpoint, `step` by one execution, `finish` to the end. Where it
    stands before an execution, `change` puts another value into what the hook will be told, and
    `skip` leaves it out.
    """

    def __init__(
        self,
        replayer: Replayer,
        executions: Sequence[Execution],
        breakpoints: Sequence[Breakpoint] = (),
        config: ReplayConfig | None = None,
    ) -> None:
        for one in breakpoints:
            if not isinstance(one, Breakpoint):
                raise InvalidArgumentError("breakpoints", one, "must be Breakpoints")
        self._replayer = replayer
        self._executions = tuple(executions)
        self.breakpoints = list(breakpoints)
        """May be changed at any time."""
        self._config = ReplayConfig() if config is None else config
        self._place = 0
        self._stopped_at = -1
        self._context: dict[str, Any] | None = None
        self._skip = False
        self._refused: InvalidArgumentError | None = None
        self._states: deque[CapturedState] = deque(maxlen=MAX_STATES)
        self.dropped_states = 0
        """How many of the oldest states are gone: at most 1,000 are kept."""
        self.timeline: list[TimelineEntry] = []
        self._report = BatchReport(total=len(self._executions))
        self._prepare()

    # --- looking

    @property
    def done(self) -> bool:
        """Whether there is nothing left to run."""
        return self._place >= len(self._executions)

    @property
    def place(self) -> int:
        """Which execution runs next, from 0."""
        return self._place

    @property
    def states(self) -> tuple[CapturedState, ...]:
        """What was known after each execution, the oldest first."""
        return tuple(self._states)

    @property
    def report(self) -> BatchReport:
        """What became of the executions so far; skipped ones are not in it."""
        return self._report

    # --- changing, where it stands

    def change(self, path: str, value: Any) -> None:
        """Tell the hook that runs next something else; `path` as in `Modification`."""
        self._must_stand()
        assert self._context is not None  # noqa: S101 - `_must_stand` has seen it
        self._context = modified(self._context, (Modification(path, value),))
        self._note("modified", path)

    def skip(self) -> None:
        """Do not run the execution that is next."""
        self._must_stand(told=False)
        self._skip = True

    # --- going on

    async def next(self) -> Stop | None:
        """Run until the next breakpoint; None at the end."""
        return await self._go(step=False)

    async def step(self) -> Stop | None:
        """Run one execution, and stop before the next; None at the end.

        `DebugSessionOverError` if none was left to run.
        """
        if self.done:
            raise DebugSessionOverError
        return await self._go(step=True)

    async def finish(self) -> BatchReport:
        """Run all that is left, past every pause; return what became of all.

        Breakpoints that log, modify or skip do so.
        """
        while not self.done:
            await self._go(step=False)
        return self._report

    async def _go(self, *, step: bool) -> Stop | None:
        ran = False
        while not self.done:
            execution = self._executions[self._place]
            if self._stopped_at != self._place:
                stop = self._before(execution)
                if stop is None and step and ran:
                    stop = Stop("step", self._place, execution, keep(self._context))
                if stop is not None:
                    self._stopped_at = self._place
                    self._note("stopped", stop.why)
                    return stop
            elif step and ran:
                return Stop("step", self._place, execution, keep(self._context))
            stop = await self._run(execution)
            ran = True
            if stop is not None:
                return stop
        return None

    def _before(self, execution: Execution) -> Stop | None:
        if self._context is None:
            return None
        pause = None
        for one in self.breakpoints:
            if one.on_error or not one.matches(execution, self._context, raised=False):
                continue
            if one.action == "pause":
                pause = pause or one
            elif one.action == "log":
                logger.info("replay of %s at %s reached", execution.replay_id, execution.point)
                self._note("logged")
            elif one.action == "skip":
                self._skip = True
            else:
                self._modify(one)
        if pause is None:
            return None
        return Stop("breakpoint", self._place, execution, keep(self._context), pause)

    def _modify(self, by: Breakpoint) -> None:
        """Apply a breakpoint's changes; one whose path leads nowhere makes the execution fail."""
        assert self._context is not None  # noqa: S101 - the caller has seen it
        try:
            self._context = modified(self._context, by.changes)  # type: ignore[arg-type]
        except InvalidArgumentError as error:
            self._refused = error
        else:
            self._note("modified", "by a breakpoint")

    async def _run(self, execution: Execution) -> Stop | None:
        place, context = self._place, self._context
        if self._skip:
            self._note("skipped")
            self._advance()
            return None
        try:
            if self._refused is not None:
                raise self._refused
            replayed = await self._replayer.one(
                execution, ReplayMode.DEBUG, self._config, context=context
            )
        except (NotReplayableError, InvalidArgumentError) as error:
            failed = keep_error(error)
            replayed = Replayed(execution, ReplayMode.DEBUG, error=failed, ran=False)
        self._report.replays.append(replayed)
        if len(self._states) == MAX_STATES:
            self.dropped_states += 1
        self._states.append(CapturedState(place, execution.id, context, replayed))
        raised = replayed.error is not None
        detail = "" if replayed.error is None else replayed.error.type
        self._note("raised" if raised else "ran", detail)
        self._advance()
        if not raised:
            return None
        for one in self.breakpoints:
            if one.on_error and one.matches(execution, context or _NOTHING, raised=True):
                if one.action == "pause":
                    return Stop("error", place, execution, keep(context), one, replayed)
                logger.info("replay of %s raised %s", execution.replay_id, detail)
        return None

    def _advance(self) -> None:
        self._place += 1
        self._prepare()

    def _prepare(self) -> None:
        """Have at hand what the next hook is told."""
        self._skip = False
        self._refused = None
        self._context = None
        if not self.done:
            told = self._executions[self._place].context
            if told is not None:
                # One whose path leads nowhere here is told of when this execution is run.
                with contextlib.suppress(InvalidArgumentError):
                    self._context = modified(told, self._config.modifications)  # type: ignore[arg-type]

    def _note(self, what: Any, detail: str = "") -> None:
        one = self._executions[self._place]
        self.timeline.append(TimelineEntry(self._place, one.id, one.hook, one.point, what, detail))

    def _must_stand(self, *, told: bool = True) -> None:
        if self.done:
            raise DebugSessionOverError
        if told and self._context is None:
            one = self._executions[self._place]
            raise NotReplayableError(one.hook, one.version, "what it was told is not there")


_NOTHING: Final[dict[str, Any]] = {
    "point": "none:none",
    "component": ["", "", ""],
    "data": {},
    "metadata": {},
    "language": "python",
    "operation": None,
    "parents": [],
    "timestamp": None,
    "correlation_id": None,
    "causation_id": None,
}
