"""The common loop of every row: interleaved rounds, equal time slots, the collector under control.

An *arm* is one side of a comparison. All arms of a row run in every round, in alternating order,
so that what disturbs the machine disturbs them alike; ratios are then taken of medians over rounds.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.server import Server

__all__ = [
    "Arm",
    "Bench",
    "Measure",
    "Pair",
    "Row",
    "Samples",
    "background",
    "concurrently",
    "one_by_one",
]

Samples = dict[str, list[float]]
"""Samples of one row: arm → one sample per round, in the unit of the row."""

_MICROSECONDS = 1e6
_LARGEST_BATCH = 1 << 20
_CANCEL_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison.

    ``work(n)`` does ``n`` operations. It returns None to be timed by the harness, or the total
    cost that it measured itself (server microseconds, a percentile times ``n``).
    ``prepare(n)`` runs before it, untimed. ``n`` is always a
    multiple of ``step`` (the number of concurrent callers); ``fixed`` pins it instead of filling
    a time slot.
    """

    name: str
    work: Callable[[int], Awaitable[float | None]]
    prepare: Callable[[int], Awaitable[None]] | None = None
    step: int = 1
    fixed: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A line of the table: two arms of a row, and the unit in which they are shown.

    A pair named in ``targets.toml`` has a target; any other is there for information.
    """

    name: str
    ours: str
    peer: str
    unit: str = "µs"


@dataclass(slots=True)
class Bench:
    """What a row needs to measure: the server, how long, and how often."""

    server: Server
    quick: bool = False
    rounds: int = 15
    slot: float = 0.15
    notes: list[str] = field(default_factory=list)

    def scale(self, full: int, quick: int) -> int:
        """Return the size of a data set: the one of the target, or a small one in a smoke run."""
        return quick if self.quick else full

    def note(self, text: str) -> None:
        """Keep a remark that is printed under the table."""
        if text not in self.notes:
            self.notes.append(text)

    async def interleave(self, arms: Sequence[Arm], *, rounds: int | None = None) -> Samples:
        """Return the samples of all arms: cost per operation, one sample per arm and round."""
        sizes = {arm.name: arm.fixed or await self._calibrate(arm) for arm in arms}
        samples: Samples = {arm.name: [] for arm in arms}
        for number in range(rounds or self.rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):
                samples[arm.name].append(await _sample(arm, sizes[arm.name]))
        return samples

    async def _calibrate(self, arm: Arm) -> int:
        """Find how many operations fill a slot; the search warms the arm up as well."""
        count = arm.step
        while count < _LARGEST_BATCH:
            started = perf_counter()
            if arm.prepare:
                await arm.prepare(count)
                started = perf_counter()
            await arm.work(count)
            spent = perf_counter() - started
            if spent >= self.slot / 2:
                return max(1, round(count * self.slot / spent / arm.step)) * arm.step
            count *= 2 if spent > self.slot / 16 else 4
        return count


Measure = Callable[[Bench], Awaitable[Samples]]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: its arms share a run, its pairs become lines of the table.

    ``loop`` names the event loop it runs on: ``asyncio`` (the standard library's) or ``uvloop``.
    """

    name: str
    measure: Measure
    pairs: tuple[Pair, ...]
    loop: str = "asyncio"


async def _sample(arm: Arm, count: int) -> float:
    if arm.prepare:
        await arm.prepare(count)
    # Collected before and switched off during a sample, for every arm alike: a collection that
    # one arm's garbage causes must not fall into another arm's time.
    gc.collect()
    gc.disable()
    try:
        started = perf_counter()
        measured = await arm.work(count)
        spent = perf_counter() - started
    finally:
        gc.enable()
    total = spent * _MICROSECONDS if measured is None else measured
    return total / count


async def concurrently(
    workers: int, count: int, call: Callable[[int, int], Awaitable[object]]
) -> None:
    """Run ``count`` calls spread over ``workers`` coroutines; call gets (worker, turn).

    ``count`` must be a multiple of ``workers``.
    """
    each, rest = divmod(count, workers)
    if rest:
        raise ValueError(f"{count} calls do not spread over {workers} workers")

    async def worker(number: int) -> None:
        for turn in range(each):
            await call(number, turn)

    await asyncio.gather(*[worker(number) for number in range(workers)])


async def one_by_one(count: int, call: Callable[[int, int], Awaitable[object]]) -> None:
    """Run ``count`` calls of one caller, each after the one before."""
    for turn in range(count):
        await call(0, turn)


@asynccontextmanager
async def background(*jobs: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run jobs beside the body and stop them at its end; a job that failed fails the body."""
    tasks = [asyncio.ensure_future(job()) for job in jobs]
    try:
        yield
    finally:
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        # More than once: redis-py can swallow a cancellation, and its job would run for ever.
        while alive := [task for task in tasks if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.wait(alive, timeout=_CANCEL_AGAIN_SECONDS)
    for error in failed:
        if error is not None:
            raise error
