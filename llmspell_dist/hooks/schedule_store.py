"""Replay schedules as they are kept: what is to be replayed and when, and how far that has come.

A schedule lies in the scope ``hook:replay`` under two keys: ``schedule/<name>`` is written by those
who set it up, ``progress/<name>`` by the process that runs schedules, with its lease. So neither
overwrites the other, and a process that has lost the lease writes nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError, SpellError
from llmspell_dist.hooks.history_query import HistoryQuery
from llmspell_dist.hooks.kept import keep
from llmspell_dist.hooks.modifications import Modification
from llmspell_dist.hooks.replay_model import ReplayConfig, ReplayMode
from llmspell_dist.schedule import Missed, Schedule, schedule_from

__all__ = ["SCOPE", "Progress", "ScheduledReplay", "check_name", "progress_key", "schedule_key"]

SCOPE: Final = "hook:replay"
FORMAT: Final = 1
MAX_NAME: Final = 128


def check_name(name: object) -> str:
    """Return the name of a schedule; `InvalidArgumentError` if it can be none."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        rule = f"must be printable text of 1 to {MAX_NAME} characters"
        raise InvalidArgumentError("name", name, rule)
    return name


def schedule_key(name: str) -> str:
    """Return the key of a schedule."""
    return f"schedule/{check_name(name)}"


def progress_key(name: str) -> str:
    """Return the key of a schedule's progress."""
    return f"progress/{check_name(name)}"


@dataclass(frozen=True, slots=True)
class ScheduledReplay:
    """What is to be replayed, and when."""

    name: str
    id: str
    """Another one after it was replaced."""
    schedule: Schedule
    created: datetime
    executions: tuple[str, ...] = ()
    """The ids of what to replay; empty: what `query` finds then."""
    query: HistoryQuery | None = None
    within: timedelta | None = None
    """Of what the query finds, only what began at most so long before the run."""
    mode: ReplayMode = ReplayMode.EXACT
    config: ReplayConfig = field(default_factory=ReplayConfig)
    max_concurrent: int = 4
    missed: Missed = Missed.ONCE
    grace: timedelta = timedelta(seconds=60)
    enabled: bool = True

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        query = None
        if self.query is not None:
            query = {one.name: getattr(self.query, one.name) for one in fields(HistoryQuery)}
            query["point"] = None if query["point"] is None else str(query["point"])
        config = self.config
        changes: Iterable[Any] = config.modifications
        return {
            "v": FORMAT,
            "name": self.name,
            "id": self.id,
            "schedule": self.schedule.as_data(),
            "created": self.created,
            "executions": list(self.executions),
            "query": query,
            "within_us": None if self.within is None else _microseconds(self.within),
            "mode": str(self.mode),
            "modifications": [
                [one.path, keep(one.value), one.enabled, one.create] for one in changes
            ],
            "compare_results": config.compare_results,
            "timeout": config.timeout,
            "stop_on_error": config.stop_on_error,
            "tags": list(config.tags),
            "new_inputs": config.new_inputs,
            "max_concurrent": self.max_concurrent,
            "missed": str(self.missed),
            "grace_us": _microseconds(self.grace),
            "enabled": self.enabled,
        }

    @classmethod
    def from_data(cls, data: Any) -> ScheduledReplay:
        """Return what `as_data` was asked of; `CorruptRecordError` if it cannot be read."""
        try:
            if data["v"] != FORMAT:
                raise ValueError(data["v"])  # noqa: TRY301 - as the rest
            config = ReplayConfig(
                [Modification(*one) for one in data["modifications"]],
                data["compare_results"],
                data["timeout"],
                data["stop_on_error"],
                tuple(data["tags"]),
                data["new_inputs"],
            )
            within = data["within_us"]
            return cls(
                data["name"],
                data["id"],
                schedule_from(data["schedule"]),
                data["created"],
                tuple(data["executions"]),
                None if data["query"] is None else HistoryQuery(**data["query"]),
                None if within is None else timedelta(microseconds=within),
                ReplayMode(data["mode"]),
                config,
                data["max_concurrent"],
                Missed(data["missed"]),
                timedelta(microseconds=data["grace_us"]),
                data["enabled"],
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"a schedule cannot be read: {error}"
            raise CorruptRecordError("hook:replay", "schedule", reason) from None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a schedule has come."""

    schedule_id: str
    done_until: datetime
    """Up to where it is decided what runs."""
    runs: int = 0
    left_out: int = 0
    """Moments that were missed and not made up for; at least so many."""
    pending: tuple[datetime, ...] = ()
    """The moments that are due and have not run to their end."""
    attempts: int = 0
    """How often the first of those was begun."""
    token: int = 0
    """The fencing token under which it was begun last."""
    last_due: datetime | None = None
    last_ended: datetime | None = None
    last_total: int = 0
    last_identical: int = 0
    last_failed: int = 0
    last_difference: str | None = None
    """The first difference of the last run."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        data = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"v": FORMAT, **data, "pending": list(self.pending)}

    @classmethod
    def of(cls, schedule: ScheduledReplay, data: Any) -> Progress:
        """Return the progress of a schedule; that of an earlier one of its name does not count."""
        fresh = cls(schedule.id, schedule.created)
        if type(data) is not dict or data.get("schedule_id") != schedule.id:
            return fresh
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        try:
            return replace(fresh, **{**known, "pending": tuple(known.get("pending", ()))})
        except (TypeError, SpellError):
            return fresh


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
