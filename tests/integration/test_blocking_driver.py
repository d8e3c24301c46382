"""The blocking driver keeps the lanes' promises."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fix_faults import hasty
from fix_lane import COMMIT, SCOPE, add, count, echo, endpoint_of, put, read, total
from fix_proxy import FaultProxy
from fix_servers import Server

from llmspell_dist.clock import Liveness
from llmspell_dist.errors import (
    ClosedError,
    OutcomeUnknownError,
    StoreAuthenticationError,
    StoreProtocolError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis.blocking_driver import BlockingDriver
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.connection import StaticEndpoint
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import Script

pytestmark = pytest.mark.integration

Proxies = Callable[..., FaultProxy]
IMPATIENT: dict[str, float] = {"retry_budget": 0.4, "connect_timeout": 0.1}


class Level:
    """One replica must have it."""

    replicas = 1
    local_fsync = False


def driver_to(
    server: Any, *, options: LaneOptions | None = None, connections: int = 16, **endpoint: Any
) -> BlockingDriver:
    """Return an unconnected driver for a test server."""
    return BlockingDriver(
        StaticEndpoint(endpoint_of(server, **endpoint)),
        options=options,
        scripts=[COMMIT],
        max_connections=connections,
    )


@pytest.mark.parametrize("protocol", [2, 3])
def test_reads_calls_and_commits_are_answered(server: Server, protocol: int) -> None:
    """All three kinds of request work over either protocol."""
    pair = Script.from_source("pair", "return {KEYS[1], ARGV[1]}")
    with driver_to(server, protocol=protocol) as driver:
        assert driver.submit_sync(echo("x")) == b"x"
        assert total(driver.commit(add("n"))) == 1
        assert count(driver.execute(Command(read("n"), "HGET"))) == 1
        assert driver.execute(ScriptCall(pair, (b"k",), (b"a",))) == [b"k", b"a"]
        assert driver.info is not None
        assert driver.info.protocol == protocol


def test_threads_never_get_each_others_replies(server: Server) -> None:
    """Many threads over few connections: each gets its own, each commit is applied once."""
    with driver_to(server, connections=3) as driver, ThreadPoolExecutor(12) as pool:

        def work(i: int) -> bool:
            return bool(driver.submit_sync(echo(i)) == b"%d" % i and driver.commit(add("n")))

        assert all(pool.map(work, range(600)))
        assert total(driver.commit(add("n"))) == 601
        assert len(driver._all) <= 3


def test_large_values_pass(server: Server) -> None:
    """Replies larger than the receive buffer are put together."""
    payload = os.urandom(3_000_000)
    with driver_to(server) as driver:
        driver.commit(put("huge", payload))
        assert driver.submit_sync(read("huge")).endswith(payload)


def test_flushed_scripts_are_loaded_again(server: Server) -> None:
    """SCRIPT FLUSH is not noticed by commits, which are applied once."""
    with driver_to(server) as driver:
        for expected in (1, 2):
            driver.submit_sync(pack("SCRIPT", "FLUSH"))
            assert total(driver.commit(add("n"))) == expected


def test_an_error_reply_leaves_the_connection_usable(server: Server) -> None:
    """A refused request is an exception, and the next one gets its own reply."""
    with driver_to(server) as driver:
        driver.execute(Command(pack("SET", "text", "x"), "SET", write=True))
        with pytest.raises(StoreProtocolError, match="WRONGTYPE"):
            driver.submit_sync(pack("HGET", "text", "x"))
        assert driver.submit_sync(echo("x")) == b"x"


def test_a_lost_reply_gives_the_first_outcome(server: Server, fault_proxy: Proxies) -> None:
    """A commit whose reply was lost is answered by what it did the first time."""
    proxy = fault_proxy(server)
    with driver_to(proxy) as driver:
        for expected in range(1, 6):
            proxy.drop_reply(b":log")
            assert total(driver.commit(add("n"))) == expected
            proxy.cut_before(b"ECHO")
            assert driver.submit_sync(echo("x")) == b"x"
    assert proxy.struck == 10


def test_a_plain_write_is_not_sent_twice(server: Server, fault_proxy: Proxies) -> None:
    """A write without an operation id fails when its reply is lost, and was done once."""
    proxy = fault_proxy(server)
    with driver_to(proxy) as driver:
        proxy.drop_reply(b"INCR")
        with pytest.raises(StoreUnavailableError) as caught:
            driver.execute(Command(pack("INCR", "plain"), "INCR", write=True))
        assert caught.value.may_have_happened
        assert driver.submit_sync(pack("GET", "plain")) == b"1"


def test_connections_cut_under_threads_lose_nothing(server: Server, fault_proxy: Proxies) -> None:
    """With cuts all the time every call ends, and each commit is there once."""
    proxy = fault_proxy(server)
    done = threading.Event()

    def cut() -> None:
        while not done.wait(0.02):
            proxy.reset_peer()

    cutter = threading.Thread(target=cut)
    with driver_to(proxy) as driver, ThreadPoolExecutor(6) as pool:
        cutter.start()
        try:
            keys = [f"k{i}" for i in range(600)]
            outcomes = list(pool.map(lambda key: total(driver.commit(add(key))), keys))
        finally:
            done.set()
            cutter.join()
        assert outcomes == [1] * 600
        records = driver.submit_sync(pack("HMGET", SCOPE.hash, *keys))
        assert [count(record) for record in records] == [1] * 600


def test_an_unknown_outcome_is_settled_later(server: Server, fault_proxy: Proxies) -> None:
    """A commit that was sent and never answered names its operation."""
    proxy = fault_proxy(server)
    with driver_to(proxy, options=LaneOptions(call_timeout=0.3)) as driver:
        driver.commit(add("n"))
        proxy.half_open()
        with hasty(driver, **IMPATIENT):
            with pytest.raises(OutcomeUnknownError) as caught:
                driver.commit(add("n"))
            with pytest.raises(StoreTimeoutError):
                driver.submit_sync(echo("x"))
        proxy.clear()
        assert total(driver.settle(caught.value.operation)) == 2
        assert total(driver.settle(caught.value.operation)) == 2


def test_a_server_that_stays_away_is_named(server: Server, fault_proxy: Proxies) -> None:
    """After the budget the error says which server, and what the system said."""
    proxy = fault_proxy(server)
    driver = driver_to(proxy)
    proxy.down()
    with hasty(driver, **IMPATIENT), pytest.raises(StoreUnavailableError) as caught:
        driver.commit(add("n"))
    assert caught.value.server == f"127.0.0.1:{proxy.address[1]}"
    assert caught.value.said == "Connection refused"
    assert not caught.value.may_have_happened
    proxy.up()
    assert total(driver.commit(add("n"))) == 1
    driver.close()


@pytest.mark.needs("acl")
def test_a_wrong_password_fails_at_once_and_is_not_shown(server: Server) -> None:
    """A refused login is not retried, and its message holds no secret."""
    with (
        pytest.raises(StoreAuthenticationError) as caught,
        driver_to(server, username="nobody", password="s3cret"),
    ):
        pass
    assert "s3cret" not in str(caught.value)


@pytest.mark.needs("replicas")
def test_a_level_that_is_not_reached_is_said(server: Server, fault_proxy: Proxies) -> None:
    """Without a replica the outcome is there, also after a lost connection, and says so."""
    proxy = fault_proxy(server)
    with driver_to(proxy, options=LaneOptions(ack_timeout=0.02)) as driver:
        assert not driver.commit(add("n"), Level()).reached
        proxy.drop_reply(b"WAIT")
        outcome = driver.commit(add("n"), Level())
        assert total(outcome) == 2
        assert (outcome.reached, outcome.replicas) == (False, 0)


def test_the_servers_time_is_known(server: Server) -> None:
    """The estimate of the server's clock comes with the connection."""
    with driver_to(server) as driver:
        now_ms = int(driver.submit_sync(pack("TIME"))[0]) * 1000
        assert driver.clock.compare(now_ms + 60_000) is Liveness.ALIVE
        assert driver.clock.compare(now_ms - 60_000) is Liveness.EXPIRED


def test_a_closed_driver_refuses(server: Server) -> None:
    """After close no call is taken; closing again is allowed."""
    driver = driver_to(server)
    driver.commit(add("n"))
    driver.close()
    with pytest.raises(ClosedError):
        driver.submit_sync(echo("x"))
    driver.close()


def test_close_ends_a_call_that_hangs(server: Server, fault_proxy: Proxies) -> None:
    """Close is bounded, and the hanging call fails."""
    proxy = fault_proxy(server)
    driver = driver_to(proxy, options=LaneOptions(close_timeout=0.1))
    driver.ping()
    proxy.half_open()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(driver.commit, add("n"))
        while driver._idle:
            pass
        driver.close()
        with pytest.raises(OutcomeUnknownError):
            hanging.result(10)


def _in_child(driver: BlockingDriver, results: Any) -> None:
    results.put([driver.submit_sync(echo("child")), total(driver.commit(add("n")))])
    driver.close()


@pytest.mark.needs("process")
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    """The child works on after a fork, and the parent's connection stays."""
    context = multiprocessing.get_context("fork")
    with driver_to(server) as driver:
        driver.commit(add("n"))
        before = driver.info
        results = context.Queue()
        child = context.Process(target=_in_child, args=(driver, results))
        child.start()
        assert results.get(timeout=30) == [b"child", 2]
        child.join()
        assert child.exitcode == 0
        assert total(driver.commit(add("n"))) == 3
        assert driver.info == before
        results.close()
        results.join_thread()
