"""Latencies in little room: counts by logarithmic classes, 4 % wide, from a microsecond up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import log
from typing import Any, Final, Self

__all__ = ["Histogram"]

_BASE: Final = 1.04
_PER_LOG: Final = 1 / log(_BASE)


class Histogram:
    """Counts of durations. Locust's own are whole milliseconds, which the library does not need."""

    __slots__ = ("classes", "count", "total_ms")

    def __init__(self) -> None:
        self.classes: Counter[int] = Counter()
        self.count = 0
        self.total_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one duration."""
        self.classes[round(log(max(ms, 0.001) * 1000) * _PER_LOG)] += 1
        self.count += 1
        self.total_ms += ms

    def merge(self, other: Histogram) -> None:
        """Count all that another one has counted."""
        self.classes.update(other.classes)
        self.count += other.count
        self.total_ms += other.total_ms

    @property
    def mean_ms(self) -> float:
        """Their mean; 0 if there is none."""
        return self.total_ms / self.count if self.count else 0.0

    @staticmethod
    def ms_of(number: int) -> float:
        """Return the duration that a class stands for."""
        return float(_BASE**number / 1000)

    def percentile_ms(self, percent: float) -> float:
        """Return the duration that so many percent do not exceed, 2 % more or less; 0 if none."""
        rank = max(1.0, self.count * percent / 100)
        seen = 0
        for number in sorted(self.classes):
            seen += self.classes[number]
            if seen >= rank:
                return self.ms_of(number)
        return 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"classes": dict(self.classes), "count": self.count, "total_ms": self.total_ms}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, also after JSON made texts of the numbers."""
        found = cls()
        found.classes.update({int(number): count for number, count in data["classes"].items()})
        found.count = data["count"]
        found.total_ms = data["total_ms"]
        return found
