"""What can go wrong with hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmspell_dist.errors import InvalidArgumentError, SpellError, shorten

__all__ = [
    "DebugSessionOverError",
    "DuplicateHookError",
    "ExecutionNotFoundError",
    "FleetHookError",
    "HookError",
    "HookNotFoundError",
    "HookTimeoutError",
    "InvalidHookResultError",
    "NotReplayableError",
    "OperationCancelledError",
    "ReplayDivergedError",
    "ReplayError",
    "ScheduleNotFoundError",
    "SimulatedWriteError",
    "UnknownHookPointError",
]


class UnknownHookPointError(InvalidArgumentError):
    """There is no such hook point."""

    code = "UNKNOWN_HOOK_POINT"

    def __init__(self, value: Any, near: str | None = None) -> None:
        rule = "must be a HookPoint, its name, or a custom point with a colon, as session:start"
        super().__init__("point", value, rule if near is None else f"{rule} (is {near} meant?)")


class DuplicateHookError(SpellError):
    """There is a hook of that name at that point."""

    code = "DUPLICATE_HOOK"

    def __init__(self, hook: str, point: str) -> None:
        self.hook = hook
        self.point = point
        super().__init__(
            f"there is a hook {hook} at {point}: unregister it first, or choose a name"
        )


class HookNotFoundError(SpellError):
    """There is no hook of that name."""

    code = "HOOK_NOT_FOUND"

    def __init__(self, hook: str, point: str | None = None) -> None:
        self.hook = hook
        self.point = point
        where = "" if point is None else f" at {point}"
        super().__init__(f"there is no hook {hook}{where}")


class HookError(SpellError):
    """A hook failed, and its policy is to let the caller know."""

    code = "HOOK_FAILED"

    def __init__(self, hook: str, point: str, reason: str) -> None:
        self.hook = hook
        self.point = point
        self.reason = reason
        super().__init__(f"hook {hook} at {point} failed: {reason}")


class HookTimeoutError(HookError):
    """A hook did not end in time; whatever it may still return has no effect."""

    code = "HOOK_TIMEOUT"


class OperationCancelledError(SpellError):
    """A hook cancelled the operation: nothing was done."""

    code = "OPERATION_CANCELLED"

    def __init__(self, hook: str, point: str, reason: str) -> None:
        self.hook = hook
        self.point = point
        self.reason = reason
        super().__init__(f"cancelled by hook {hook} at {point}: {reason}")


class InvalidHookResultError(HookError):
    """A hook returned what its point does not allow, or no hook result at all."""

    code = "INVALID_HOOK_RESULT"


# --- history and replay ---------------------------------------------------------------------------


class ExecutionNotFoundError(SpellError):
    """There is no such execution in the history: never recorded, or gone by its retention."""

    code = "EXECUTION_NOT_FOUND"

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(f"there is no execution {shorten(execution_id)} in the history")


class ReplayError(SpellError):
    """A recorded execution cannot be replayed."""

    code = "REPLAY_FAILED"


class NotReplayableError(ReplayError):
    """The hook of a recorded execution is not here, or not in the version that was recorded."""

    code = "NOT_REPLAYABLE"

    def __init__(self, hook: str, version: str, reason: str) -> None:
        self.hook = hook
        self.version = version
        self.reason = reason
        super().__init__(f"hook {hook}:{version} cannot be replayed here: {reason}")


class ReplayDivergedError(ReplayError):
    """A replayed hook asked for another input than was recorded: the first difference."""

    code = "REPLAY_DIVERGED"

    def __init__(
        self, position: int, recorded: str, asked: str, argument: str | None = None
    ) -> None:
        self.position = position
        """Which input it is, from 1."""
        self.recorded = recorded
        self.asked = asked
        self.argument = argument
        """What differs of a call; None if it is another one."""
        where = "" if argument is None else f", {argument} differs"
        super().__init__(f"input {position}: recorded {recorded}, asked for {asked}{where}")


class SimulatedWriteError(ReplayError):
    """A hook that is only simulated wanted to write state; nothing was sent."""

    code = "SIMULATED_WRITE"

    def __init__(self, scopes: Iterable[str]) -> None:
        self.scopes = tuple(scopes)
        super().__init__(f"a simulated hook may not write, here to {', '.join(self.scopes)}")


class DebugSessionOverError(ReplayError):
    """The debugging session is at its end: no execution is left."""

    code = "DEBUG_SESSION_OVER"


class ScheduleNotFoundError(SpellError):
    """There is no schedule of that name."""

    code = "SCHEDULE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no schedule {shorten(name)}")


class FleetHookError(HookError):
    """A hook of another process failed, or did not answer in time."""

    code = "FLEET_HOOK_FAILED"
