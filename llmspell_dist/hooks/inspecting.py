"""What a stretch of history says as a whole: counts, durations, sequences. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.metrics import nearest_rank

if TYPE_CHECKING:
    from llmspell_dist.hooks.recording import Execution

__all__ = ["Durations", "HistoryAnalysis", "SequencePattern", "analyze", "find_patterns"]


@dataclass(frozen=True, slots=True)
class Durations:
    """How long executions ran, in microseconds."""

    count: int
    min_us: int
    mean_us: float
    p50_us: int
    p95_us: int
    max_us: int

    @classmethod
    def of(cls, durations_us: Iterable[int]) -> Durations:
        """Return the figures of some durations; zeros for none."""
        ordered = sorted(durations_us)
        if not ordered:
            return cls(0, 0, 0.0, 0, 0, 0)
        return cls(
            len(ordered),
            ordered[0],
            sum(ordered) / len(ordered),
            nearest_rank(ordered, 0.50),
            nearest_rank(ordered, 0.95),
            ordered[-1],
        )


@dataclass(frozen=True, slots=True)
class HistoryAnalysis:
    """A stretch of history in figures."""

    total: int
    failed: int
    by_outcome: dict[str, int]
    by_hook: dict[str, int]
    by_point: dict[str, int]
    correlations: int
    durations: Durations
    durations_by_hook: dict[str, Durations] = field(default_factory=dict)
    failures_by_hook: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    """By the error's type."""

    @property
    def failure_rate(self) -> float:
        """The share that raised, from 0 to 1."""
        return self.failed / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class SequencePattern:
    """Hooks that often run one after the other within a correlation."""

    hooks: tuple[str, ...]
    count: int
    """How often, over all correlations."""
    correlations: int
    """In how many correlations."""


def analyze(executions: Sequence[Execution]) -> HistoryAnalysis:
    """Return a stretch of history in figures."""
    hooks = sorted({one.hook for one in executions})
    failures = Counter(one.hook for one in executions if one.failed)
    return HistoryAnalysis(
        len(executions),
        failures.total(),
        dict(Counter(one.outcome for one in executions).most_common()),
        dict(Counter(one.hook for one in executions).most_common()),
        dict(Counter(one.point for one in executions).most_common()),
        len({one.correlation_id for one in executions} - {None}),
        Durations.of(one.duration_us for one in executions),
        {
            hook: Durations.of(one.duration_us for one in executions if one.hook == hook)
            for hook in hooks
        },
        dict(failures.most_common()),
        dict(Counter(one.error.type for one in executions if one.error is not None).most_common()),
    )


def find_patterns(
    executions: Iterable[Execution], *, length: int = 2, min_count: int = 2
) -> list[SequencePattern]:
    """Return the sequences of `length` hooks that occur at least `min_count` times, most first."""
    if type(length) is not int or not 2 <= length <= 10:
        raise InvalidArgumentError("length", length, "must be an int from 2 to 10")
    if type(min_count) is not int or min_count < 1:
        raise InvalidArgumentError("min_count", min_count, "must be a positive int")
    chains: dict[str, list[str]] = {}
    for one in executions:
        if one.correlation_id is not None:
            chains.setdefault(one.correlation_id, []).append(one.hook)
    counts: Counter[tuple[str, ...]] = Counter()
    within: Counter[tuple[str, ...]] = Counter()
    for chain in chains.values():
        found = [tuple(chain[at : at + length]) for at in range(len(chain) - length + 1)]
        counts.update(found)
        within.update(set(found))
    return [
        SequencePattern(hooks, count, within[hooks])
        for hooks, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        if count >= min_count
    ]
