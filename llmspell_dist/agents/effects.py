"""Effects that run once: the record of a mail to send, a payment, a call that must not repeat.

The record lies under ``agent.effect.<key>`` of the agent's scope: a dict with ``layout`` 1,
``key``, ``status`` (claimed, committed, failed, unknown), ``result``, ``reason``, ``by`` and
``token`` (who claimed it), ``limit_ms``, ``attempts``, and once it has ended ``claimed``, the
revision of its claim: when it was claimed, and in which order.

Who claims it writes the record under compare-and-set and then acts; nobody acts without a claim. A
claim that was left behind, by a process that died or by an outcome that was not heard, is shown
as unknown and never repeated by itself.

Time is the server's alone. A claim was made at the time of its record's revision, which the server
gave; whether its limit is over is judged by the time that the server says in the same call that
reads the record.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import isfinite
from typing import Any, Final

from llmspell_dist.agents.errors import (
    EffectCommittedError,
    EffectError,
    EffectFailedError,
    EffectInProgressError,
    EffectUnknownError,
)
from llmspell_dist.agents.layout import EFFECT_PREFIX, quoted
from llmspell_dist.context import current_context
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError, UnsupportedFormatError
from llmspell_dist.revision import Revision

__all__ = ["EffectRecord", "EffectStatus", "Seen", "check_limit", "effect_key", "who"]

EFFECT_LAYOUT: Final = 1
MAX_LIMIT_S: Final = 86_400.0


class EffectStatus(StrEnum):
    """How an effect stands. The values stand in stored records and never change."""

    CLAIMED = "claimed"
    """Somebody is carrying it out."""
    COMMITTED = "committed"
    """It happened, and its result is stored."""
    FAILED = "failed"
    """It certainly did not happen."""
    UNKNOWN = "unknown"
    """Nobody can tell whether it happened."""


@dataclass(frozen=True, slots=True)
class EffectRecord:
    """One effect, as it is recorded."""

    agent_id: str
    key: str
    status: EffectStatus
    claimed_by: str
    token: int | None
    """The fencing token of who claimed it; None: without a lease."""
    claimed: Revision
    """The revision of its claim: later claims have higher ones, within one millisecond too."""
    deadline: datetime
    """When the limit is over, by the server's clock."""
    attempts: int
    """How often it was claimed."""
    result: Any = None
    reason: str | None = None
    """Why it failed, or why its outcome is unknown."""
    revision: Revision | None = None

    @property
    def claimed_at(self) -> datetime:
        """When it was claimed, by the server's clock."""
        return self.claimed.time


@dataclass(frozen=True, slots=True)
class Seen:
    """A record and the server's time, read together."""

    agent_id: str
    key: str
    record: EffectRecord | None
    now: datetime

    def is_left_behind(self, token: int | None) -> str | None:
        """Return why a claim will not be finished any more; None if it may be.

        The claim of an earlier holder of the lease is: whatever that one still writes is refused.
        """
        record = self.record
        if record is None or record.status is not EffectStatus.CLAIMED:
            return None
        if record.token is not None and token is not None and record.token < token:
            return "its holder has lost the lease before it said how it ended"
        if self.now >= record.deadline:
            return "its time limit was over before anybody said how it ended"
        return None

    def refuse(self, token: int | None) -> EffectError | None:
        """Return why the effect cannot be carried out; None if it can, or has been."""
        record = self.record
        if record is None or record.status is EffectStatus.COMMITTED:
            return None
        if record.status is EffectStatus.FAILED:
            return self.error(EffectFailedError)
        why = self.is_left_behind(token)
        if record.status is EffectStatus.UNKNOWN or why is not None:
            return self.error(EffectUnknownError, why)
        return self.error(EffectInProgressError)

    def may_be_settled(self, token: int | None) -> EffectError | None:
        """Return why nobody may say now how it ended; None: it is open how it did."""
        record = self.record
        if record is not None and record.status is EffectStatus.COMMITTED:
            return self.error(EffectCommittedError)
        error = self.refuse(token)
        return error if isinstance(error, EffectInProgressError) else None

    def error(self, cls: type[EffectError], why: str | None = None) -> EffectError:
        """Return an error with what is known."""
        record = self.record
        if record is None:
            return cls(self.agent_id, self.key, status="absent", reason=why)
        unknown = issubclass(cls, EffectUnknownError)
        return cls(
            self.agent_id,
            self.key,
            status=EffectStatus.UNKNOWN if unknown else record.status,
            recorded=record.status,
            claimed_by=record.claimed_by,
            token=record.token,
            since=record.claimed_at,
            deadline=record.deadline,
            reason=why or record.reason,
        )

    def as_of_now(self, token: int | None) -> EffectRecord | None:
        """Return the record; a claim that was left behind as unknown."""
        why = self.is_left_behind(token)
        if why is None or self.record is None:
            return self.record
        old = self.record
        return EffectRecord(
            old.agent_id,
            old.key,
            EffectStatus.UNKNOWN,
            old.claimed_by,
            old.token,
            old.claimed,
            old.deadline,
            old.attempts,
            None,
            why,
            old.revision,
        )


def effect_key(key: str) -> str:
    """Return the state key of an effect's record."""
    return EFFECT_PREFIX + quoted("effect", key)


def check_limit(limit: float | timedelta) -> int:
    """Return a time limit in milliseconds: up to a day."""
    seconds = limit.total_seconds() if isinstance(limit, timedelta) else limit
    if (
        type(seconds) not in (int, float)
        or not isfinite(seconds)
        or not 0.001 <= seconds <= MAX_LIMIT_S
    ):
        rule = "must be seconds or a timedelta from 0.001 to 86,400 (a day)"
        raise InvalidArgumentError("limit", limit, rule)
    return round(seconds * 1000)


def who(label: str | None) -> str:
    """Return who claims: the label given, else the actor of the context, else this process."""
    return label or current_context().actor or f"{socket.gethostname()}:{os.getpid()}"


def as_claim(key: str, by: str, token: int | None, limit_ms: int, attempts: int) -> dict[str, Any]:
    """Return the record of a claim; when it was made says its revision."""
    return {
        "layout": EFFECT_LAYOUT,
        "key": key,
        "status": EffectStatus.CLAIMED.value,
        "by": by,
        "token": token,
        "limit_ms": limit_ms,
        "attempts": attempts,
    }


def as_settled(
    record: EffectRecord, status: EffectStatus, result: Any, reason: str | None
) -> dict[str, Any]:
    """Return the record of an effect that has ended in one way or another."""
    limit = record.deadline - record.claimed_at
    claim = as_claim(
        record.key,
        record.claimed_by,
        record.token,
        round(limit.total_seconds() * 1000),
        record.attempts,
    )
    ended = {"status": status.value, "claimed": str(record.claimed)}
    if status is EffectStatus.COMMITTED:
        return {**claim, **ended, "result": result}
    return {**claim, **ended, "reason": reason}


def record_from(
    agent_id: str, scope: str, key: str, stored: Any, revision: Revision
) -> EffectRecord:
    """Return the effect of a stored record, whose state key is `key`."""
    if type(stored) is not dict or type(stored.get("layout")) is not int:
        raise CorruptRecordError(scope, key, "it is no effect's record")
    if stored["layout"] != EFFECT_LAYOUT:
        reason = f"effect layout {stored['layout']}, this reads {EFFECT_LAYOUT}"
        raise UnsupportedFormatError(scope, key, reason)
    try:
        claimed = Revision.parse(stored["claimed"]) if "claimed" in stored else revision
        return EffectRecord(
            agent_id,
            stored["key"],
            EffectStatus(stored["status"]),
            stored["by"],
            stored["token"],
            claimed,
            claimed.time + timedelta(milliseconds=stored["limit_ms"]),
            stored["attempts"],
            stored.get("result"),
            stored.get("reason"),
            revision,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it is no effect as this release knows it ({type(error).__name__})"
        raise CorruptRecordError(scope, key, reason) from None
