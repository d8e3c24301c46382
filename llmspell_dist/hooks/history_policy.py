"""How long the history of hooks is kept: a policy, and the plan that follows from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, NamedTuple

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["HistoryEntry", "HistoryPolicy", "plan_removal"]


class HistoryEntry(NamedTuple):
    """What the plan needs to know of an execution."""

    entry: str
    """Where it lies; entries are ordered by time."""
    time_ms: int
    priority: int


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """What is kept: executions younger than `max_age`, and at most `max_count`, the newest.

    Executions of hooks with a retention priority of at least `priority_threshold` are kept
    `priority_bonus` longer. The newest `min_count` are kept at any age.
    """

    max_age: timedelta = timedelta(days=7)
    max_count: int = 10_000
    min_count: int = 100
    priority_threshold: int = 5
    priority_bonus: timedelta = timedelta(days=7)
    archive: bool = False
    """Whether an execution is given to an archive before it goes: without one nothing goes."""
    compress: bool = True
    """Whether new executions are compressed."""

    SHORT: ClassVar[HistoryPolicy]
    """A day, at most 1,000."""
    LONG: ClassVar[HistoryPolicy]
    """30 days, at most 100,000."""
    ALL: ClassVar[HistoryPolicy]
    """A century, at most a milliard: everything."""

    def __post_init__(self) -> None:
        for name in ("max_age", "priority_bonus"):
            age = getattr(self, name)
            if type(age) is not timedelta or age < timedelta(0):
                raise InvalidArgumentError(name, age, "must be a timedelta of at least 0")
        for name, least in (("max_count", 1), ("min_count", 0)):
            count = getattr(self, name)
            if type(count) is not int or count < least:
                raise InvalidArgumentError(name, count, f"must be an int of at least {least}")
        if self.min_count > self.max_count:
            rule = f"must be at most max_count, {self.max_count}"
            raise InvalidArgumentError("min_count", self.min_count, rule)
        if type(self.priority_threshold) is not int:
            raise InvalidArgumentError("priority_threshold", self.priority_threshold, "must be int")

    @property
    def stored(self) -> bytes:
        """The form that a namespace keeps."""
        second = timedelta(milliseconds=1)
        return b"1 %d %d %d %d %d %d %d" % (
            self.max_age // second,
            self.max_count,
            self.min_count,
            self.priority_threshold,
            self.priority_bonus // second,
            self.archive,
            self.compress,
        )

    @classmethod
    def parse(cls, stored: bytes | None) -> HistoryPolicy:
        """Return what a namespace keeps; the default if it keeps nothing that can be read."""
        try:
            version, age, most, least, threshold, bonus, archive, compress = (
                int(part) for part in (stored or b"").split()
            )
            if version != 1:
                return cls()
            return cls(
                timedelta(milliseconds=age),
                most,
                least,
                threshold,
                timedelta(milliseconds=bonus),
                bool(archive),
                bool(compress),
            )
        except ValueError:  # includes InvalidArgumentError
            return cls()

    def __str__(self) -> str:
        archived = ", archived before they go" if self.archive else ""
        return (
            f"keep executions for {self.max_age}, those of priority {self.priority_threshold} and "
            f"more for {self.max_age + self.priority_bonus}; at most the newest "
            f"{self.max_count:,}, at least the newest {self.min_count:,}{archived}"
        )


HistoryPolicy.SHORT = HistoryPolicy(timedelta(days=1), 1_000, 10, priority_bonus=timedelta(days=1))
HistoryPolicy.LONG = HistoryPolicy(timedelta(days=30), 100_000, 1_000)
HistoryPolicy.ALL = HistoryPolicy(timedelta(days=36_525), 1_000_000_000, 100)


def plan_removal(
    entries: Sequence[HistoryEntry], policy: HistoryPolicy, now_ms: int
) -> list[HistoryEntry]:
    """Return what is to go, oldest first; `entries` must come oldest first.

    Over the count, those without a bonus go before those with one.
    """
    millisecond = timedelta(milliseconds=1)
    age_ms, bonus_ms = policy.max_age // millisecond, policy.priority_bonus // millisecond
    removable = max(len(entries) - policy.min_count, 0)  # the newest are out of reach
    gone = set()
    for place, one in enumerate(entries[:removable]):
        bonus = bonus_ms if one.priority >= policy.priority_threshold else 0
        if now_ms - one.time_ms > age_ms + bonus:
            gone.add(place)
    excess = len(entries) - len(gone) - policy.max_count
    for favoured in (False, True):
        for place, one in enumerate(entries[:removable]):
            if excess <= 0:
                break
            if place in gone or (one.priority >= policy.priority_threshold) is not favoured:
                continue
            gone.add(place)
            excess -= 1
    return [entries[place] for place in sorted(gone)]
