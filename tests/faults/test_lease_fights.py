"""Many processes want one lease at once: only one at a time has it, and each has its turn."""

from __future__ import annotations

from time import monotonic

import pytest
from fix_faults import blocking_client
from fix_lease_faults import LEASED, LeaseView, Workers, report
from fix_servers import Server

pytestmark = [pytest.mark.integration, pytest.mark.needs("process", "kill"), pytest.mark.one_server]

COUNTED = "counted"


def named(size: tuple[int, float]) -> str:
    """Return what a test of so many processes and seconds is called."""
    return f"{size[0]} processes"


def fight(
    server: Server, workers: Workers, namespace: str, size: tuple[int, float], *, leased: bool
) -> int:
    """Let processes add one by a read and a write, each as often as it can; how many got lost."""
    processes, seconds = size
    fighters = [workers(server) for _ in range(processes)]
    for fighter in fighters:
        fighter.hears("ready", within_s=60)
    begin = monotonic() + 0.5
    for fighter in fighters:
        fighter.tell("fight", begin=begin, end=begin + seconds, ttl=10, leased=leased)
    told = [fighter.hears("fought", within_s=seconds + 60) for fighter in fighters]
    for fighter in fighters:
        fighter.end()
    with blocking_client(server, namespace) as spell:
        counted: int = spell.state.get(LEASED, COUNTED)
    grants: list[int] = sorted(one["grants"] for one in told)
    total = sum(grants)
    report(
        "fight" if leased else "fight without the lease",
        server=server.row.title,
        processes=processes,
        seconds=seconds,
        increments=total,
        lost_updates=total - counted,
        grants_fewest=grants[0],
        grants_median=grants[processes // 2],
        grants_most=grants[-1],
        fairness_jain=round(total**2 / (processes * sum(n * n for n in grants)), 5),
        wait_mean_s=round(sum(one["waited_s"] for one in told) / total, 5),
        wait_longest_s=round(max(one["longest_wait_s"] for one in told), 5),
    )
    if leased:
        assert grants[0] > 0, "somebody was never served"
        assert grants[-1] <= 2 * grants[0], f"not fair: {grants}"
    return total - counted


@pytest.mark.parametrize(
    "size", [(6, 3.0), pytest.param((50, 30.0), marks=pytest.mark.slow)], ids=named
)
@pytest.mark.timeout(300)
def test_an_increment_that_needs_the_lease_is_exact(
    server: Server, workers: Workers, namespace: str, view: LeaseView, size: tuple[int, float]
) -> None:
    """Read, add one, write, by plain state: not one is lost, and everybody has as many turns."""
    assert fight(server, workers, namespace, size, leased=True) == 0
    view.check_nothing_left()


@pytest.mark.parametrize(
    "size", [(6, 1.0), pytest.param((50, 10.0), marks=pytest.mark.slow)], ids=named
)
@pytest.mark.timeout(300)
def test_without_the_lease_the_same_increment_loses_updates(
    server: Server, workers: Workers, namespace: str, size: tuple[int, float]
) -> None:
    """The control: it is the lease that keeps the count."""
    assert fight(server, workers, namespace, size, leased=False) > 0
