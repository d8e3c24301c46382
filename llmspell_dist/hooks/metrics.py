"""How long calls took: count, extremes, mean and percentiles, of everything and of lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Final, TypeVar

from llmspell_dist.fork import child_safe_lock

__all__ = ["DurationWindow", "Ring", "Timing", "nearest_rank"]

N = TypeVar("N", int, float)

WINDOW_SAMPLES: Final = 1000
WINDOW_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What is known about the durations of many calls; seconds.

    `count` is of all calls; the rest is of the last 1,000 measured within an hour, 0 if there were
    none. While the hooks of a point only look, every eighth run is measured; once one has answered,
    failed or been slow, every one.
    """

    count: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    average: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


class DurationWindow:
    """Takes the durations of one hook; safe to share between threads."""

    __slots__ = ("_clock", "_count", "_lock", "_window")

    def __init__(self, *, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._lock = child_safe_lock()
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)
        self._count = 0

    @property
    def count(self) -> int:
        """How many calls that were."""
        return self._count

    def take(self, ended: float, took: float) -> None:
        """Take one call: when it ended, and how long it took."""
        with self._lock:
            self._window.append((ended, took))
            self._count += 1

    def take_all(self, samples: Iterable[tuple[float, float]], count: int) -> None:
        """Take the last samples of so many calls."""
        with self._lock:
            self._window = deque(sorted([*self._window, *samples]), maxlen=WINDOW_SAMPLES)
            self._count += count

    def timing(self, rings: Iterable[tuple[Ring, int]] = ()) -> Timing:
        """Return the figures, with what stands in rings (and at which place of theirs)."""
        oldest = self._clock() - WINDOW_S
        with self._lock:
            samples, count = list(self._window), self._count
        for ring, place in rings:
            samples += ring.samples(place)
            count += ring.runs
        samples = sorted(one for one in samples if one[0] >= oldest)[-WINDOW_SAMPLES:]
        took = sorted(seconds for _, seconds in samples)
        if not took:
            return Timing(count)
        return Timing(
            count,
            took[0],
            took[-1],
            sum(took) / len(took),
            nearest_rank(took, 0.50),
            nearest_rank(took, 0.95),
            nearest_rank(took, 0.99),
        )


class Ring:
    """The moments of whole runs of several calls in a row, at the cost of one append a run.

    A run of n calls is n+1 readings of the clock. `runs` counts those too that were not measured.
    Whoever runs counts: in CPython ``ring.runs += 1`` lets no other thread in between.
    """

    __slots__ = ("marks", "runs", "take")

    def __init__(self) -> None:
        self.runs = 0
        self.marks: deque[list[float]] = deque(maxlen=WINDOW_SAMPLES)
        self.take: Final = self.marks.append

    def samples(self, place: int) -> list[tuple[float, float]]:
        """Return when the calls at a place ended, and how long each took."""
        return [(run[place + 1], run[place + 1] - run[place]) for run in self.marks.copy()]


def nearest_rank(ordered: Sequence[N], share: float) -> N:
    """Return a percentile, from over 0 to 1, of some figures in order, by nearest rank."""
    return ordered[ceil(share * len(ordered)) - 1]
