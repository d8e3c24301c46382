"""Clocks that jump by an hour: a client's changes nothing, the server's is survived."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Any

import pytest
from fix_faults import Servers
from fix_lease_faults import (
    Clock,
    LeaseProcess,
    LeaseView,
    Workers,
    in_line,
    looking_at,
    report,
    wait_until,
)
from fix_servers import Server

pytestmark = [pytest.mark.integration, pytest.mark.needs("process", "kill"), pytest.mark.one_server]

HOUR_S = 3600.0
FAR_LESS_S = 60.0
"""What no jump of an hour has had a part in, however busy the machine is."""
TTL_S = 9.0
"""The holder's: no process is ever stopped for so long. It is renewed when a test wants it."""
WAITER_TTL_S = 4.0
"""So often who waits looks whether the holder has died."""
Jump = Callable[[float], None]


def hours_off(process: LeaseProcess) -> set[float]:
    """By how many hours a process is wrong about the time of day, as `time` and `datetime` say."""
    said = process.ask("clock", "clock")
    return {round((said[name] - time()) / HOUR_S, 2) for name in ("time_s", "datetime_s")}


def check_that_jumps_change_nothing(
    holder: LeaseProcess, waiter: LeaseProcess, view: LeaseView, jump: Jump
) -> float:
    """Let the time of day jump while one holds and one waits; how long the hand-over then took."""
    holder.tell("hold", ttl=TTL_S, writers=1)
    token = holder.hears("granted")["token"]
    in_line(view, waiter, ttl=WAITER_TTL_S)
    for seconds in (HOUR_S, -HOUR_S, 0.0, -HOUR_S, HOUR_S):
        jump(seconds)
        for process in (holder, waiter):
            assert hours_off(process) == {seconds / HOUR_S}, "no clock has jumped: void"
        view.wait_for_renewals(holder, 2)
        wrote = holder.ask("write", "wrote", count=3)
        assert (wrote["accepted"], wrote["refused"], wrote["held"]) == (3, {}, True)
        assert view.waiting() == 1
    assert not holder.said("told")
    assert not waiter.said("granted")
    record = view.record
    assert record is not None
    assert record.token == token
    killed_at = holder.kill()
    view.expire()
    granted = waiter.hears("granted")
    assert granted["token"] > token
    return float(granted["at"] - killed_at)


def check_that_a_wait_takes_its_time(
    holder: LeaseProcess, waiter: LeaseProcess, view: LeaseView, jump: Jump
) -> None:
    """A wait that has an end is neither cut short nor drawn out by a jump."""
    holder.tell("hold", ttl=10)
    holder.hears("granted")
    for seconds in (HOUR_S, -HOUR_S):
        for _ in range(10):
            jump(0.0)
            waiter.tell("hold", ttl=10, wait=0.5)
            wait_until(lambda: view.waiting() == 1 or waiter.said("unavailable"))
            jump(seconds)
            waiting = not waiter.said("unavailable")
            assert 0.5 <= waiter.hears("unavailable")["waited_s"] < FAR_LESS_S
            assert view.waiting() == 0
            if waiting:
                break
        else:
            raise AssertionError("no clock has jumped while it waited: void")
    holder.ask("release", "released")
    view.check_nothing_left()


@pytest.mark.timeout(120)
def test_the_time_of_day_in_python_changes_nothing(
    server: Server, workers: Workers, view: LeaseView
) -> None:
    """The time of day is wrong from before the import on, and jumps by an hour, both ways."""
    holder, waiter = [workers(server, clock="wrong") for _ in range(2)]

    def jump(seconds: float) -> None:
        for one in (holder, waiter):
            one.ask("jump", "jumped", seconds=seconds)

    for one in (holder, waiter):
        one.hears_ready()
    check_that_a_wait_takes_its_time(holder, waiter, view, jump)
    took = check_that_jumps_change_nothing(holder, waiter, view, jump)
    report("client clock, Python", server=server.row.title, ttl_s=TTL_S, took_s=took)
    assert took < FAR_LESS_S
    waiter.end()


@pytest.mark.timeout(120)
def test_the_time_of_day_of_the_whole_process_changes_nothing(
    server: Server, workers: Workers, view: LeaseView, clock: Clock
) -> None:
    """CLOCK_REALTIME jumps by an hour, both ways, for everything in the process."""
    holder, waiter = [workers(server, env=clock.environment) for _ in range(2)]
    for one in (holder, waiter):
        one.hears_ready()
    check_that_a_wait_takes_its_time(holder, waiter, view, clock.jump)
    took = check_that_jumps_change_nothing(holder, waiter, view, clock.jump)
    report("client clock, process", server=server.row.title, ttl_s=TTL_S, took_s=took)
    assert took < FAR_LESS_S
    waiter.end()


# --- the server's clock ---------------------------------------------------------------------------


def at_work(
    workers: Workers, server: Any, view: LeaseView, *, waiter_ttl: float = TTL_S
) -> tuple[LeaseProcess, LeaseProcess, int]:
    """Return a holder that writes, one who waits, and the holder's token."""
    holder, waiter = [workers(server) for _ in range(2)]
    for one in (holder, waiter):
        one.hears_ready()
    holder.tell("hold", ttl=TTL_S, writers=2)
    token: int = holder.hears("granted")["token"]
    in_line(view, waiter, ttl=waiter_ttl)
    return holder, waiter, token


@pytest.fixture
def off_server(own_server: Servers, clock: Clock) -> Any:
    """A server whose time of day is that of `clock`."""
    with clock.in_environment():
        return own_server()


@pytest.mark.timeout(60)
def test_a_server_whose_clock_jumps_ahead_ends_the_lease_and_says_so(
    off_server: Any, workers: Workers, clock: Clock, namespace: str
) -> None:
    """By its time the lease is over: the next one has it, the holder is told and is refused."""
    with looking_at(off_server, namespace) as view:
        holder, waiter, token = at_work(workers, off_server, view, waiter_ttl=WAITER_TTL_S)
        clock.jump(HOUR_S)
        holder.tell("renew")
        lost = holder.hears("lost")
        assert lost["refused"].keys() <= {"expired", "token"}
        assert lost["refused"], "no stale write was tried: void"
        granted = waiter.hears("granted")
        assert granted["token"] > token
        marker = view.last_entry()
        assert holder.ask("write", "wrote", count=5)["accepted"] == 0
        assert waiter.ask("write", "wrote", count=1)["accepted"] == 1
        assert view.tokens_since(marker) == [granted["token"]]
        waiter.ask("release", "released")
        view.check_nothing_left()
    holder.end()
    waiter.end()


@pytest.mark.timeout(60)
def test_a_server_whose_clock_jumps_back_grants_no_lower_token(
    off_server: Any, workers: Workers, clock: Clock, namespace: str
) -> None:
    """The holder goes on undisturbed; hand-overs go on; every token is higher than the last."""
    with looking_at(off_server, namespace) as view:
        holder, waiter, token = at_work(workers, off_server, view)
        tokens = [token]
        for hours in (1, 2):
            clock.jump(-HOUR_S * hours)
            assert holder.ask("write", "wrote", count=3)["accepted"] == 3
            assert holder.ask("release", "released")["refused"] == {}
            tokens.append(waiter.hears("granted")["token"])
            assert waiter.ask("write", "wrote", count=1)["accepted"] == 1
            holder, waiter = waiter, holder
            in_line(view, waiter, ttl=TTL_S)
        assert view.raw.now_ms() * 1000 < token, "the server's clock is not back: void"
        assert tokens == sorted(set(tokens))
        holder.ask("release", "released")
        waiter.hears("granted")
        waiter.ask("release", "released")
        view.check_nothing_left()
    holder.end()
    waiter.end()
