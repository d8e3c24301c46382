"""A whole policy: what to keep, the limits, and what stays in any case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from llmspell_dist.backup.retention.composite import AnyOf
from llmspell_dist.backup.retention.newest import KeepLast, check_span
from llmspell_dist.backup.retention.rule import Everything, Rule, check_count
from llmspell_dist.backup.retention.stored import Words, read_seconds, rule_from_data
from llmspell_dist.backup.retention.units import print_size, print_span, say_span
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["RetentionPolicy"]

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Which backups stay, as a value: pure, comparable, printable, storable.

    What `keep` keeps stays as far as the limits allow; the oldest of the least important go first.
    Whatever the rules and limits say, these stay: the newest `minimum` of each series, its last
    full one, pinned and locked ones, and every backup that one that stays goes on from.
    """

    keep: Rule
    minimum: int = 1
    """So many of the newest stay always."""
    max_count: int | None = None
    """At most so many backups, with those that others go on from."""
    max_size: int | None = None
    """At most so many bytes, with the part of the archive that is kept for them."""
    pitr: timedelta | None = None
    """How far back any moment can be restored from the archive, in whole seconds.

    None: as far as the oldest backup that stays, so the archive is kept from there on.
    """

    def __post_init__(self) -> None:
        if not callable(getattr(self.keep, "judge", None)):
            raise InvalidArgumentError("keep", self.keep, "must be a rule, such as KeepLast(10)")
        check_count("minimum", self.minimum)
        if self.max_count is not None:
            check_count("max_count", self.max_count)
            if self.max_count < self.minimum:
                rule = f"must be at least the minimum of {self.minimum}"
                raise InvalidArgumentError("max_count", self.max_count, rule)
        if self.max_size is not None:
            check_count("max_size", self.max_size)
        if self.pitr is not None:
            check_span("pitr", self.pitr)

    @property
    def text(self) -> str:
        """The short form, for a command line: ``last=10 daily=7 min=3 max-size=10GB``."""
        limits = [
            f"min={self.minimum}" if self.minimum > 1 else "",
            f"max-count={self.max_count}" if self.max_count else "",
            f"max-size={print_size(self.max_size)}" if self.max_size else "",
            f"pitr={print_span(self.pitr)}" if self.pitr else "",
        ]
        if isinstance(self.keep, AnyOf) and len(self.keep.rules) > 1:
            words = [rule.text for rule in self.keep.rules]
        else:
            words = [self.keep.text]
        return " ".join(filter(None, [*words, *limits]))

    @classmethod
    def parse(cls, text: str) -> RetentionPolicy:
        """Read the short form; anything else is an `InvalidArgumentError` that names the word.

        Words that keep: ``last=10``, ``younger=30d``, ``hourly=24``, ``daily=7``, ``weekly=4``,
        ``monthly=12``, ``yearly=5``, ``importance=critical``, ``tag=release,audit``,
        ``everything``, ``all(…)`` and ``any(…)`` around others. What any of them keeps is kept.
        Words that limit: ``max-count=20``, ``max-size=10GB``; the rest: ``min=3``, ``pitr=7d``.
        """
        words = Words(text)
        rules = words.rules()
        if not rules:
            if words.limits.keys().isdisjoint({"max_count", "max_size"}):
                rule = "must say what to keep, for example last=10"
                raise InvalidArgumentError("policy", text, rule)
            rules = [Everything()]
        keep = rules[0] if len(rules) == 1 else AnyOf(*rules)
        return cls(keep, **words.limits)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data; `from_data` inverts it."""
        data: dict[str, Any] = {
            "version": VERSION,
            "keep": self.keep.as_data(),
            "minimum": self.minimum,
        }
        if self.max_count is not None:
            data["max_count"] = self.max_count
        if self.max_size is not None:
            data["max_size"] = self.max_size
        if self.pitr is not None:
            data["pitr_seconds"] = self.pitr // timedelta(seconds=1)
        return data

    @classmethod
    def from_data(cls, data: Any) -> RetentionPolicy:
        """Read what `as_data` returned; anything else is an `InvalidArgumentError`."""
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else data
            raise InvalidArgumentError("policy", found, f"must be of version {VERSION}")
        known = {"version", "keep", "minimum", "max_count", "max_size", "pitr_seconds"}
        # A limit that this release does not know must not be passed over.
        for name in data.keys() - known:
            raise InvalidArgumentError("policy", name, "must have no field of that name")
        seconds = data.get("pitr_seconds")
        return cls(
            rule_from_data(data.get("keep")),
            data.get("minimum", 1),
            data.get("max_count"),
            data.get("max_size"),
            None if seconds is None else read_seconds("pitr_seconds", seconds),
        )

    @property
    def stored(self) -> str:
        """The form to store: JSON."""
        return json.dumps(self.as_data(), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_stored(cls, stored: str | bytes) -> RetentionPolicy:
        """Read what `stored` gave; anything else is an `InvalidArgumentError`."""
        try:
            data = json.loads(stored)
        except (ValueError, RecursionError):
            raise InvalidArgumentError("policy", stored, "must be JSON") from None
        return cls.from_data(data)

    def __str__(self) -> str:
        parts = [f"keep {self.keep}"]
        if self.max_count is not None:
            parts.append(f"at most {self.max_count:,} backup{'s' if self.max_count > 1 else ''}")
        if self.max_size is not None:
            parts.append(f"at most {print_size(self.max_size)}")
        # "Always the newest 3" adds nothing to "the last 10", unless a limit could cut them off.
        implied = isinstance(self.keep, KeepLast) and self.keep.count >= self.minimum
        if not implied or (self.max_size is not None and self.minimum > 1):
            newest = "the newest one" if self.minimum == 1 else f"the newest {self.minimum:,}"
            parts.append(f"always {newest}")
        if self.pitr is not None:
            parts.append(f"and any moment of the last {say_span(self.pitr)}")
        return ", ".join(parts)
