"""What every rule of a policy does: it says which backups to keep, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Everything", "Rule", "check_count"]


class Rule(Protocol):
    """A pure value that says which backups of a series to keep.

    Whoever writes one of their own keeps to this: what is kept of some backups is kept too when
    there are fewer of them. Else pruning twice removes more than pruning once.
    """

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:
        """Return the ids of those to keep, each with the reason, as the end of a sentence.

        `backups` are those of one series that can be restored, the newest first.
        """

    @property
    def text(self) -> str:
        """The short form, which `RetentionPolicy.parse` reads."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""

    def __str__(self) -> str:
        """Return it as a part of a sentence: ``the last 10``."""


@dataclass(frozen=True, slots=True)
class Everything:
    """Keeps every backup; for policies that only have limits."""

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Keep them all."""
        return {backup.id: "everything is kept" for backup in backups}

    @property
    def text(self) -> str:
        """The short form."""
        return "everything"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "everything"}

    def __str__(self) -> str:
        return "everything"


def check_count(argument: str, value: object) -> None:
    """Refuse a count that is none."""
    if type(value) is not int or value < 1:
        raise InvalidArgumentError(argument, value, "must be an int of at least 1")
