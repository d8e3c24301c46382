"""The lanes under faults: every call ends, nothing is applied twice, no reply goes astray."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Callable
from functools import partial
from statistics import quantiles
from time import monotonic, perf_counter
from typing import Any

import pytest
from fix_faults import hasty
from fix_lane import SCOPE, add, count, echo, lanes_to, read, total
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import until

from llmspell_dist.errors import (
    OutcomeUnknownError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis import lane, sending, supervisor
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack

pytestmark = pytest.mark.integration

Proxies = Callable[..., FaultProxy]
Servers = Callable[..., Any]


class Level:
    """One replica must have it."""

    replicas = 1
    local_fsync = False


async def numbers(lanes: Lanes, keys: list[str]) -> list[int]:
    """Return how often each key was added to."""
    return [count(record) for record in await lanes.submit(pack("HMGET", SCOPE.hash, *keys))]


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the clock by which the lanes give up; return what it shows, to be moved on."""
    now = [monotonic()]
    for module in (lane, sending, supervisor):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


async def attempt(waiting: Any) -> Any:
    """Return the reply, or the error."""
    try:
        return await waiting
    except StoreUnavailableError as error:
        return error


# --- connections that are cut ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop_reply", "cut_before", "limit_data", "reset_peer"])
async def test_a_cut_in_the_middle_of_a_thousand_requests_loses_nothing(
    server: Server, fault_proxy: Proxies, fault: str
) -> None:
    """Five cuts of a kind: all calls end, each commit is there once, replies are their own."""
    proxy = fault_proxy(server)
    chance = random.Random(fault)
    async with lanes_to(proxy) as lanes:
        for around in range(5):
            if fault == "limit_data":
                proxy.limit_data(chance.randrange(1, 4000))
            elif fault != "reset_peer":
                getattr(proxy, fault)(after=chance.randrange(0, 200))
            keys = [f"k{around}-{i}" for i in range(500)]
            reads, commits = [], []
            for i, key in enumerate(keys):
                reads.append(lanes.submit(echo(f"{around}-{i}")))
                commits.append(lanes.commit(add(key)))
                if i % 25 == 24:
                    await asyncio.sleep(0)
                if fault == "reset_peer" and i == 250:
                    proxy.reset_peer()
            replies = await asyncio.gather(*reads)
            outcomes = await asyncio.gather(*commits)
            assert replies == [f"{around}-{i}".encode() for i in range(500)]
            assert [total(outcome) for outcome in outcomes] == [1] * 500
            assert await numbers(lanes, keys) == [1] * 500
            proxy.clear()
    assert proxy.connections >= 6, "the faults did not strike"


async def test_a_lost_reply_gives_the_first_outcome(server: Server, fault_proxy: Proxies) -> None:
    """A commit whose reply was lost is answered by what it did the first time."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        for expected in range(1, 6):
            proxy.drop_reply(b":log")
            assert total(await lanes.commit(add("n"))) == expected
    assert proxy.struck == 5


async def test_a_plain_write_is_not_sent_twice(server: Server, fault_proxy: Proxies) -> None:
    """A write without an operation id fails when its reply is lost, and was done once."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        proxy.drop_reply(b"INCR")
        with pytest.raises(StoreUnavailableError) as caught:
            await lanes.execute(Command(pack("INCR", "plain"), "INCR", write=True))
        assert caught.value.may_have_happened
        assert not caught.value.retryable
        assert await lanes.submit(pack("GET", "plain")) == b"1"


async def test_a_durable_commit_survives_a_lost_connection(
    server: Server, fault_proxy: Proxies
) -> None:
    """A connection lost between a commit and its WAIT leaves one commit and an honest answer."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy, options=LaneOptions(ack_timeout=0.05)) as lanes:
        for expected in range(1, 4):
            proxy.drop_reply(b"WAIT")
            outcome = await lanes.commit(add("n"), Level())
            assert total(outcome) == expected
            assert not outcome.reached
    assert proxy.struck == 3


async def test_replies_in_single_bytes_are_understood(server: Server, fault_proxy: Proxies) -> None:
    """Replies that arrive in pieces are put together."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        proxy.slicer(1)
        assert await asyncio.gather(*[lanes.submit(echo(i)) for i in range(20)]) == [
            b"%d" % i for i in range(20)
        ]
        assert total(await lanes.commit(add("n"))) == 1


# --- cancellation ---------------------------------------------------------------------------------


async def test_thousands_of_cancelled_callers_disturb_nobody(
    server: Server, fault_proxy: Proxies
) -> None:
    """Cancelled at any moment, with cuts in between: others get their replies, nothing is twice."""
    proxy = fault_proxy(server)
    chance = random.Random(11)
    keys = [f"k{i}" for i in range(3000)]
    async with lanes_to(proxy) as lanes:

        async def work(i: int) -> tuple[bytes, int]:
            reply = await lanes.submit(echo(i))
            return reply, total(await lanes.commit(add(keys[i])))

        tasks = []
        cuts = 0
        for i in range(3000):
            tasks.append(asyncio.create_task(work(i)))
            if i % 40 == 39:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                for task in chance.sample(tasks, 20):
                    task.cancel()
            if i % 700 == 699:
                while not (struck := proxy.reset_peer()):  # noqa: ASYNC110 - bounded by pytest
                    await asyncio.sleep(0.002)  # it has not come back from the last cut yet
                cuts += struck
        results = await asyncio.gather(*tasks, return_exceptions=True)
        applied = []
        for start in range(0, 3000, 500):
            applied += await numbers(lanes, keys[start : start + 500])
        cancelled = 0
        for i, result in enumerate(results):
            if isinstance(result, asyncio.CancelledError):
                cancelled += 1
                assert applied[i] <= 1
            else:
                assert result == (b"%d" % i, 1)
                assert applied[i] == 1
        assert cancelled > 300
        assert cuts >= 4


async def test_a_commit_cancelled_before_it_was_sent_never_happens(server: Server) -> None:
    """Cancelling in the same turn keeps a commit from being sent."""
    async with lanes_to(server) as lanes:
        futures = [lanes.commit(add(f"k{i}")) for i in range(4)]
        futures[1].cancel()
        futures[3].cancel()
        await asyncio.gather(*futures, return_exceptions=True)
        assert await numbers(lanes, [f"k{i}" for i in range(4)]) == [1, 0, 1, 0]


async def test_callers_with_little_time_leave_early(server: Server, fault_proxy: Proxies) -> None:
    """A caller's own timeout ends its wait and nobody else's."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        proxy.latency(0.1)
        patient = lanes.submit(echo("patient"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await lanes.submit(echo("hasty"))
        after = lanes.submit(echo("after"))
        assert list(await asyncio.gather(patient, after)) == [b"patient", b"after"]


# --- servers that are gone, silent or strange -----------------------------------------------------


async def test_calls_wait_for_a_server_that_comes_back(
    server: Server, fault_proxy: Proxies
) -> None:
    """Calls made while the server is away are answered when it is back."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        await lanes.commit(add("n"))
        proxy.down()
        reads = [lanes.submit(echo(i)) for i in range(50)]
        commits = [lanes.commit(add("n")) for _ in range(50)]
        await asyncio.sleep(0)
        proxy.up()
        assert await asyncio.gather(*reads) == [b"%d" % i for i in range(50)]
        assert [total(outcome) for outcome in await asyncio.gather(*commits)] == list(range(2, 52))


async def test_a_server_that_stays_away_is_named(
    server: Server, fault_proxy: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the budget each call fails with the address and what the system said."""
    proxy = fault_proxy(server)
    now = stopped_clock(monkeypatch)
    options = LaneOptions(retry_budget=0.3)
    async with lanes_to(proxy, options=options) as lanes:
        proxy.down()
        backoff = lanes.fast._supervisor._backoff

        async def refused() -> None:
            """Return when two attempts have failed since."""
            before = backoff.failures
            await until(lambda: backoff.failures > before + 2)

        # The read finds the connection gone, so that the commit is never sent.
        for send in (partial(lanes.submit, echo("x")), partial(lanes.commit, add("n"))):
            call = send()
            await refused()
            now[0] += 0.29
            await refused()
            assert not call.done()
            now[0] += 0.02
            error = await attempt(call)
            assert type(error) is StoreUnavailableError
            assert error.server == f"127.0.0.1:{proxy.address[1]}"
            assert error.said == "Connection refused"
            assert not error.may_have_happened
            assert error.retryable
        proxy.up()
        assert await lanes.submit(echo("back")) == b"back"
        assert await numbers(lanes, ["n"]) == [0]


async def test_an_unknown_outcome_is_settled_later(server: Server, fault_proxy: Proxies) -> None:
    """A commit that was sent and never answered can be settled, also by another process."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        assert total(await lanes.commit(add("n"))) == 1
        proxy.half_open()
        with (
            hasty(lanes, retry_budget=0.3, call_timeout=0.2, connect_timeout=0.1),
            pytest.raises(OutcomeUnknownError) as caught,
        ):
            await lanes.commit(add("n"))
        assert caught.value.may_have_happened
        proxy.clear()
        operation = caught.value.operation
        assert operation.id == f"{lanes.fast.ring.client.decode()}:2"
        assert total(await lanes.settle(operation)) == 2
        assert total(await lanes.settle(operation)) == 2
    server_again = lanes_to(server)
    async with server_again as others:
        copied = pickle.loads(pickle.dumps(operation))  # noqa: S301 - our own bytes
        assert total(await others.settle(copied)) == 2
        assert total(await others.commit(add("n"))) == 3


async def test_a_silent_server_is_noticed(server: Server, fault_proxy: Proxies) -> None:
    """A half-open connection is found by the overdue reply, and reads go on over a new one."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        proxy.half_open()
        with (
            hasty(lanes, retry_budget=0.4, call_timeout=0.15, connect_timeout=0.15),
            pytest.raises(StoreTimeoutError),
        ):
            await lanes.submit(echo("x"))
        proxy.clear()
        assert await lanes.submit(echo("again")) == b"again"
        assert proxy.connections >= 2


async def test_an_idle_connection_is_checked(server: Server, fault_proxy: Proxies) -> None:
    """An idle lane finds out by itself that its server has gone silent."""
    proxy = fault_proxy(server)
    async with lanes_to(proxy) as lanes:
        proxy.half_open()
        with hasty(lanes, health_check_interval=0.1, call_timeout=0.1, connect_timeout=0.1):
            async with asyncio.timeout(10):
                while proxy.connections < 2:  # noqa: ASYNC110 - the proxy counts in a thread
                    await asyncio.sleep(0.01)
        proxy.clear()
        assert await lanes.submit(echo("x")) == b"x"


@pytest.mark.needs("restart")
async def test_a_server_that_restarts_empty_is_used_on(own_server: Servers) -> None:
    """After a restart without its data the lanes work on, and scripts are loaded again."""
    server = own_server(config={"appendonly": "no", "save": ""})
    async with lanes_to(server) as lanes:
        assert total(await lanes.commit(add("n"))) == 1
        server.kill()
        await asyncio.to_thread(server.start)
        assert total(await lanes.commit(add("n"))) in {1, 2}
        assert await lanes.submit(echo("x")) == b"x"


@pytest.mark.needs("resp3")
@pytest.mark.needs("info")
async def test_push_messages_answer_nobody(server: Server) -> None:
    """Messages that the server sends of its own accord never become a reply."""
    async with lanes_to(server) as lanes:
        await lanes.execute(Command(pack("CLIENT", "TRACKING", "ON", "BCAST"), "CLIENT"))
        for around in range(20):
            reads = [lanes.submit(echo(i)) for i in range(20)]
            commits = [lanes.commit(add("n")) for _ in range(20)]
            assert await asyncio.gather(*reads) == [b"%d" % i for i in range(20)]
            outcomes = await asyncio.gather(*commits)
            assert total(outcomes[-1]) == 20 * (around + 1)
        wire = lanes.fast._wire
        assert wire is not None
        assert wire.pushes > 0


async def test_a_stranger_on_the_port_is_not_taken_for_a_server() -> None:
    """Something that speaks another protocol fails the calls, and says why."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:

        class Address:
            address = listener.sockets[0].getsockname()

        options = LaneOptions(retry_budget=0.2, close_timeout=0.1)
        with pytest.raises(StoreUnavailableError, match="not the Redis protocol"):
            async with lanes_to(Address(), options=options):
                pass


async def test_close_gives_up_on_a_silent_server(server: Server, fault_proxy: Proxies) -> None:
    """Close is bounded: what is not answered in time fails as an unknown outcome."""
    proxy = fault_proxy(server)
    lanes = lanes_to(proxy, options=LaneOptions(close_timeout=0.1))
    await lanes.ping()
    proxy.half_open()
    waiting = lanes.submit(echo("x"))
    commit = lanes.commit(add("n"))
    await lanes.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await waiting
    with pytest.raises(OutcomeUnknownError):
        await commit


# --- neighbours -----------------------------------------------------------------------------------


@pytest.mark.performance
@pytest.mark.needs("replicas")
async def test_a_hanging_wait_does_not_slow_small_reads(server: Server) -> None:
    """The slowest of small reads stay near those without a WAIT (at most 5 times).

    Something else may slow the machine down meanwhile; so it is tried a few times.
    """

    async def p99(lanes: Lanes) -> float:
        times = []
        for _ in range(2000):
            started = perf_counter()
            await lanes.submit(read("n"))
            times.append(perf_counter() - started)
        return quantiles(times, n=100)[98]

    async def ratio() -> float:
        options = LaneOptions(ack_timeout=60, close_timeout=0.1)
        async with lanes_to(server, options=options) as lanes:
            await lanes.commit(add("n"))
            alone = min([await p99(lanes) for _ in range(3)])
            hanging = asyncio.ensure_future(lanes.commit(add("n"), Level()))
            while not lanes.durable.in_flight:
                await lanes.submit(echo("x"))
            beside = min([await p99(lanes) for _ in range(3)])
            assert not hanging.done()
            hanging.cancel()
        return beside / alone

    ratios = [await ratio()]
    while ratios[-1] >= 5 and len(ratios) < 5:
        ratios.append(await ratio())
    assert ratios[-1] < 5, ratios
