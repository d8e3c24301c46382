"""Pass or fail: what each load must hold, judged from what was measured and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from loadtests.knee import Knee, find_knee
from loadtests.profiles import HOLD, RAMP, Limits, Plan
from loadtests.recorder import DELIVERY, KEPT_UP, Window
from loadtests.sampling import MIB, Usage

__all__ = ["Measured", "Verdict", "judge"]

SIDECAR = "sidecar"
_FAIR: float = 1.0
"""Milliseconds below which a limit is never: the clock and the scheduler are no finer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one criterion holds, and the figures that say so."""

    load: str
    criterion: str
    holds: bool
    facts: str


@dataclass(slots=True)
class Measured:
    """What one load gave."""

    plan: Plan
    windows: list[Window]
    requests: int
    failures: Mapping[str, int]
    problems: list[str]
    """What does not add up: lost updates, gaps, repetitions."""
    checked: int
    """Numbers, lists and deliveries that were compared."""
    ended: bool = True
    """Whether it ended by itself, in time."""
    usages: list[dict[str, Usage]] = field(default_factory=list)
    """Per stage, by process."""
    steady: dict[str, Usage] = field(default_factory=dict)
    """After warm-up."""
    commands: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Calls and microseconds of the server's commands."""
    unloaded_ms: float | None = None
    """The median of a few users: for a hold of the ramp before it."""

    @property
    def knee(self) -> Knee | None:
        """The knee of a ramp."""
        return find_knee(self.windows) if self.plan.kind == RAMP else None


def judge(load: Measured, limits: Limits) -> list[Verdict]:
    """Return a verdict for each criterion that applies to this kind of load."""
    return [
        Verdict(load.plan.name, criterion, holds, facts)
        for criterion, holds, facts in _criteria(load, limits)
    ]


_Judged = Iterator[tuple[str, bool, str]]


def _criteria(load: Measured, limits: Limits) -> _Judged:
    yield "ends by itself", load.ended, "in time" if load.ended else "it had to be stopped"
    count = sum(load.failures.values())
    worst = max(load.failures, key=load.failures.__getitem__) if count else ""
    facts = f"{count:,} of {load.requests:,} requests" + (f"; most: {worst}" if worst else "")
    yield "no error", count == 0 and load.requests > 0, facts
    found = f"{load.checked:,} compared" + (f"; {load.problems[0]}" if load.problems else "")
    yield "no lost update", not load.problems and load.checked > 0, found
    yield from _deliveries(load)
    if not load.plan.judged:
        return
    if load.plan.kind == RAMP:
        yield from _ramp(load, limits)
    elif load.plan.kind == HOLD:
        yield from _hold(load, limits)


def _deliveries(load: Measured) -> _Judged:
    if load.plan.mix not in {"fanout", "mixed"}:
        return
    count = sum(window.names[DELIVERY].count for window in load.windows if DELIVERY in window.names)
    yield "events are delivered", count > 0, f"{count:,} deliveries, gaps count as lost updates"


def _ramp(load: Measured, limits: Limits) -> _Judged:
    knee = load.knee
    yield "keeps up at first", knee is not None, "no stage kept up" if knee is None else str(knee)
    if knee is None:
        return
    calm = [
        window
        for window in load.windows[: knee.number + 1]
        if window.achieved <= limits.part_of_knee * knee.throughput
    ]
    yield from _latency(calm or load.windows[:1], load.windows[0].steps.percentile_ms(50), limits)


def _hold(load: Measured, limits: Limits) -> _Judged:
    criterion = f"does {KEPT_UP:.0%} of what is offered"
    if not load.windows:
        yield criterion, False, "no stage was finished"
        return
    window = load.windows[-1]
    facts = f"{window.achieved:,.0f} of {window.offered:,.0f} steps/s"
    yield criterion, window.kept_up, facts
    yield from _latency(load.windows, load.unloaded_ms or 0.0, limits)
    used = load.steady.get(SIDECAR)
    if used is None:
        yield "memory stays", False, "the sidecar was not sampled"
        return
    facts = (
        f"{used.rss_first / MIB:.1f} to {used.rss_last / MIB:.1f} MiB, {used.growth:+.1%}, "
        f"at most {limits.growth:.0%}"
    )
    yield "memory stays", used.growth <= limits.growth, facts


def _latency(windows: Sequence[Window], unloaded_ms: float, limits: Limits) -> _Judged:
    """Judge the worst of some stages against multiples of the unloaded median.

    A stage in which no step ended is worse than any figure.
    """
    for percent, factor in ((95, limits.p95), (99, limits.p99)):
        worst = max(
            window.steps.percentile_ms(percent) if window.steps.count else inf for window in windows
        )
        limit = factor * max(unloaded_ms, _FAIR)
        facts = f"{worst:.1f} ms, at most {limit:.1f} ({factor:g} times {unloaded_ms:.1f} ms)"
        yield f"p{percent} up to {limits.part_of_knee:.0%} of the knee", worst <= limit, facts
