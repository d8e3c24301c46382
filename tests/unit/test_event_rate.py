"""The rate limit: tokens over time, and the four strategies, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events import PublisherStats, RateLimit, RateLimitedError

pytestmark = pytest.mark.unit


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 50), st.floats(0.5, 100))
@settings(max_examples=60, deadline=None)
def test_no_more_than_burst_and_rate_allow(
    pauses: list[float], burst: int, per_second: float
) -> None:
    """In any run of time, however long it goes on; and what is allowed is never withheld."""
    clock = Clock()
    limit = RateLimit(per_second, burst, now=clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        allowed = burst + (clock.now - 1000.0) * per_second
        got = limit.take()
        taken += got
        assert taken <= allowed + 1e-6
    clock.now += burst / per_second + 1
    assert [limit.take() for _ in range(burst + 1)] == [True] * burst + [False]


async def test_reject_raises_with_the_limit() -> None:
    """And counts."""
    limit, stats = RateLimit(10, 1, overflow="reject", now=Clock()), PublisherStats()
    assert await limit.admit("a", stats)
    with pytest.raises(RateLimitedError, match=r"over the rate limit of 10 a second \(burst 1\)"):
        await limit.admit("a", stats)
    assert (stats.rejected, stats.dropped, stats.limited) == (1, 0, 0)


async def test_drop_newest_leaves_out_what_comes_last() -> None:
    """And counts."""
    limit, stats = RateLimit(10, 1, overflow="drop_newest", now=Clock()), PublisherStats()
    assert [await limit.admit("a", stats) for _ in range(3)] == [True, False, False]
    assert stats.dropped == 2


async def test_block_lets_them_wait_in_their_order() -> None:
    """Each goes on when there is a token for it; a cancelled one takes none."""
    clock = Clock()
    limit, stats = RateLimit(10, 1, now=clock), PublisherStats()
    assert await limit.admit("a", stats)
    done: list[int] = []

    async def one(number: int) -> None:
        assert await limit.admit("a", stats)
        done.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert limit.waiting == 4
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    clock.now += 0.1
    limit.serve()
    await tasks[0]
    assert done == [0]
    clock.now += 0.1
    limit.serve()
    await tasks[2]
    assert done == [0, 2]
    clock.now += 5
    limit.serve()
    await tasks[3]
    assert (done, limit.waiting, stats.limited, stats.dropped) == ([0, 2, 3], 0, 4, 0)


async def test_drop_oldest_lets_only_so_many_wait() -> None:
    """The one that waits for longest makes room."""
    clock = Clock()
    limit, stats = RateLimit(10, 1, overflow="drop_oldest", waiting=2, now=clock), PublisherStats()
    assert await limit.admit("a", stats)
    tasks = [asyncio.create_task(limit.admit("a", stats)) for _ in range(5)]
    await asyncio.gather(*tasks[:3])
    assert [task.result() for task in tasks[:3]] == [False, False, False]
    clock.now += 1
    limit.serve()
    clock.now += 1
    limit.serve()
    assert await asyncio.gather(*tasks[3:]) == [True, True]
    assert (stats.dropped, limit.waiting) == (3, 0)


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "reject"])
async def test_it_never_stops_for_ever(overflow: str) -> None:
    """After 20,000 events over the limit it lets through what it let through at the start."""
    clock, stats = Clock(), PublisherStats()
    limit = RateLimit(1000, 10, overflow=overflow, waiting=5, now=clock)
    tasks: list[asyncio.Task[bool]] = []
    for number in range(20_000):
        tasks.append(asyncio.create_task(limit.admit("a", stats)))
        if number % 50 == 0:
            await asyncio.sleep(0)
            clock.now += 0.005
            limit.serve()
    await asyncio.sleep(0)  # the last ones begin to wait
    while limit.waiting:
        clock.now += 0.01
        limit.serve()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result is True for result in results) >= 2_000
    assert stats.dropped + stats.rejected + sum(result is True for result in results) == 20_000
    clock.now += 1
    assert await limit.admit("a", stats)
    assert limit.waiting == 0


@pytest.mark.parametrize(
    ("argument", "given_"),
    [
        ("per_second", {"per_second": 0}),
        ("per_second", {"per_second": -1}),
        ("per_second", {"per_second": float("inf")}),
        ("per_second", {"per_second": "fast"}),
        ("burst", {"burst": 0}),
        ("burst", {"burst": 1.5}),
        ("waiting", {"waiting": 0}),
        ("overflow", {"overflow": "drop"}),
    ],
)
def test_a_wrong_limit_is_named(argument: str, given_: dict[str, Any]) -> None:
    """Before anything is published."""
    with pytest.raises(InvalidArgumentError) as caught:
        RateLimit(**given_)
    assert caught.value.argument == argument
