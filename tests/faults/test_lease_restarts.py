"""The server is killed and comes back: with its data, without it, and with another time of day."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import nullcontext
from time import time
from typing import Any

import pytest
from fix_faults import Servers, client
from fix_lease_faults import (
    LEASED,
    Clock,
    LeaseProcess,
    LeaseView,
    Workers,
    chance,
    in_line,
    looking_at,
    report,
    wait_until,
)
from fix_servers import Server
from fix_state import until

from llmspell_dist.redis.embedded import EmbeddedServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("restart", "persistence"),
    pytest.mark.one_server,
]

HOUR_S = 3600.0


def ready(*processes: LeaseProcess) -> tuple[LeaseProcess, ...]:
    """Wait until processes obey."""
    for process in processes:
        process.hears_ready()
    return processes


def lose_everything(server: EmbeddedServer) -> None:
    """Remove the files of a server that is down."""
    assert not server.running
    found = [*server.path.glob("*.rdb"), *server.path.glob("appendonly*")]
    assert found, "there is nothing to lose"
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- with its data --------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_a_lease_outlives_a_crash_of_the_server_that_is_shorter_than_its_time(
    own_server: Servers, workers: Workers, namespace: str, rounds: int
) -> None:
    """With an AOF: the holder keeps it and writes on, who waits gets it next, tokens grow."""
    dice = chance("server restart")
    server = own_server(fsync="always")
    holder, waiter = ready(workers(server), workers(server))
    tokens = [0]
    for _ in range(rounds):
        holder.tell("hold", ttl=10, writers=2, reach=dice.randint(1, 300))
        tokens.append(holder.hears("granted")["token"])
        with looking_at(server, namespace) as view:
            in_line(view, waiter, ttl=10)
        holder.hears("reached")
        server.kill()
        server.start()
        assert holder.ask("write", "wrote", count=1)["accepted"] == 1
        released = holder.ask("release", "released")
        assert released["refused"] == {}
        tokens.append(waiter.hears("granted")["token"])
        assert waiter.ask("write", "wrote", count=1)["accepted"] == 1
        waiter.ask("release", "released")
        with looking_at(server, namespace) as view:
            view.check_nothing_left()
            assert (written := view.tokens_since(b"0")) == sorted(written)
    holder.end()
    waiter.end()
    report("server restart", rounds=rounds, tokens=len(tokens) - 1)
    assert tokens == sorted(set(tokens)), "a token came again, or fell"


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_a_holder_is_told_when_the_server_is_away_for_longer_than_its_time(
    own_server: Servers, workers: Workers, namespace: str, rounds: int
) -> None:
    """While the server is still down; when it is back, whoever waits has it, and alone."""
    dice = chance("server away")
    server = own_server(fsync="always")
    holder, waiter = ready(workers(server), workers(server))
    tokens, refused, ttl = [0], 0, 1.0
    for _ in range(rounds):
        holder.tell("hold", ttl=ttl, writers=4, reach=dice.randint(1, 300))
        tokens.append(holder.hears("granted")["token"])
        with looking_at(server, namespace) as view:
            marker = view.last_entry()
            in_line(view, waiter, ttl=10)
        holder.hears("reached")
        server.kill()
        over = time() + ttl  # the server's clock is this machine's
        told = holder.hears("told")
        assert (told["outcome"], told["token"]) == ("lost", tokens[-1])
        wait_until(lambda: time() > over)  # noqa: B023 - it is over before the next round
        server.start()
        tokens.append(waiter.hears("granted")["token"])
        assert waiter.ask("write", "wrote", count=1)["accepted"] == 1
        lost = holder.hears("lost", within_s=40)
        assert lost["refused"], "no stale write was tried: void"
        refused += sum(lost["refused"].values())
        waiter.ask("release", "released")
        with looking_at(server, namespace) as view:
            view.check_nothing_left()
            written = view.tokens_since(marker)
            assert written == sorted(written), "a stale write landed"
            assert written.count(tokens[-1]) == 1
    holder.end()
    waiter.end()
    report("server away", rounds=rounds, refused=refused)
    assert tokens == sorted(set(tokens)), "a token came again, or fell"


# --- without its data -----------------------------------------------------------------------------


@pytest.mark.parametrize("clock_s", [0.0, -HOUR_S], ids=["clock right", "clock an hour back"])
@pytest.mark.timeout(120)
def test_a_lease_that_was_lost_with_the_servers_data_is_refused(
    own_server: Servers,
    workers: Workers,
    namespace: str,
    clock_s: float,
    request: pytest.FixtureRequest,
) -> None:
    """The holder is told, its writes do not land, and its next token is above all it has seen."""
    clock: Clock | None = request.getfixturevalue("clock") if clock_s else None
    with clock.in_environment() if clock else nullcontext():
        server = own_server(fsync="always")
        (holder,) = ready(workers(server))
        holder.tell("hold", ttl=10, writers=2, reach=20)
        token = holder.hears("granted")["token"]
        holder.hears("reached")
        server.kill()
        lose_everything(server)
        if clock is not None:
            clock.jump(clock_s)
        server.start()
    lost = holder.hears("lost", within_s=40)
    assert "does not know it" in lost["reason"]
    assert set(lost["refused"]) - {"unknown"} == {"lost"}
    wrote = holder.ask("write", "wrote", count=5)
    assert (wrote["accepted"], wrote["refused"], wrote["held"]) == (0, {"lost": 5}, False)
    with looking_at(server, namespace) as view:
        assert view.tokens_since(b"0") == []
        if clock_s:
            assert view.raw.now_ms() * 1000 < token, "the server's clock is not back: void"
        holder.tell("hold", ttl=10)
        again = holder.hears("granted")["token"]
        assert again > token
        assert holder.ask("write", "wrote", count=1)["accepted"] == 1
        holder.ask("release", "released")
        view.check_nothing_left()
    holder.end()


@pytest.mark.timeout(120)
def test_a_token_from_the_queue_is_above_all_that_its_process_has_seen(
    own_server: Servers, workers: Workers, namespace: str, clock: Clock
) -> None:
    """Data gone, clock back, a newcomer was first: who waits in line still gets no lower one."""
    with clock.in_environment():
        server = own_server(fsync="always")
        (old,) = ready(workers(server))
        old.tell("hold", ttl=10)
        seen = old.hears("granted")["token"]
        old.ask("release", "released")
        server.kill()
        lose_everything(server)
        clock.jump(-HOUR_S)
        server.start()
    (newcomer,) = ready(workers(server))
    newcomer.tell("hold", ttl=10)
    assert newcomer.hears("granted")["token"] < seen, "the server's clock is not back: void"
    with looking_at(server, namespace) as view:
        in_line(view, old, ttl=10)
        newcomer.ask("release", "released")
        assert old.hears("granted")["token"] > seen
        assert old.ask("write", "wrote", count=1)["accepted"] == 1
        in_line(view, newcomer, ttl=10)
        old.ask("release", "released")
        assert newcomer.hears("granted")["token"] > seen + 1
        newcomer.ask("release", "released")
        view.check_nothing_left()
    old.end()
    newcomer.end()


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
async def test_a_client_that_has_seen_a_higher_token_is_granted_a_higher_one(
    server: Server, namespace: str, view: LeaseView, mode: str
) -> None:
    """From the queue and at once: the floor that every acquire sends holds."""
    ahead = 3_600_000_000  # an hour, in the microseconds that tokens are made of

    async def token_of(spell: Any) -> int:
        async with spell.leases.acquire(LEASED, ttl=10, mode=mode) as lease:
            token: int = lease.token
            return token

    async with client(server, namespace) as first, client(server, namespace) as second:
        async with first.leases.acquire(LEASED, ttl=10) as lease:
            second.leases.steps.highest = floor = lease.token + ahead
            waiting = asyncio.create_task(token_of(second))
            await until(lambda: view.waiting() == 1)
        assert await waiting > floor
        first.leases.steps.highest = floor = lease.token + 2 * ahead
        assert await token_of(first) > floor
