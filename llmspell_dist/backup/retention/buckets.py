"""The newest backup of each hour, day, week, month or year."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.backup.retention.rule import check_count
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["KeepPerPeriod", "Period"]


class Period(StrEnum):
    """A stretch of the calendar, in UTC."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    """Monday to Sunday, as ISO 8601 counts weeks."""
    MONTHLY = "monthly"
    YEARLY = "yearly"


def _week(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02}"


_NAMES: Final[dict[Period, Callable[[datetime], str]]] = {
    Period.HOURLY: lambda moment: f"{moment:%Y-%m-%d %H}:00",
    Period.DAILY: lambda moment: f"{moment:%Y-%m-%d}",
    Period.WEEKLY: _week,
    Period.MONTHLY: lambda moment: f"{moment:%Y-%m}",
    Period.YEARLY: lambda moment: f"{moment:%Y}",
}
_WORDS: Final = {
    Period.HOURLY: "hour",
    Period.DAILY: "day",
    Period.WEEKLY: "week",
    Period.MONTHLY: "month",
    Period.YEARLY: "year",
}


@dataclass(frozen=True, slots=True)
class KeepPerPeriod:
    """Keeps the newest backup of each of the last `count` periods that have one.

    Periods without a backup do not count, so a pause of the schedule removes nothing. Of the same
    moment the greater id is newer.
    """

    period: Period
    count: int

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "period", Period(self.period))
        except ValueError:
            rule = f"must be one of {', '.join(Period)}"
            raise InvalidArgumentError("period", self.period, rule) from None
        check_count(self.period, self.count)

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Keep the first of each period."""
        name = _NAMES[self.period]
        kept: dict[str, str] = {}
        seen: set[str] = set()
        for backup in backups:
            period = name(backup.time.astimezone(UTC))
            if period in seen:
                continue
            if len(seen) == self.count:
                break
            seen.add(period)
            kept[backup.id] = f"the newest of {period}"
        return kept

    @property
    def text(self) -> str:
        """The short form."""
        return f"{self.period}={self.count}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": str(self.period), "count": self.count}

    def __str__(self) -> str:
        word = _WORDS[self.period]
        if self.count == 1:
            return f"the newest of the last {word}"
        return f"the newest of each of the last {self.count:,} {word}s"
