"""The estimate of the server's clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.clock import Liveness, ServerClock

pytestmark = pytest.mark.unit


class Time:
    """A local clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def sampled(*, sent: float = 99.9, received: float = 100.0, server: float = 1000.0) -> ServerClock:
    """Return a clock with one sample, at the local moment 100."""
    clock = ServerClock(now=Time())
    clock.observe(sent, received, server)
    return clock


def test_without_a_sample_nothing_is_certain() -> None:
    """Every expiry has to be asked for."""
    clock = ServerClock()
    assert clock.compare(0) is Liveness.UNSURE
    assert clock.bounds_ms() is None
    assert clock.error_ms == clock.age_s == float("inf")


def test_what_lies_outside_the_bounds_is_judged() -> None:
    """Within the round trip's length nothing is said, outside of it the answer is sure."""
    clock = sampled()
    assert clock.compare(1_000_101) is Liveness.ALIVE
    assert clock.compare(1_000_050) is Liveness.UNSURE
    assert clock.compare(999_999) is Liveness.EXPIRED
    assert clock.error_ms == pytest.approx(50)


def test_an_old_sample_says_nothing() -> None:
    """After two seconds the server's clock may have been set, or this machine have slept."""
    time = Time()
    clock = ServerClock(now=time)
    clock.observe(100.0, 100.0, 1000.0)
    time.now = 101.9
    assert clock.compare(0) is Liveness.EXPIRED
    time.now = 102.1
    assert clock.compare(0) is Liveness.UNSURE


def test_the_bounds_widen_with_age() -> None:
    """Clocks drift apart, so certainty fades."""
    time = Time()
    clock = ServerClock(now=time)
    clock.observe(100.0, 100.0, 1000.0)
    fresh = clock.error_ms
    time.now = 101.0
    assert fresh == pytest.approx(0)
    assert clock.error_ms == pytest.approx(1.0)


def test_a_step_of_the_servers_clock_is_taken_over() -> None:
    """A sample that contradicts the one before replaces it."""
    clock = sampled()
    clock.observe(99.95, 100.0, 2000.0)
    assert clock.compare(1_500_000) is Liveness.EXPIRED


def test_a_late_sample_does_not_spoil_a_good_one() -> None:
    """A sample from a slow connection that agrees says less, and is left out."""
    clock = sampled(sent=99.999)
    clock.observe(98.0, 100.0, 999.5)
    assert clock.error_ms < 1


def test_an_older_sample_is_ignored() -> None:
    """Samples of several connections may come out of order."""
    clock = sampled()
    clock.observe(50.0, 51.0, 5000.0)
    assert clock.compare(1_500_000) is Liveness.ALIVE


@given(
    offset=st.floats(-1e6, 1e9),
    there=st.floats(0, 1),
    back=st.floats(0, 1),
    later=st.floats(0, 1.9),
    drift=st.floats(-0.0009, 0.0009),
    expires_in=st.floats(-5, 5),
)
def test_a_verdict_is_never_wrong(
    *, offset: float, there: float, back: float, later: float, drift: float, expires_in: float
) -> None:
    """Whatever the delays and the drift, ALIVE and EXPIRED agree with the server's true time."""
    time = Time()
    clock = ServerClock(now=time)
    sent = 1000.0
    true_at_sample = offset + sent + there
    clock.observe(sent, sent + there + back, true_at_sample)
    time.now = sent + there + back + later
    true_now = true_at_sample + (back + later) * (1 + drift)
    verdict = clock.compare((true_now + expires_in) * 1000)
    if verdict is Liveness.ALIVE:
        assert expires_in > -1e-6
    elif verdict is Liveness.EXPIRED:
        assert expires_in < 1e-6
