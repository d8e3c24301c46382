"""How long the change log keeps its entries, as a value that prints itself as a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.quantities import spoken

__all__ = ["Retention"]


@dataclass(frozen=True, slots=True)
class Retention:
    """What each shard's change log keeps: entries younger than `max_age`, at most `max_entries`.

    A hold (an archiver, a snapshot) may keep more, but never more than `cap_entries`: there the
    hold breaks.
    """

    max_age: timedelta | None = timedelta(days=7)
    """None: entries of any age."""
    max_entries: int = 100_000
    cap_entries: int = 1_000_000

    def __post_init__(self) -> None:
        age = self.max_age
        if age is not None and (type(age) is not timedelta or age < timedelta(seconds=1)):
            rule = "must be a timedelta of at least one second, or None"
            raise InvalidArgumentError("max_age", age, rule)
        if type(self.max_entries) is not int or self.max_entries < 1:
            raise InvalidArgumentError("max_entries", self.max_entries, "must be a positive int")
        if type(self.cap_entries) is not int or self.cap_entries < self.max_entries:
            rule = "must be an int of at least max_entries"
            raise InvalidArgumentError("cap_entries", self.cap_entries, rule)

    @property
    def max_age_ms(self) -> int | None:
        """`max_age` in milliseconds."""
        return None if self.max_age is None else self.max_age // timedelta(milliseconds=1)

    @property
    def stored(self) -> bytes:
        """The form that a namespace keeps: most entries, most age in ms (0: any), cap."""
        return b"%d %d %d" % (self.max_entries, self.max_age_ms or 0, self.cap_entries)

    @classmethod
    def parse(cls, stored: bytes | None) -> Retention:
        """Return what a namespace keeps, the default if it keeps nothing that can be read."""
        try:
            entries, age_ms, cap = (int(part) for part in (stored or b"").split(b" "))
            return cls(timedelta(milliseconds=age_ms) if age_ms else None, entries, cap)
        except ValueError:  # includes InvalidArgumentError
            return cls()

    def __str__(self) -> str:
        age = (
            "" if self.max_age is None else f" younger than {spoken(self.max_age.total_seconds())}"
        )
        return (
            f"keep the last {self.max_entries:,} entries{age}; "
            f"for a hold at most {self.cap_entries:,}"
        )
