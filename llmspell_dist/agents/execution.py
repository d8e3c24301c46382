"""The execution of an agent: its status, and which status may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from llmspell_dist.agents.errors import IllegalTransitionError
from llmspell_dist.errors import InvalidArgumentError

__all__ = [
    "TRANSITIONS",
    "ExecutionState",
    "ExecutionStatus",
    "Transition",
    "moved",
    "paused",
    "resumed",
    "stopped",
]


class ExecutionStatus(StrEnum):
    """What an agent is doing. The values stand in stored state and never change."""

    IDLE = "idle"
    PROCESSING = "processing"
    WAITING_FOR_INPUT = "waiting_for_input"
    WAITING_FOR_TOOL = "waiting_for_tool"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"

    @classmethod
    def coerce(cls, value: ExecutionStatus | str) -> ExecutionStatus:
        """Return the status, given as itself or by its value."""
        try:
            return cls(value)
        except ValueError:
            rule = f"must be one of {', '.join(cls)}"
            raise InvalidArgumentError("status", value, rule) from None


_S = ExecutionStatus
_ENDS: Final = frozenset({_S.SUSPENDED, _S.COMPLETED, _S.FAILED})

TRANSITIONS: Final[Mapping[ExecutionStatus, frozenset[ExecutionStatus]]] = {
    _S.IDLE: _ENDS | {_S.PROCESSING},
    _S.PROCESSING: _ENDS | {_S.IDLE, _S.WAITING_FOR_INPUT, _S.WAITING_FOR_TOOL},
    _S.WAITING_FOR_INPUT: _ENDS | {_S.IDLE, _S.PROCESSING},
    _S.WAITING_FOR_TOOL: _ENDS | {_S.IDLE, _S.PROCESSING},
    _S.SUSPENDED: frozenset(
        {
            *(_S.IDLE, _S.PROCESSING, _S.WAITING_FOR_INPUT, _S.WAITING_FOR_TOOL),
            *(_S.COMPLETED, _S.FAILED),
        }
    ),
    # What has ended can only begin anew.
    _S.COMPLETED: frozenset({_S.IDLE}),
    _S.FAILED: frozenset({_S.IDLE}),
}
"""Which status may follow which; nothing follows itself."""


@dataclass(frozen=True, slots=True)
class ExecutionState:
    """What an agent is doing, and why."""

    status: ExecutionStatus = ExecutionStatus.IDLE
    reason: str | None = None
    """Why; for a failure its message."""
    suspended_from: ExecutionStatus | None = None
    """The status that `resumed` goes back to; only while suspended."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", ExecutionStatus.coerce(self.status))
        if self.reason is not None and type(self.reason) is not str:
            raise InvalidArgumentError("reason", self.reason, "must be a str or None")
        before = self.suspended_from
        if before is None:
            return
        before = ExecutionStatus.coerce(before)
        if self.status is not _S.SUSPENDED or _S.SUSPENDED not in TRANSITIONS[before]:
            rule = "is only for a suspended agent, and names what can be suspended"
            raise InvalidArgumentError("suspended_from", before, rule)
        object.__setattr__(self, "suspended_from", before)

    @classmethod
    def failed(cls, message: str) -> ExecutionState:
        """Return the state of an agent that failed with this message."""
        return cls(_S.FAILED, message)

    def to(
        self,
        status: ExecutionStatus | str,
        reason: str | None = None,
        *,
        agent_id: str | None = None,
    ) -> ExecutionState:
        """Return the state after a transition; `IllegalTransitionError` unless the table has it."""
        wanted = ExecutionStatus.coerce(status)
        allowed = TRANSITIONS[self.status]
        if wanted not in allowed:
            raise IllegalTransitionError(self.status, wanted, allowed, agent_id)
        before = self.status if wanted is _S.SUSPENDED else None
        return ExecutionState(wanted, reason, before)

    def resumed(self, reason: str | None = None, *, agent_id: str | None = None) -> ExecutionState:
        """Return the state after a suspension: what it was before it, else idle."""
        wanted = self.suspended_from or _S.IDLE
        if self.status is not _S.SUSPENDED:
            allowed = TRANSITIONS[self.status]
            raise IllegalTransitionError(self.status, wanted, allowed, agent_id, action="resume")
        return self.to(wanted, reason, agent_id=agent_id)


# --- what is asked of an execution ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """What makes the next state of the one that is stored, or refuses."""

    agent_id: str
    operation: str
    """The method that was called."""
    status: ExecutionStatus | None
    """Where it is to go; None: back to what was suspended."""
    reason: str | None = None

    def __call__(self, old: ExecutionState) -> ExecutionState:
        """Return the next state; `IllegalTransitionError` if it cannot follow."""
        if self.status is None:
            return old.resumed(self.reason, agent_id=self.agent_id)
        return old.to(self.status, self.reason, agent_id=self.agent_id)

    @property
    def value(self) -> dict[str, str | None]:
        """What it asks for, as plain data."""
        status = None if self.status is None else self.status.value
        return {"status": status, "reason": self.reason}

    def given(self, value: Any) -> Transition:
        """Return the one that asks for this; only `transition` can be given another status."""
        if type(value) is not dict or value.keys() != self.value.keys():
            raise InvalidArgumentError("value", value, "must be a dict of status and reason")
        reason, status = value["reason"], value["status"]
        if reason is not None and type(reason) is not str:
            raise InvalidArgumentError("reason", reason, "must be a str or None")
        if self.operation == "transition":
            return replace(self, status=ExecutionStatus.coerce(status), reason=reason)
        if status != self.status:
            raise InvalidArgumentError("status", status, f"must stay as it is: {self.operation}")
        return replace(self, reason=reason)


def moved(agent_id: str, status: ExecutionStatus | str, reason: str | None) -> Transition:
    """Return the transition to a status."""
    return Transition(agent_id, "transition", ExecutionStatus.coerce(status), reason)


def paused(agent_id: str, reason: str | None) -> Transition:
    """Return the transition that suspends."""
    return Transition(agent_id, "pause", _S.SUSPENDED, reason)


def resumed(agent_id: str, reason: str | None) -> Transition:
    """Return the transition that ends a suspension."""
    return Transition(agent_id, "resume", None, reason)


def stopped(agent_id: str, reason: str | None) -> Transition:
    """Return the transition that completes."""
    return Transition(agent_id, "stop", _S.COMPLETED, reason)
