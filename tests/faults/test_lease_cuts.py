"""Connections that are cut while the lease is held and waited for, and a client that is cut off."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from fix_faults import Proxies, blocking_client
from fix_lease_faults import (
    LEASED,
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

WORKERS = 3
CUTS = 20


class Place:
    """Where only one may be at a time; processes count themselves in and out past the proxies."""

    def __init__(self, server: Server, view: LeaseView, namespace: str) -> None:
        self.key = f"{namespace}:place"
        self.address = str(server.address)
        self._view = view

    def rounds(self) -> dict[bytes, int]:
        """How often each process has been there, by its id."""
        flat = self._view.raw("HGETALL", f"{self.key}:rounds")
        return dict(zip(flat[::2], map(int, flat[1::2]), strict=True))

    def wait_for_progress(self, processes: list[LeaseProcess]) -> None:
        """Wait until every process has been there twice more: nobody hangs."""
        before = self.rounds()
        names = [b"%d" % process.pid for process in processes]
        wait_until(
            lambda: (
                (now := self.rounds()) is not None
                and all(now.get(name, 0) >= before.get(name, 0) + 2 for name in names)
            ),
            within_s=20,
        )

    def occupy(self, processes: list[LeaseProcess], *, leased: bool) -> None:
        """Let processes go there, one after the other or not."""
        for process in processes:
            process.tell("occupy", direct=self.address, key=self.key, ttl=5, leased=leased)

    def leave(self, processes: list[LeaseProcess]) -> tuple[int, int]:
        """Let them end; how many rounds they made, and in how many of them they were not alone."""
        for process in processes:
            process.tell("stop")
        told = [process.hears("occupied") for process in processes]
        for process in processes:
            process.end()
        return sum(one["rounds"] for one in told), sum(one["together"] for one in told)


def cut(proxy: Any, dice: Random) -> str:
    """Cut connections of one client in one of the ways there are, and wait until that is done."""
    how = dice.choice(["drop_reply", "cut_before", "cut_within", "limit_data", "reset_peer"])
    struck = proxy.struck
    if how == "reset_peer":
        assert proxy.reset_peer() > 0
        return how
    if how == "limit_data":
        proxy.limit_data(dice.randint(1, 400))
    else:
        # Whatever concerns the lease: taking, asking again, renewing, giving back.
        getattr(proxy, how)(b":lease:", after=dice.randint(0, 3))
    wait_until(lambda: proxy.struck > struck, within_s=20)
    return how


@pytest.mark.timeout(120)
def test_cuts_while_holding_and_waiting_let_nobody_in_twice_and_nobody_hang(
    server: Server, workers: Workers, fault_proxy: Proxies, view: LeaseView, namespace: str
) -> None:
    """Twenty cuts, each of the lanes and of the bell: one at a time, all go on, nothing stays."""
    dice = chance("cuts")
    place = Place(server, view, namespace)
    proxies = [fault_proxy(server) for _ in range(WORKERS)]
    processes = [workers(proxy) for proxy in proxies]
    for process in processes:
        process.hears_ready()
    place.occupy(processes, leased=True)
    hows = []
    for _ in range(CUTS):
        hows.append(cut(dice.choice(proxies), dice))
        place.wait_for_progress(processes)
    rounds, together = place.leave(processes)
    with blocking_client(server, namespace) as spell:
        assert spell.state.get(LEASED, "counted") == rounds
    report(
        "cuts",
        server=server.row.title,
        cuts={how: hows.count(how) for how in sorted(set(hows))},
        connections=sum(proxy.connections for proxy in proxies),
        rounds=rounds,
        held_by_two=together or at_most(rounds),
    )
    assert together == 0
    view.check_nothing_left()


@pytest.mark.timeout(60)
def test_without_the_lease_they_meet(
    server: Server, workers: Workers, view: LeaseView, namespace: str
) -> None:
    """The control: the same processes do meet where nothing keeps them apart."""
    place = Place(server, view, namespace)
    processes = [workers(server) for _ in range(WORKERS)]
    for process in processes:
        process.hears_ready()
    place.occupy(processes, leased=False)
    for _ in range(10):
        place.wait_for_progress(processes)
    rounds, together = place.leave(processes)
    report("no lease", server=server.row.title, rounds=rounds, met=together)
    assert together > 0


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(120)
def test_a_holder_that_is_cut_off_knows_before_another_holds(
    server: Server, workers: Workers, fault_proxy: Proxies, view: LeaseView, rounds: int
) -> None:
    """Its connections are silent: its own clock tells it, before the next one holds.

    Compared is until when it counted as held there; a busy machine may be late to say so.
    """
    proxy = fault_proxy(server)
    holder, waiter = workers(proxy), workers(server)
    for one in (holder, waiter):
        one.hears_ready()
    before: list[float] = []
    void = 0
    while len(before) < rounds:
        holder.tell("hold", ttl=1.0, writers=2, reach=100)
        token = holder.takes()
        waiter.tell("hold", ttl=5)
        if token is None or not holder.holds_in_front(view, 1):
            void += 1
            assert void <= max(rounds, 10), "this machine is too slow for this TTL"
            waiter.hears("granted")
            waiter.ask("release", "released")
            continue
        proxy.half_open()
        told = holder.hears("told")
        granted = waiter.hears("granted")
        assert (told["outcome"], told["token"]) == ("lost", token)
        assert granted["token"] > token
        before.append(granted["at"] - told["deadline"])
        marker = view.last_entry()
        proxy.clear()
        lost = holder.hears("lost", within_s=60)
        assert set(lost["refused"]) == {"token"}
        assert waiter.ask("write", "wrote", count=1)["accepted"] == 1
        assert set(view.tokens_since(marker)) == {granted["token"]}
        waiter.ask("release", "released")
        view.check_nothing_left()
    holder.end()
    waiter.end()
    report("cut off", server=server.row.title, rounds=rounds, told_before_s=min(before))
    assert min(before) > 0


@pytest.mark.timeout(60)
def test_a_waiter_whose_bell_is_cut_hears_of_its_turn_all_the_same(
    server: Server, workers: Workers, fault_proxy: Proxies, view: LeaseView
) -> None:
    """The lease comes free while the waiter's connections are down: it is not skipped for good."""
    proxy = fault_proxy(server)
    holder, waiter = workers(server), workers(proxy)
    for one in (holder, waiter):
        one.hears_ready()
    holder.tell("hold", ttl=30)
    holder.hears("granted")
    in_line(view, waiter, ttl=30)
    proxy.down()
    released = holder.ask("release", "released")
    proxy.up()
    assert waiter.hears("granted")["at"] - released["at"] < 10.0
    waiter.ask("release", "released")
    view.check_nothing_left()
    for one in (holder, waiter):
        one.end()
