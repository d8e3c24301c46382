"""When backups are made, of which type, and how far a schedule has come. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.retention.policy import RetentionPolicy
from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.schedule import Cron, Schedule

__all__ = ["BackupSchedule", "Progress", "check_name"]

FORMAT: Final = 1
MAX_NAME: Final = 64
_BEHIND: Final = timedelta(minutes=1)


def check_name(name: object) -> str:
    """Return the name of a schedule; `InvalidArgumentError` if it can be none."""
    if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        rule = f"must be printable text of 1 to {MAX_NAME} characters"
        raise InvalidArgumentError("name", name, rule)
    return name


@dataclass(frozen=True, slots=True)
class BackupSchedule:
    """What is backed up when, as a value that each process of the fleet is given.

    `when`: a `Schedule` (`Cron`, `Every`, `At`, `Once`) or a cron expression in UTC.
    """

    name: str
    """Processes with the same name share the work: each moment is one process's."""
    when: Schedule | str
    full_every: int | timedelta = 7
    """Every how many backups, or how long after the moment of the last full one, one is made."""
    between: BackupType | str = BackupType.INCREMENTAL
    """What is made between the full ones: incremental or differential."""
    retention: RetentionPolicy | str | None = None
    """What is removed after each backup; None: nothing."""
    include: tuple[str, ...] = ()
    """What the full ones hold beside state: ``events``, ``hooks``, ``correlations``."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if isinstance(self.when, str):
            object.__setattr__(self, "when", Cron(self.when))
        elif not callable(getattr(self.when, "first_after", None)):
            rule = "must be a cron expression, or Cron, Every, At or Once"
            raise InvalidArgumentError("when", self.when, rule)
        every, least = self.full_every, timedelta(seconds=1)
        counted = type(every) is int and every >= 1
        if not counted and not (isinstance(every, timedelta) and every >= least):
            rule = "must be an int of at least 1, or a timedelta of at least a second"
            raise InvalidArgumentError("full_every", every, rule)
        if self.between not in {BackupType.INCREMENTAL, BackupType.DIFFERENTIAL}:
            rule = "must be incremental or differential"
            raise InvalidArgumentError("between", self.between, rule)
        object.__setattr__(self, "between", BackupType(self.between))
        if isinstance(self.retention, str):
            object.__setattr__(self, "retention", RetentionPolicy.parse(self.retention))
        elif self.retention is not None and not isinstance(self.retention, RetentionPolicy):
            rule = "must be a policy, or its short form such as last=10 daily=7"
            raise InvalidArgumentError("retention", self.retention, rule)

    @property
    def moments(self) -> Schedule:
        """The moments at which a backup is due."""
        assert not isinstance(self.when, str)  # noqa: S101 - made one above
        return self.when

    @property
    def policy(self) -> RetentionPolicy | None:
        """What is removed after each backup."""
        assert not isinstance(self.retention, str)  # noqa: S101 - as above
        return self.retention

    def type_of(self, taken: Iterable[tuple[BackupType, datetime]], due: datetime) -> BackupType:
        """Return the type of the backup that is due, after those that were taken.

        `taken`: type and beginning of each.
        """
        since, last = 0, None
        for kind, at in sorted(taken, key=lambda one: one[1]):
            if kind is BackupType.FULL:
                since, last = 0, at
            else:
                since += 1
        if last is None:
            return BackupType.FULL
        if isinstance(self.full_every, timedelta):
            enough = due - self._moment_of(last, self.full_every) >= self.full_every
        else:
            enough = since + 1 >= self.full_every
        return BackupType.FULL if enough else BackupType(self.between)

    def _moment_of(self, begun: datetime, every: timedelta) -> datetime:
        """Return the moment for which a backup was made: it begins a little later, or was retried.

        A clock that is a little behind the server's makes it no earlier one's.
        """
        found, _ = self.moments.latest(begun - every, begun + min(_BEHIND, every / 100), 1)
        return found[-1] if found else begun

    def __str__(self) -> str:
        every = self.full_every
        full = (
            f"every {str(every).removesuffix(', 0:00:00')}"
            if isinstance(every, timedelta)
            else f"every {every} backups"
        )
        removed = "" if self.retention is None else f"; {self.retention}"
        when = self.when
        said = f"{when.expression} {when.timezone}" if isinstance(when, Cron) else str(when)
        return f"{self.name}: {said}, a full one {full}, else {self.between}{removed}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a schedule has come; kept in the store, and written by the one that runs it."""

    done_until: datetime
    """Up to where it is decided what runs."""
    pending: datetime | None = None
    """The moment that is due and has not come to its end."""
    attempts: int = 0
    """How often it was begun."""
    retry_at: datetime | None = None
    """When a failed one is tried again."""
    token: int = 0
    """The fencing token of the process that began it last."""
    runs: int = 0
    """Backups that were made."""
    missed: int = 0
    """Moments for which none was made, at least: one backup makes up for all that were missed."""
    last_due: datetime | None = None
    last_ended: datetime | None = None
    last_backup: str = ""
    last_type: str = ""
    last_error: str = ""
    """What failed last; empty once a backup was made after it."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"v": FORMAT, **{one.name: getattr(self, one.name) for one in fields(self)}}

    @classmethod
    def of(cls, data: Any, fresh: datetime) -> Progress:
        """Read what `as_data` gave; a schedule that nobody ran yet begins with `fresh`."""
        if type(data) is not dict or data.get("v") != FORMAT:
            return cls(fresh)
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        try:
            return replace(cls(fresh), **known)
        except (TypeError, SpellError):
            return cls(fresh)
