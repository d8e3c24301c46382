"""When something is to happen: once, at several moments, at intervals, by a cron expression. Pure.

`plan_runs` says what is due now, and what becomes of what was missed while nobody looked. Beside it
stands what all do that run schedules for a fleet: `is_far_ahead`, `gives_up`, `FENCED_OUT`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from llmspell_dist.errors import (
    InvalidArgumentError,
    LeaseLostError,
    StaleFencingTokenError,
)
from llmspell_dist.revision import to_ms

__all__ = [
    "FENCED_OUT",
    "MAX_ATTEMPTS",
    "At",
    "Cron",
    "Every",
    "Missed",
    "Once",
    "Plan",
    "Schedule",
    "gives_up",
    "is_far_ahead",
    "plan_runs",
    "schedule_from",
]

MAX_CATCH_UP: Final = 100
"""Most missed runs that are made up for."""
MAX_ATTEMPTS: Final = 3
"""So often a run is begun that does not come to its end."""
MOST_AHEAD: Final = timedelta(hours=1)
FENCED_OUT: Final = (LeaseLostError, StaleFencingTokenError)
"""What says that another process runs schedules now: then nothing more is written, or noted."""


class Missed(StrEnum):
    """What becomes of runs whose moment passed while no process ran schedules."""

    ONCE = "once"
    """One run makes up for all of them."""
    ALL = "all"
    """Each is made up for, in order, the last 100."""
    SKIP = "skip"
    """Those that are later than the grace are left out."""


class Schedule(Protocol):
    """Moments, in order."""

    def first_after(self, after: datetime) -> datetime | None:
        """Return the first moment after one; None if there is none."""

    def latest(self, after: datetime, until: datetime, limit: int) -> tuple[list[datetime], int]:
        """Return the last moments up to `until`, in order, and how many lie after `after`."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data; `schedule_from` inverts it."""


@dataclass(frozen=True, slots=True)
class At:
    """At some moments."""

    times: tuple[datetime, ...]

    def __post_init__(self) -> None:
        times = tuple(self.times)
        if not times:
            raise InvalidArgumentError("times", times, "must be at least one moment")
        object.__setattr__(self, "times", tuple(sorted(_moment("times", one) for one in times)))

    def first_after(self, after: datetime) -> datetime | None:
        """Return the first of the moments after one."""
        return next((one for one in self.times if one > after), None)

    def latest(self, after: datetime, until: datetime, limit: int) -> tuple[list[datetime], int]:
        """Return those in between."""
        found = [one for one in self.times if after < one <= until]
        return found[-limit:], len(found)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": "at", "times": list(self.times)}


class Once(At):
    """At one moment."""

    __slots__ = ()

    def __init__(self, at: datetime) -> None:
        super().__init__((at,))

    def __repr__(self) -> str:
        return f"Once({self.times[0]})"


@dataclass(frozen=True, slots=True)
class Every:
    """At intervals, counted from `start` on; at most `max_runs` times."""

    interval: timedelta
    max_runs: int | None = None
    start: datetime = field(default_factory=lambda: datetime.now(UTC))
    """The first run is one interval later."""

    def __post_init__(self) -> None:
        if type(self.interval) is not timedelta or self.interval < timedelta(milliseconds=10):
            rule = "must be a timedelta of at least 10 ms"
            raise InvalidArgumentError("interval", self.interval, rule)
        if self.max_runs is not None and (type(self.max_runs) is not int or self.max_runs < 1):
            raise InvalidArgumentError("max_runs", self.max_runs, "must be a positive int or None")
        object.__setattr__(self, "start", _moment("start", self.start))

    def _number(self, moment: datetime) -> int:
        """How many runs lie up to a moment."""
        number = max((moment - self.start) // self.interval, 0)
        return number if self.max_runs is None else min(number, self.max_runs)

    def first_after(self, after: datetime) -> datetime | None:
        """Return the next run's moment."""
        number = self._number(after) + 1
        if self.max_runs is not None and number > self.max_runs:
            return None
        return self.start + number * self.interval

    def latest(self, after: datetime, until: datetime, limit: int) -> tuple[list[datetime], int]:
        """Return the runs in between, without counting them one by one."""
        first, last = self._number(after), self._number(until)
        numbers = range(max(first, last - limit) + 1, last + 1)
        return [self.start + number * self.interval for number in numbers], max(last - first, 0)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        microseconds = self.interval // timedelta(microseconds=1)
        return {
            "kind": "every",
            "interval_us": microseconds,
            "max_runs": self.max_runs,
            "start": self.start,
        }


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron expression, as Debian's cron reads it: ``"*/5 * * * *"``, ``"@daily"``.

    In the time zone given, with its daylight saving: a run in the hour that is left out happens
    right after it, one in the hour that comes twice happens once. Needs the extra ``cron``.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        cronsim = _cronsim()
        try:
            ZoneInfo(self.timezone)
        except (ValueError, OSError, TypeError, KeyError):
            rule = "must be the name of a time zone, like Europe/Berlin"
            raise InvalidArgumentError("timezone", self.timezone, rule) from None
        if type(self.expression) is not str:
            raise InvalidArgumentError("expression", self.expression, "must be text")
        try:
            found = next(cronsim.CronSim(self._spelled, datetime.now(UTC)), None)
        except cronsim.CronSimError as error:
            rule = f"must be a cron expression ({error})"
            raise InvalidArgumentError("expression", self.expression, rule) from None
        if found is None:
            raise InvalidArgumentError("expression", self.expression, "must happen some time")

    @property
    def _spelled(self) -> str:
        return _NICKNAMES.get(self.expression, self.expression)

    def _moments(self, start: datetime, *, reverse: bool = False) -> Iterable[datetime]:
        local = start.astimezone(ZoneInfo(self.timezone))
        return _cronsim().CronSim(self._spelled, local, reverse=reverse)  # type: ignore[no-any-return]

    def first_after(self, after: datetime) -> datetime | None:
        """Return the next moment."""
        found = next(iter(self._moments(after)), None)
        return None if found is None else found.astimezone(UTC)

    def latest(self, after: datetime, until: datetime, limit: int) -> tuple[list[datetime], int]:
        """Return the moments in between; no more than `limit` are counted."""
        found: list[datetime] = []
        # Backwards it gives what is before a moment, and `until` itself counts.
        for moment in islice(self._moments(until + timedelta(seconds=1), reverse=True), limit + 1):
            at = moment.astimezone(UTC)
            if at <= after or len(found) == limit:
                break
            if at <= until:
                found.append(at)
        return found[::-1], len(found)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": "cron", "expression": self.expression, "timezone": self.timezone}


_NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def _cronsim() -> Any:
    try:
        import cronsim  # noqa: PLC0415 - only for what is scheduled that way
    except ImportError:
        rule = "needs the package cronsim: install llmspell-dist[cron]"
        raise InvalidArgumentError("schedule", "Cron", rule) from None
    return cronsim


def schedule_from(data: dict[str, Any]) -> Schedule:
    """Return the schedule that `as_data` was asked of."""
    kind = data.get("kind")
    if kind == "at":
        return At(tuple(data["times"]))
    if kind == "every":
        interval = timedelta(microseconds=data["interval_us"])
        return Every(interval, data["max_runs"], data["start"])
    if kind == "cron":
        return Cron(data["expression"], data["timezone"])
    raise InvalidArgumentError("kind", kind, "must be at, every or cron")


def _moment(argument: str, moment: Any) -> datetime:
    if not isinstance(moment, datetime):
        raise InvalidArgumentError(argument, moment, "must be an aware datetime")
    to_ms(moment)
    return moment.astimezone(UTC)


class Plan(NamedTuple):
    """What is to be done now."""

    due: list[datetime]
    """The moments for which to run, in order."""
    done_until: datetime
    """Up to where everything is decided then."""
    left_out: int
    """Moments for which nothing runs; at least so many."""
    next: datetime | None
    """When to look again; None: never."""


def plan_runs(
    schedule: Schedule,
    done_until: datetime,
    now: datetime,
    missed: Missed = Missed.ONCE,
    grace: timedelta = timedelta(seconds=60),
) -> Plan:
    """Return what is due now, of a schedule that was decided up to `done_until`.

    A clock that stepped back makes nothing due again.
    """
    if now <= done_until:
        return Plan([], done_until, 0, schedule.first_after(done_until))
    found, count = schedule.latest(done_until, now, MAX_CATCH_UP)
    if missed is Missed.ALL:
        due = found
    elif missed is Missed.SKIP:
        due = [one for one in found[-1:] if now - one <= grace]
    else:
        due = found[-1:]
    return Plan(due, now, count - len(due), schedule.first_after(now))


def is_far_ahead(done_until: datetime, now: datetime) -> bool:
    """Whether a schedule is decided so far ahead that the clock which did so was wrong."""
    return done_until - now > MOST_AHEAD


def gives_up(attempts: int) -> bool:
    """Whether a run that has been begun so often is not begun again."""
    return attempts >= MAX_ATTEMPTS
