"""Holders and waiters that are stopped for longer than their time, and go on as if nothing was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from time import monotonic

import pytest
from fix_lease_faults import (
    LeaseProcess,
    LeaseView,
    Workers,
    at_most,
    chance,
    in_line,
    report,
    wait_until,
)
from fix_servers import Server

pytestmark = [pytest.mark.integration, pytest.mark.needs("process", "kill"), pytest.mark.one_server]

TTL_S = 0.3


class Rounds:
    """A holder with writers is stopped, another takes over and writes, the first goes on."""

    def __init__(self, workers: Workers, server: Server, view: LeaseView, dice: Random) -> None:
        self.view, self.dice = view, dice
        self.holder, self.taker = workers(server), workers(server)
        self.holder.hears_ready()
        self.taker.hears_ready()
        self.counts: Counter[str] = Counter()
        self.told_s: list[float] = []

    def run(self, rounds: int, *, fenced: bool) -> None:
        """Make so many rounds; those in which the holder lost its lease before do not count."""
        while self.counts["rounds"] < rounds:
            if not self._round(fenced=fenced):
                self.counts["void"] += 1
                assert self.counts["void"] <= max(rounds, 10), (
                    "this machine is too slow for this TTL"
                )
        self.holder.end()
        self.taker.end()

    def _round(self, *, fenced: bool) -> bool:
        holder, taker, dice = self.holder, self.taker, self.dice
        reach = dice.randint(1, 3000)
        holder.tell("hold", ttl=TTL_S, writers=4, fenced=fenced, reach=reach)
        token = holder.takes()
        if token is None:
            return False
        in_line = dice.random() < 0.5
        if in_line:
            taker.tell("hold", ttl=30)
        reached: bool = holder.hears("reached", "lost")["event"] == "reached"
        holder.stop()
        if not in_line:
            taker.tell("hold", ttl=30)
        taken = taker.hears("granted")["token"]
        marker = self.view.last_entry()
        assert taker.ask("write", "wrote", count=1)["accepted"] == 1
        at = monotonic()
        holder.go_on()
        if reached:
            self.told_s.append(holder.hears("told")["at"] - at)
            self._count(token, taken, holder.hears("lost"), marker)
        assert taker.ask("write", "wrote", count=1)["accepted"] == 1
        taker.ask("release", "released")
        return reached

    def _count(self, token: int, taken: int, lost: dict[str, object], marker: bytes) -> None:
        assert lost["token"] == token < taken
        assert lost["cancelling"] == 0, "the task cannot go on after LeaseLostError"
        refused = lost["refused"]
        assert isinstance(refused, dict)
        self.counts["rounds"] += 1
        self.counts["refused"] += sum(refused.values())
        self.counts["rounds with refusals"] += bool(refused)
        assert set(refused) <= {"token"}, "a write was refused for another reason"
        writers = Counter(self.view.tokens_since(marker))
        self.counts["landed"] += writers.pop(token, 0)
        assert writers.keys() == {taken}


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_holder_that_was_stopped_past_its_time_writes_nothing_any_more(
    server: Server, workers: Workers, view: LeaseView, rounds: int
) -> None:
    """Whoever took over is alone: stale writes are all refused, and the first one's task ends."""
    campaign = Rounds(workers, server, view, chance("stopped holder"))
    campaign.run(rounds, fenced=True)
    counts = campaign.counts
    report(
        "stopped holder",
        server=server.row.title,
        **counts,
        stale_writes_landed=at_most(counts["rounds"]),
        told_s_longest=max(campaign.told_s),
    )
    assert counts["landed"] == 0
    assert counts["rounds with refusals"] == counts["rounds"], "no stale write was tried: void"
    assert min(campaign.told_s) < 1.0
    assert max(campaign.told_s) < 10.0, "it was told when the other's time was over"


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_without_the_fence_the_same_writes_land(
    server: Server, workers: Workers, view: LeaseView, rounds: int
) -> None:
    """The control: by `spell.state` stale writes do land, so the other campaign can see them."""
    campaign = Rounds(workers, server, view, chance("stopped holder, no fence"))
    campaign.run(rounds, fenced=False)
    report("stopped holder, no fence", server=server.row.title, **campaign.counts)
    assert campaign.counts["refused"] == 0
    assert campaign.counts["landed"] > 0


def test_a_holder_that_was_stopped_past_its_time_is_refused_though_nobody_came(
    server: Server, workers: Workers, view: LeaseView
) -> None:
    """Time alone ends a lease: nobody has taken it, and still nothing is written."""
    holder = workers(server)
    holder.hears_ready()
    for _ in range(10):  # it may lose the lease before, on a busy machine
        holder.tell("hold", ttl=TTL_S, writers=4, reach=20)
        if holder.hears("reached", "lost")["event"] == "reached":
            break
    else:
        raise AssertionError("this machine is too slow for this TTL")
    holder.stop()
    record = view.record
    assert record is not None
    expires_ms = record.expires.timestamp() * 1000
    wait_until(lambda: view.raw.now_ms() > expires_ms)
    marker = view.last_entry()
    holder.go_on()
    lost = holder.hears("lost")
    assert lost["refused"].keys() == {"expired"}
    assert view.tokens_since(marker) == []
    holder.end()


@pytest.fixture
def three(server: Server, workers: Workers) -> Iterator[list[LeaseProcess]]:
    """Three processes."""
    made = [workers(server) for _ in range(3)]
    for one in made:
        one.hears_ready()
    yield made
    for one in made:
        one.end()


def test_a_waiter_that_is_stopped_at_its_turn_holds_up_the_next_for_its_time_at_most(
    three: list[LeaseProcess], view: LeaseView
) -> None:
    """What it was granted in its sleep ends like any grant; awake, it is first in line again."""
    holder, first, second = three
    holder.tell("hold", ttl=30)
    holder.hears("granted")
    in_line(view, first, second, ttl=4.0)
    first.stop()
    released = holder.ask("release", "released")
    granted = second.hears("granted")
    assert granted["at"] - released["at"] < 10.0
    in_line(view, holder, ttl=30)
    first.go_on()
    view.wait_for_waiters(2)
    second.ask("release", "released")
    again = first.hears("granted")
    assert again["token"] > granted["token"], "it takes the grant of its sleep for its own"
    assert not holder.said("granted")
    first.ask("release", "released")
    holder.hears("granted")
    holder.ask("release", "released")
    view.check_nothing_left()


def test_a_waiter_that_is_stopped_for_a_while_loses_nothing(
    three: list[LeaseProcess], view: LeaseView
) -> None:
    """It keeps its place in line while it does not listen, if its turn does not come meanwhile."""
    holder, first, second = three
    holder.tell("hold", ttl=10)
    holder.hears("granted")
    in_line(view, first, second, ttl=30)
    record = view.record
    assert record is not None
    first.stop()
    view.wait_for_renewals(holder)
    first.go_on()
    holder.ask("release", "released")
    assert first.hears("granted")["token"] > record.token
    assert not second.said("granted")
    first.ask("release", "released")
    second.hears("granted")
    second.ask("release", "released")
    view.check_nothing_left()
