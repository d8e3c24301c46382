"""Rules about the newest backups: so many of them, or those of some time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.backup.retention.rule import check_count
from llmspell_dist.backup.retention.units import print_span, say_span
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["KeepLast", "KeepYounger", "check_span"]


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keeps the newest `count`; of the same moment the greater id is newer."""

    count: int

    def __post_init__(self) -> None:
        check_count("last", self.count)

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Keep the first of them."""
        return {backup.id: f"among the last {self.count:,}" for backup in backups[: self.count]}

    @property
    def text(self) -> str:
        """The short form."""
        return f"last={self.count}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "last", "count": self.count}

    def __str__(self) -> str:
        return f"the last {self.count:,}" if self.count > 1 else "the last one"


@dataclass(frozen=True, slots=True)
class KeepYounger:
    """Keeps those that are younger than `age`, in whole seconds."""

    age: timedelta

    def __post_init__(self) -> None:
        check_span("younger", self.age)

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:
        """Keep those whose moment is less than `age` ago."""
        reason = f"younger than {say_span(self.age)}"
        return {backup.id: reason for backup in backups if now - backup.time < self.age}

    @property
    def text(self) -> str:
        """The short form."""
        return f"younger={print_span(self.age)}"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "younger", "seconds": self.age // timedelta(seconds=1)}

    def __str__(self) -> str:
        return f"those younger than {say_span(self.age)}"


def check_span(argument: str, value: object) -> None:
    """Refuse a span of time that is none, or not in whole seconds."""
    second = timedelta(seconds=1)
    if type(value) is not timedelta or value < second or value % second:
        rule = "must be a timedelta of whole seconds, at least one"
        raise InvalidArgumentError(argument, value, rule)
