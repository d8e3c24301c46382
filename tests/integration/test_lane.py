"""The lanes against real servers: order, group commit, logins, lifetime."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from fix_faults import hasty
from fix_lane import add, count, echo, lanes_to, put, read, scope_in, total
from fix_servers import Server

from llmspell_dist.clock import Liveness
from llmspell_dist.errors import (
    ClosedError,
    StoreAuthenticationError,
    StoreBusyError,
    StoreFullError,
    StorePermissionError,
    StoreProtocolError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.redis.commands import BULK_BYTES, Command, ScriptCall
from llmspell_dist.redis.commits import ConditionMode, condition
from llmspell_dist.redis.connection import Endpoint, StaticEndpoint
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import Script

pytestmark = pytest.mark.integration

QUICK = LaneOptions(call_timeout=2.0, retry_budget=1.0, connect_timeout=1.0, close_timeout=2.0)
HANG = Script.from_source("hang", "local n = 0 while true do n = n + 1 end")


class Level:
    """An acknowledgement level."""

    def __init__(self, *, replicas: int = 0, local_fsync: bool = False) -> None:
        self.replicas = replicas
        self.local_fsync = local_fsync


def calls(server: Server, command: str) -> int:
    """Return how often the server has run a command."""
    text = server.call("INFO", "commandstats").decode()
    for line in text.splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


# --- order and groups -----------------------------------------------------------------------------


async def test_each_caller_gets_its_own_reply(server: Server) -> None:
    """A thousand concurrent requests are answered each by its own reply."""
    async with lanes_to(server) as lanes:
        replies = await asyncio.gather(*[lanes.submit(echo(i)) for i in range(1000)])
    assert replies == [b"%d" % i for i in range(1000)]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_are_spoken(server: Server, protocol: int) -> None:
    """RESP2 and RESP3 give the same replies to reads and commits."""
    async with lanes_to(server, protocol=protocol) as lanes:
        assert total(await lanes.commit(add("n"))) == 1
        assert count(await lanes.submit(read("n"))) == 1
        assert await lanes.submit(read("missing")) is None
        assert lanes.info is not None
        assert lanes.info.protocol == protocol


@pytest.mark.needs("info")
async def test_commits_of_one_turn_share_a_script_call(server: Server) -> None:
    """Commits submitted in one turn of the loop cost one call for every sixteen."""
    async with lanes_to(server) as lanes:
        before = calls(server, "evalsha")
        outcomes = await asyncio.gather(*[lanes.commit(add("n")) for _ in range(100)])
        assert [total(outcome) for outcome in outcomes] == list(range(1, 101))
        assert calls(server, "evalsha") - before == -(-100 // lanes.fast.eager_items)


async def test_a_refused_commit_does_not_touch_its_group(server: Server) -> None:
    """A member whose condition fails is refused alone, and members see the earlier ones."""
    absent = condition(ConditionMode.ABSENT, b"n")
    async with lanes_to(server) as lanes:
        first, second, third = await asyncio.gather(
            lanes.commit(add("n", conditions=(absent,))),
            lanes.commit(add("n", conditions=(absent,))),
            lanes.commit(add("n")),
        )
    assert (total(first), total(third)) == (1, 2)
    assert second.startswith(b"CONFLICT")


async def test_commits_of_other_shards_go_in_groups_of_their_own(server: Server) -> None:
    """A group never holds commits of two shards."""
    one, two = scope_in("1"), scope_in("2")
    async with lanes_to(server) as lanes:
        work = [lanes.commit(add("n", scope=scope)) for scope in (one, two, one, two)]
        outcomes = await asyncio.gather(*work)
    assert [total(outcome) for outcome in outcomes] == [1, 1, 2, 2]


async def test_a_read_after_a_commit_in_the_same_turn_sees_it(server: Server) -> None:
    """Requests leave in the order in which they were submitted."""
    async with lanes_to(server) as lanes:
        before = lanes.submit(read("n"))
        commit = lanes.commit(add("n"))
        after = lanes.submit(read("n"))
        await asyncio.gather(before, commit, after)
    assert before.result() is None
    assert count(after.result()) == 1


async def test_more_commits_than_the_ring_holds_are_all_settled(server: Server) -> None:
    """Commits beyond the window of operation ids wait in line, and none is lost."""
    async with lanes_to(server) as lanes:
        outcomes = await asyncio.gather(*[lanes.commit(add("n")) for _ in range(3000)])
    assert [total(outcome) for outcome in outcomes] == list(range(1, 3001))


async def test_more_reads_than_may_be_in_flight_wait_in_line(server: Server) -> None:
    """With room for ten, a thousand reads are answered, never more than ten at a time."""
    async with lanes_to(server, options=LaneOptions(max_in_flight=10)) as lanes:
        futures = [lanes.submit(echo(i)) for i in range(1000)]
        await asyncio.sleep(0)
        assert lanes.fast.in_flight <= 10
        assert await asyncio.gather(*futures) == [b"%d" % i for i in range(1000)]


async def test_a_full_queue_refuses_at_once(server: Server) -> None:
    """Beyond the queue's limit a call fails at once instead of adding to the pile."""
    async with lanes_to(server, options=LaneOptions(max_in_flight=1, max_queued=5)) as lanes:
        futures = [lanes.submit(echo(i)) for i in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(StoreBusyError):
            lanes.submit(echo("more"))
        await asyncio.gather(*futures)


async def test_large_requests_take_the_bulk_lane(server: Server) -> None:
    """What is over 64 KiB, or marked as bulk, never stands before a small read."""
    async with lanes_to(server) as lanes:
        await lanes.commit(put("large", b"x" * (BULK_BYTES + 1)))
        await lanes.execute(Command(read("large"), "HGET", bulk=True))
        assert lanes.bulk.info is not None
        assert lanes.fast.info is not None
        assert lanes.durable.info is None


async def test_a_commit_of_many_megabytes_arrives_whole(server: Server) -> None:
    """Writes larger than every buffer are sent in pieces and answered."""
    payload = os.urandom(8_000_000)
    async with lanes_to(server) as lanes:
        await lanes.commit(put("huge", payload))
        record = await lanes.execute(Command(read("huge"), "HGET", bulk=True))
    assert record.endswith(payload)


# --- scripts --------------------------------------------------------------------------------------


async def test_an_unknown_script_is_sent_whole(server: Server) -> None:
    """A script that the server does not know is sent with its body, once."""
    script = Script.from_source("pair", "return {KEYS[1], ARGV[1]}")
    async with lanes_to(server) as lanes:
        for _ in range(2):
            reply = await lanes.execute(ScriptCall(script, (b"k",), (b"a",)))
            assert reply == [b"k", b"a"]


async def test_flushed_scripts_are_loaded_again(server: Server) -> None:
    """SCRIPT FLUSH is not noticed by commits, which are applied once."""
    async with lanes_to(server) as lanes:
        for expected in range(1, 4):
            await lanes.submit(pack("SCRIPT", "FLUSH"))
            assert total(await lanes.commit(add("n"))) == expected


@pytest.mark.needs("process")
async def test_a_busy_script_is_waited_for(own_server: Callable[..., Any]) -> None:
    """Calls wait while a script runs away, and name it when their time is up."""
    server = own_server()
    async with (
        lanes_to(server) as control,
        lanes_to(server) as lanes,
        lanes_to(server) as patient,
    ):
        await control.submit(pack("CONFIG", "SET", "lua-time-limit", "1"))
        hanging = control.bulk.execute(ScriptCall(HANG, (), (), write=True))

        async def until_busy() -> None:
            while True:
                await lanes.submit(echo("x"))

        with hasty(lanes, retry_budget=0.6):
            with pytest.raises(StoreBusyError, match="BUSY"):
                await until_busy()
            with pytest.raises(StoreBusyError) as caught:
                await lanes.commit(add("n"))
        assert not caught.value.may_have_happened
        late = patient.commit(add("n"))
        await control.submit(pack("SCRIPT", "KILL"))
        with pytest.raises(StoreUnavailableError):
            await hanging
        assert total(await late) == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.needs("acl")
async def test_a_user_logs_in_with_name_and_password(server: Server) -> None:
    """The credentials of an ACL user are sent in the handshake."""
    server.call("ACL", "SETUSER", "spell", "on", ">s3cret", "~*", "&*", "+@all")
    async with lanes_to(server, username="spell", password="s3cret", client_name="me") as lanes:
        assert await lanes.submit(pack("ACL", "WHOAMI")) == b"spell"
        assert await lanes.submit(pack("CLIENT", "GETNAME")) == b"me"
    server.call("ACL", "DELUSER", "spell")


@pytest.mark.needs("acl")
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_wrong_password_fails_at_once_and_is_not_shown(
    server: Server, protocol: int
) -> None:
    """A refused login is not retried, and its message holds no secret."""
    lanes = lanes_to(server, username="nobody", password="s3cret", protocol=protocol)
    with pytest.raises(StoreAuthenticationError) as caught:
        async with lanes:
            pass
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(lanes.fast.resolver)


@pytest.mark.needs("process")
async def test_a_missing_password_fails_at_once(own_server: Callable[..., Any]) -> None:
    """A server that wants a login says so, and the caller hears it."""
    server = own_server()
    async with lanes_to(server) as lanes:
        await lanes.submit(pack("CONFIG", "SET", "requirepass", "hush"))
        for protocol in (2, 3):
            with pytest.raises(StoreAuthenticationError):
                async with lanes_to(server, protocol=protocol):
                    pass
        async with lanes_to(server, password="hush") as known:
            await known.submit(pack("CONFIG", "SET", "requirepass", ""))


@pytest.mark.needs("acl")
async def test_a_missing_right_names_the_right(server: Server) -> None:
    """NOPERM becomes StorePermissionError for reads and for each commit of a group."""
    server.call("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@connection", "+info")
    async with lanes_to(server, username="weak", password="pw") as lanes:
        with pytest.raises(StorePermissionError):
            await lanes.submit(read("n"))
        commits = [lanes.commit(add("n")) for _ in range(3)]
        errors = await asyncio.gather(*commits, return_exceptions=True)
        assert [type(error) for error in errors] == [StorePermissionError] * 3
        assert not any(error.may_have_happened for error in errors)  # type: ignore[union-attr]
    server.call("ACL", "DELUSER", "weak")


@pytest.mark.needs("config")
async def test_a_full_server_refuses_a_plain_write(own_server: Callable[..., Any]) -> None:
    """OOM becomes StoreFullError, which says that nothing happened."""
    server = own_server()
    async with lanes_to(server) as lanes:
        await lanes.submit(pack("CONFIG", "SET", "maxmemory", "1"))
        with pytest.raises(StoreFullError) as caught:
            await lanes.execute(Command(pack("SET", "a", "b"), "SET", write=True))
        assert not caught.value.may_have_happened


async def test_a_wrong_request_names_what_the_server_said(server: Server) -> None:
    """An error reply that has no meaning of its own is a StoreProtocolError with its text."""
    async with lanes_to(server) as lanes:
        await lanes.execute(Command(pack("SET", "text", "x"), "SET", write=True))
        with pytest.raises(StoreProtocolError, match="WRONGTYPE"):
            await lanes.submit(pack("HGET", "text", "x"))
        assert await lanes.submit(echo("still there")) == b"still there"


# --- where and how --------------------------------------------------------------------------------


async def test_a_database_is_selected(server: Server) -> None:
    """The database of the endpoint is the one that is read."""
    async with lanes_to(server, db=3) as there, lanes_to(server) as here:
        await there.commit(add("n"))
        assert await here.submit(read("n")) is None
        assert count(await there.submit(read("n"))) == 1


@pytest.mark.needs("process")
async def test_a_database_that_does_not_exist_fails_at_once(server: Server) -> None:
    """A refused SELECT is an error of the connect, not a silent database 0."""
    with pytest.raises(StoreProtocolError, match="DB index"):
        async with lanes_to(server, db=99_999):
            pass


@pytest.mark.needs("tls")
async def test_tls_is_verified(
    own_server: Callable[..., Any], free_port: Callable[[], int], tmp_path: Any
) -> None:
    """A server is trusted by its certificate, and only by that."""
    trustme = pytest.importorskip("trustme")
    from llmspell_dist.redis.embedded import TLSFiles

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = TLSFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(str(files.cert))
    issued.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.ca))
    port = free_port()
    own_server(port=port, tls=files)
    trusting = ssl.create_default_context(cafile=str(files.ca))
    endpoint = Endpoint(host="127.0.0.1", port=port, tls=trusting)
    async with Lanes(StaticEndpoint(endpoint)) as lanes:
        assert total(await lanes.commit(add("n"))) == 1
        assert await lanes.submit(echo("secret way")) == b"secret way"
    stranger = Endpoint(host="127.0.0.1", port=port, tls=ssl.create_default_context())
    with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
        async with Lanes(StaticEndpoint(stranger)):
            pass


async def test_the_server_tells_who_it_is(server: Server) -> None:
    """Version, flavour and role are known after the handshake."""
    async with lanes_to(server) as lanes:
        info = lanes.info
    assert info is not None
    assert info.flavour in {"redis", "valkey"}
    assert info.version[0].isdigit()
    assert info.role == "master"


async def test_the_servers_time_is_known_after_the_first_reply(server: Server) -> None:
    """The estimate of the server's clock judges expiries without asking."""
    async with lanes_to(server) as lanes:
        seconds, _ = await lanes.submit(pack("TIME"))
        now_ms = int(seconds) * 1000
        assert lanes.clock.compare(now_ms + 60_000) is Liveness.ALIVE
        assert lanes.clock.compare(now_ms - 60_000) is Liveness.EXPIRED
        assert lanes.clock.error_ms < 1000


# --- durability -----------------------------------------------------------------------------------


@pytest.mark.needs("replicas")
async def test_a_level_that_is_not_reached_is_said(own_server: Callable[..., Any]) -> None:
    """Without a replica the outcome is there, and says that nobody else has it."""
    server = own_server()
    options = LaneOptions(ack_timeout=0.05)
    async with lanes_to(server, options=options) as lanes:
        outcome = await lanes.commit(add("n"), Level(replicas=1))
        assert total(outcome) == 1
        assert (outcome.reached, outcome.replicas) == (False, 0)
        everybody = await lanes.commit(add("n"), Level(replicas=-1))
        assert not everybody.reached


@pytest.mark.needs("replicas")
async def test_a_replica_acknowledges_all_commits_of_a_turn(
    own_server: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    """With a replica the level is reached, by one WAIT for many commits."""
    port = free_port()
    server = own_server(port=port, config={"repl-diskless-sync-delay": 0})
    replica = own_server(config={"replicaof": ("127.0.0.1", str(port))})
    options = LaneOptions(ack_timeout=10)
    async with lanes_to(server, options=options) as lanes, lanes_to(replica) as other:
        await lanes.commit(add("first"), Level(replicas=1))
        work = [lanes.commit(add("n"), Level(replicas=1)) for _ in range(100)]
        outcomes = await asyncio.gather(*work)
        assert [total(outcome) for outcome in outcomes] == list(range(1, 101))
        assert all(outcome.reached for outcome in outcomes)
        assert await other.submit(read("n")) == await lanes.submit(read("n"))


@pytest.mark.needs("waitaof")
async def test_the_disk_acknowledges(own_server: Callable[..., Any]) -> None:
    """WAITAOF reports that the server's own disk has the commit."""
    server = own_server(fsync="always")
    async with lanes_to(server, options=LaneOptions(ack_timeout=5)) as lanes:
        outcome = await lanes.commit(add("n"), Level(local_fsync=True))
        assert outcome.reached
        assert outcome.local_fsyncs == 1


@pytest.mark.needs("replicas")
async def test_reads_do_not_wait_behind_a_durable_commit(server: Server) -> None:
    """While a WAIT hangs on its lane, reads on the fast lane are answered."""
    options = LaneOptions(ack_timeout=30, close_timeout=0.1)
    async with lanes_to(server, options=options) as lanes:
        durable = asyncio.ensure_future(lanes.commit(add("n"), Level(replicas=1)))
        while not lanes.durable.in_flight:
            await lanes.submit(echo("x"))
        for i in range(200):
            assert await lanes.submit(echo(i)) == b"%d" % i
        assert not durable.done()
        durable.cancel()


# --- lifetime -------------------------------------------------------------------------------------


async def test_close_waits_for_what_is_in_flight(server: Server) -> None:
    """Requests submitted before the close are answered, later ones are refused."""
    lanes = lanes_to(server)
    work = [lanes.submit(echo(i)) for i in range(100)]
    commit = lanes.commit(add("n"))
    await lanes.close()
    assert await asyncio.gather(*work) == [b"%d" % i for i in range(100)]
    assert total(await commit) == 1
    with pytest.raises(ClosedError):
        lanes.submit(echo("late"))
    with pytest.raises(ClosedError):
        lanes.commit(add("n"))
    await lanes.close()


async def test_closing_unused_lanes_does_nothing(server: Server) -> None:
    """Neither the constructor nor the close of unused lanes connects."""
    lanes = lanes_to(server)
    await lanes.close()
    assert lanes.info is None


def test_lanes_belong_to_the_event_loop_that_used_them_first(server: Server) -> None:
    """Another event loop is told the rule."""
    lanes = lanes_to(server)

    async def use() -> None:
        await lanes.submit(echo("x"))

    with asyncio.Runner() as runner:
        runner.run(use())
        with pytest.raises(WrongEventLoopError, match="one client per event loop"):
            asyncio.run(use())
        runner.run(lanes.close())


@pytest.mark.needs("process")
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    """The child works on after a fork, and the parent does not notice."""
    lanes = lanes_to(server)

    async def use(key: str) -> list[Any]:
        return await asyncio.gather(
            *[lanes.submit(echo(key)) for _ in range(20)],
            *[lanes.commit(add(key)) for _ in range(20)],
        )

    with asyncio.Runner() as runner:
        runner.run(use("n"))
        ring, info = lanes.fast.ring.client, lanes.info
        child = os.fork()
        if not child:
            failed = 1
            try:
                with asyncio.Runner() as inner:
                    replies = inner.run(use("n"))
                    inner.run(lanes.close())
                failed = int(replies[0] != b"n" or lanes.fast.ring.client == ring)
            finally:
                os._exit(failed)
        while True:
            replies = runner.run(use("n"))
            assert replies[:20] == [b"n"] * 20
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
        assert os.waitstatus_to_exitcode(status) == 0
        assert (lanes.fast.ring.client, lanes.info) == (ring, info), "the parent had to reconnect"
        runner.run(lanes.close())


def test_names_and_representations_hold_no_secret() -> None:
    """Neither endpoints nor lanes show a password."""
    endpoint = Endpoint(username="me", password="s3cret")
    assert "s3cret" not in repr(endpoint)
    assert "s3cret" not in repr(StaticEndpoint(endpoint))
