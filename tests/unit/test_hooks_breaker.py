"""Circuit breakers: with a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.breaker import BreakerConfig, BreakerState, CircuitBreaker


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state(breaker: CircuitBreaker) -> BreakerState:
    """Return where it stands, in words that a type checker does not remember."""
    return breaker.state


@pytest.fixture
def clock() -> Clock:
    """The clock."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """A breaker with the defaults."""
    return CircuitBreaker(clock=clock)


def test_enough_failures_open_it(breaker: CircuitBreaker) -> None:
    """Three; then nothing is let through."""
    for _ in range(2):
        breaker.failed()
        assert state(breaker) == BreakerState.CLOSED
        breaker.succeeded(0.001)
    breaker.failed()
    assert state(breaker) == BreakerState.OPEN
    assert not breaker.allows()
    assert breaker.opened == 1


def test_failures_age(breaker: CircuitBreaker, clock: Clock) -> None:
    """After the window they no longer count."""
    for _ in range(20):
        breaker.failed()
        clock.now += 15.1  # never three within thirty seconds
    assert state(breaker) == BreakerState.CLOSED
    breaker.failed()
    clock.now += 1
    breaker.failed()
    clock.now += 1
    breaker.failed()
    assert state(breaker) == BreakerState.OPEN


def test_half_open_lets_one_at_a_time_try(breaker: CircuitBreaker, clock: Clock) -> None:
    """Two successes in a row close it."""
    for _ in range(3):
        breaker.failed()
    clock.now += 14.9
    assert not breaker.allows()
    clock.now += 0.1
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded(0.001)
    assert state(breaker) == BreakerState.HALF_OPEN
    assert breaker.allows()
    breaker.succeeded(0.001)
    assert state(breaker) == BreakerState.CLOSED
    assert breaker.allows()
    assert breaker.allows()


@pytest.mark.parametrize("how", ["failure", "slow call"])
def test_a_failed_try_opens_it_again(breaker: CircuitBreaker, clock: Clock, how: str) -> None:
    """For as long as before."""
    for _ in range(3):
        breaker.failed()
    clock.now += 15
    assert breaker.allows()
    if how == "failure":
        breaker.failed()
    else:
        breaker.succeeded(0.06)
    assert state(breaker) == BreakerState.OPEN
    clock.now += 14
    assert not breaker.allows()


def test_one_of_whom_nothing_is_heard_does_not_keep_it_shut(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A caller that was cancelled while it tried."""
    for _ in range(3):
        breaker.failed()
    clock.now += 15
    assert breaker.allows()
    assert not breaker.allows()
    clock.now += 15
    assert breaker.allows()
    breaker.gave_up()
    assert breaker.allows()


def test_slow_calls_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    """Two of at least 50 ms within the window."""
    breaker.succeeded(0.049)
    breaker.succeeded(0.050)
    assert state(breaker) == BreakerState.CLOSED
    clock.now += 31
    breaker.succeeded(0.050)
    assert state(breaker) == BreakerState.CLOSED
    breaker.succeeded(0.2)
    assert state(breaker) == BreakerState.OPEN


def test_whoever_listens_hears_of_every_change(breaker: CircuitBreaker, clock: Clock) -> None:
    """Open and closed, and nothing in between."""
    heard: list[bool] = []
    breaker.on_change(lambda: heard.append(breaker.settled))
    for _ in range(3):
        breaker.failed()
    clock.now += 15
    for _ in range(2):
        assert breaker.allows()
        breaker.succeeded(0.001)
    for _ in range(3):
        breaker.failed()
    breaker.reset()
    assert heard == [False, True, False, True]


def test_the_presets() -> None:
    """What the reference says."""
    assert BreakerConfig() == BreakerConfig(3, 2, 30.0, 15.0, 2)
    assert CircuitBreaker().slow_s == 0.050
    assert BreakerConfig.production() == BreakerConfig(2, 1, 20.0, 10.0, 1, 0.025)
    assert BreakerConfig.conservative() == BreakerConfig(5, 3, 60.0, 30.0, 3, 0.100)


@pytest.mark.parametrize(
    "bad",
    [
        {"failure_threshold": 0},
        {"success_threshold": 1.5},
        {"slow_call_threshold": True},
        {"failure_window": 0},
        {"open_duration": float("inf")},
        {"slow_call_duration": "1"},
    ],
)
def test_a_bad_setting_is_named(bad: dict[str, Any]) -> None:
    """With its value."""
    with pytest.raises(InvalidArgumentError, match=next(iter(bad))):
        BreakerConfig(**bad)
