"""What can go wrong with agents and with effects that run once.

::

    SpellError
     ├ AgentNotFoundError
     ├ ConflictError
     │   └ AgentExistsError
     ├ IllegalTransitionError
     └ EffectError
         ├ EffectInProgressError
         ├ EffectUnknownError
         ├ EffectFailedError
         ├ EffectCommittedError
         └ EffectTakenOverError
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from llmspell_dist.errors import ConflictError, SpellError, shorten

__all__ = [
    "AgentExistsError",
    "AgentNotFoundError",
    "EffectCommittedError",
    "EffectError",
    "EffectFailedError",
    "EffectInProgressError",
    "EffectTakenOverError",
    "EffectUnknownError",
    "IllegalTransitionError",
]


class AgentNotFoundError(SpellError):
    """There is no agent with this id."""

    code = "AGENT_NOT_FOUND"

    def __init__(self, agent_id: str, at: Any = None) -> None:
        self.agent_id = agent_id
        self.at = at
        """The moment that was asked about; None: now."""
        when = "" if at is None else f" at {at}"
        super().__init__(f"there is no agent {shorten(agent_id)}{when}")


class AgentExistsError(ConflictError):
    """A new agent was to be saved under an id that is in use; nothing was changed."""

    code = "AGENT_EXISTS"
    retryable = False

    def __init__(
        self, agent_id: str, keys: Iterable[tuple[str, str, Any, Any]] = (), actual: Any = None
    ) -> None:
        self.agent_id = agent_id
        message = (
            f"agent {shorten(agent_id)} exists already: load it and save that, "
            "or save with force=True to replace it"
        )
        super().__init__(None, actual, keys, message)


class IllegalTransitionError(SpellError):
    """The agent's execution cannot go from its status to that one; nothing was changed."""

    code = "ILLEGAL_TRANSITION"

    def __init__(
        self,
        current: str,
        wanted: str,
        allowed: Iterable[str],
        agent_id: str | None = None,
        *,
        action: str | None = None,
    ) -> None:
        self.current = str(current)
        self.wanted = str(wanted)
        self.allowed = sorted(str(status) for status in allowed)
        """What the current status may become."""
        self.agent_id = agent_id
        self.action = action
        """``resume``, if that was asked; None: a status was."""
        who = "the execution" if agent_id is None else f"agent {shorten(agent_id)}"
        possible = f"the status can become {', '.join(self.allowed)}"
        if action == "resume":
            said = "resume is only for one that is suspended"
        else:
            said = f"it cannot become {self.wanted}"
        super().__init__(f"{who} is {self.current}: {said}; {possible}")


# --- effects --------------------------------------------------------------------------------------


class EffectError(SpellError):
    """An effect that runs once cannot be carried out now."""

    code = "EFFECT"
    says = "cannot run"
    advice = ""
    """What the caller can do about it."""

    def __init__(
        self,
        agent_id: str,
        key: str,
        *,
        status: str,
        recorded: str | None = None,
        claimed_by: str | None = None,
        token: int | None = None,
        since: datetime | None = None,
        deadline: datetime | None = None,
        reason: str | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.key = key
        self.status = str(status)
        """How it stands: claimed, committed, failed or unknown; absent without a record."""
        self.recorded = self.status if recorded is None else str(recorded)
        """What the record says: claimed also where the claim was left behind, so that the outcome
        is unknown."""
        self.claimed_by = claimed_by
        self.token = token
        """The fencing token of who claimed it; None: without a lease."""
        self.since = since
        """When it was claimed, by the server's clock."""
        self.deadline = deadline
        """When its time limit is over, by the server's clock."""
        self.reason = reason
        by = "" if claimed_by is None else f", claimed by {shorten(claimed_by)}"
        held = "" if token is None else f" (fencing token {token})"
        when = "" if since is None else f" at {since.isoformat(timespec='milliseconds')}"
        why = "" if reason is None else f": {reason}"
        super().__init__(
            f"effect {shorten(key)} of agent {shorten(agent_id)} {self.says}{why}{by}{held}{when}"
            f"{self.advice}"
        )


class EffectInProgressError(EffectError):
    """Somebody is carrying the effect out, and still within its time limit; it was not repeated."""

    code = "EFFECT_IN_PROGRESS"
    retryable = True
    says = "is being carried out"


class EffectUnknownError(EffectError):
    """Nobody can tell whether the effect happened; it was not repeated.

    Find out, then say so: `resolve` if it did happen, `retry` if it did not.
    """

    code = "EFFECT_UNKNOWN"
    says = "has an unknown outcome"
    advice = "; find out, then call resolve(result) if it did happen, or retry() if it did not"


class EffectFailedError(EffectError):
    """The effect certainly did not happen: it failed; ``retry_failed=True`` carries it out."""

    code = "EFFECT_FAILED"
    says = "failed"
    advice = "; effect(…, retry_failed=True) carries it out"


class EffectCommittedError(EffectError):
    """The effect has happened already, so it can be neither retried nor resolved."""

    code = "EFFECT_COMMITTED"
    says = "has happened already"


class EffectTakenOverError(EffectError):
    """The outcome could not be stored, because the claim was no longer this caller's."""

    code = "EFFECT_TAKEN_OVER"
    says = "was taken over by another"
