"""The hub under faults: who listens is told of every gap, and hears again after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from fix_faults import Proxies, Servers, raw_to, stopped
from fix_lane import endpoint_of
from fix_servers import Server
from fix_state import until

from llmspell_dist.errors import StoreBusyError, StoreTimeoutError, StoreUnavailableError
from llmspell_dist.redis.connection import StaticEndpoint
from llmspell_dist.redis.hub import Hub
from llmspell_dist.redis.hub_requests import Leave
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import ErrorReply, pack

pytestmark = pytest.mark.integration

both_protocols = pytest.mark.parametrize("protocol", [2, 3])
HASTY = LaneOptions(call_timeout=0.2, connect_timeout=0.2, health_check_interval=0.1)
"""Soon finds a connection that is dead. It has all the time to find another."""


def hub_to(server: Any, options: LaneOptions | None = None, **endpoint: Any) -> Hub:
    """Return an unconnected hub to a server or a proxy."""
    return Hub(StaticEndpoint(endpoint_of(server, **endpoint)), options=options)


class Ear:
    """Keeps what one channel's owner is told, in order."""

    def __init__(self, hub: Hub, channel: bytes) -> None:
        self.hub = hub
        self.channel = channel
        self.told: list[Any] = []

    async def subscribe(self) -> None:
        await self.hub.subscribe(
            self.channel,
            self.told.append,
            resumed=lambda: self.told.append("resumed"),
            lost=lambda: self.told.append("lost"),
        )

    async def hears(self, *told: Any) -> None:
        """Wait until exactly this was told since the start."""
        await until(lambda: len(self.told) >= len(told), within_s=15)
        assert self.told == list(told)


@pytest.fixture
def channel(namespace: str) -> bytes:
    """A channel that no other test uses."""
    return namespace.encode()


# --- connections that are cut ---------------------------------------------------------------------


@both_protocols
async def test_a_cut_is_told_and_mended(
    server: Server, fault_proxy: Proxies, channel: bytes, protocol: int
) -> None:
    """After a cut: lost, then resumed, then messages again; as often as it happens."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, protocol=protocol)
    one, two = Ear(hub, channel + b":1"), Ear(hub, channel + b":2")
    await asyncio.gather(one.subscribe(), two.subscribe())
    expected: list[Any] = []
    for around in range(3):
        assert proxy.reset_peer() == 1
        expected += ["lost", "resumed"]
        await one.hears(*expected)
        await two.hears(*expected)
        message = b"%d" % around
        # The server may still know the connection that was cut.
        assert server.call("PUBLISH", one.channel, message) >= 1
        assert server.call("PUBLISH", two.channel, message) >= 1
        expected.append(message)
        await one.hears(*expected)
        await two.hears(*expected)
    assert proxy.connections == 4
    await hub.close()


async def test_a_cut_in_the_middle_of_a_message_delivers_no_part_of_it(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """Half a message is nobody's message."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.limit_data(40)
    server.call("PUBLISH", channel, b"x" * 1000)
    await ear.hears("lost", "resumed")
    server.call("PUBLISH", channel, "whole")
    await ear.hears("lost", "resumed", b"whole")
    await hub.close()


async def test_a_subscribe_whose_confirmation_is_lost_is_made_again(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """The caller waits on, and is told neither lost nor resumed: it was not subscribed before."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    proxy.cut_before(b"SUBSCRIBE")
    await ear.subscribe()
    assert (proxy.struck, proxy.connections) == (1, 2)
    server.call("PUBLISH", channel, "x")
    await ear.hears(b"x")
    await hub.close()


async def test_a_cut_during_the_new_subscription_is_told_once(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """A second cut before the channel is heard again is part of the same gap."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.cut_before(b"SUBSCRIBE")
    proxy.reset_peer()
    await ear.hears("lost", "resumed")
    assert (proxy.struck, proxy.connections) == (1, 3)
    await hub.close()


async def test_a_thousand_channels_are_subscribed_again(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """Each is resumed once, when it can be heard again."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ears = [Ear(hub, b"%b:%d" % (channel, i)) for i in range(1000)]
    await asyncio.gather(*[ear.subscribe() for ear in ears])
    proxy.reset_peer()
    await until(lambda: all("resumed" in ear.told for ear in ears), within_s=15)
    raw = raw_to(server)
    assert min(raw.many([("PUBLISH", ear.channel, "x") for ear in ears])) >= 1
    await until(lambda: all(b"x" in ear.told for ear in ears), within_s=15)
    assert all(ear.told == ["lost", "resumed", b"x"] for ear in ears)
    raw.close()
    await hub.close()


@pytest.mark.needs("kill")
async def test_an_owner_that_raises_on_a_gap_harms_nobody(
    server: Server, channel: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What `lost` and `resumed` raise is logged; every channel is mended all the same."""
    hub = hub_to(server)
    ear = Ear(hub, channel)

    def fail() -> None:
        raise ValueError("the owner's own fault")

    await hub.subscribe(channel + b":bad", ear.told.append, resumed=fail, lost=fail)
    await ear.subscribe()
    assert hub.info is not None
    server.call("CLIENT", "KILL", "ID", hub.info.client_id)
    await ear.hears("lost", "resumed")
    assert caplog.text.count("ValueError: the owner's own fault") == 2
    server.call("PUBLISH", channel + b":bad", "x")
    await ear.hears("lost", "resumed", b"x")
    await hub.close()


async def test_a_channel_given_up_during_an_outage_stays_so(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """It is neither resumed nor subscribed again; the others are."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    gone, kept = Ear(hub, channel + b":gone"), Ear(hub, channel + b":kept")
    await asyncio.gather(gone.subscribe(), kept.subscribe())
    proxy.down()
    await gone.hears("lost")
    await hub.unsubscribe(gone.channel)
    proxy.up()
    await kept.hears("lost", "resumed")
    await until(lambda: server.call("PUBLISH", gone.channel, "x") == 0)
    assert gone.told == ["lost"]
    await hub.close()


# --- servers that are gone, silent, or refuse -----------------------------------------------------


@pytest.mark.needs("restart")
@both_protocols
async def test_a_restarted_server_is_listened_to_again(
    own_server: Servers, channel: bytes, protocol: int
) -> None:
    """A crash is told at once; when the server is back its messages are heard."""
    server = own_server()
    hub = hub_to(server, protocol=protocol)
    ear = Ear(hub, channel)
    await ear.subscribe()
    server.kill()
    await ear.hears("lost")
    assert not hub.connected
    await asyncio.to_thread(server.start)
    await ear.hears("lost", "resumed")
    raw = raw_to(server)
    assert raw("PUBLISH", channel, "x") == 1
    await ear.hears("lost", "resumed", b"x")
    raw.close()
    await hub.close()


async def test_an_outage_longer_than_any_budget_is_waited_out(
    server: Server, fault_proxy: Proxies, channel: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a channel the hub never gives up, and it does not flood the log."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, LaneOptions(retry_budget=0.5))
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.down()
    over = monotonic() + 0.6
    failures = hub._supervisor._backoff
    await until(lambda: failures.failures > 12 and monotonic() > over, within_s=15)
    assert ear.told == ["lost"]
    said = [record for record in caplog.records if "no connection to" in record.getMessage()]
    assert {record.levelno for record in said} == {logging.WARNING}
    assert len(said) == 10
    proxy.up()
    await ear.hears("lost", "resumed")
    await hub.close()


@both_protocols
async def test_a_dead_but_open_connection_is_noticed(
    server: Server, fault_proxy: Proxies, channel: bytes, protocol: int
) -> None:
    """Silence is found by a ping without an answer, and a new connection is made."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, HASTY, protocol=protocol)
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.half_open()
    await ear.hears("lost")
    proxy.clear()
    await ear.hears("lost", "resumed")
    await hub.close()


@pytest.mark.needs("kill")
async def test_a_stopped_server_is_left_and_found_again(
    own_server: Servers, channel: bytes
) -> None:
    """A server under SIGSTOP takes connections and answers nothing; afterwards it is heard."""
    server = own_server()
    hub = hub_to(server, HASTY)
    ear = Ear(hub, channel)
    await ear.subscribe()
    with stopped(server.pid):
        await ear.hears("lost")
    await ear.hears("lost", "resumed")
    raw = raw_to(server)
    await until(lambda: raw("PUBLISH", channel, "x") == 1)  # the old connection is cleared away
    await until(lambda: b"x" in ear.told)
    assert ear.told[:2] == ["lost", "resumed"]
    assert set(ear.told[2:]) == {b"x"}
    raw.close()
    await hub.close()


@both_protocols
async def test_a_healthy_connection_is_kept_for_many_pings(
    server: Server, fault_proxy: Proxies, channel: bytes, protocol: int
) -> None:
    """Pings are answered in both protocols, with and without channels, and end nothing."""
    proxy = fault_proxy(server)
    options = LaneOptions(retry_budget=2.0, health_check_interval=0.01)
    hub = hub_to(proxy, options, protocol=protocol)
    ear = Ear(hub, channel)
    await ear.subscribe()
    wire = hub._wire
    assert wire is not None

    async def three_pings() -> None:
        goal = wire._sent + 3
        await until(lambda: wire._sent >= goal and not wire.pending)

    await three_pings()
    await hub.unsubscribe(channel)
    await three_pings()
    assert (ear.told, proxy.connections) == ([], 1)
    await hub.close()


async def test_a_loop_that_was_blocked_does_not_blame_the_connection(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """A process that was stopped past the call timeout finds its ping overdue, and waits on."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, LaneOptions(call_timeout=0.5, health_check_interval=0.01))
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.hold_replies()
    wire = hub._wire
    assert wire is not None
    await until(lambda: bool(wire.pending))
    woken_at = monotonic() + 1.0
    while monotonic() < woken_at:
        pass  # the loop stands still, as under SIGSTOP
    for _ in range(3):
        await asyncio.sleep(0)  # now it sees the time, and not yet the answer
    proxy.clear()
    await until(lambda: not wire.pending)
    assert (ear.told, proxy.connections) == ([], 1)
    server.call("PUBLISH", channel, "x")
    await ear.hears(b"x")
    await hub.close()


async def test_messages_are_a_sign_of_life(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """While messages come in, an answer that is overdue does not end the connection."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, LaneOptions(call_timeout=0.2, health_check_interval=0))
    ear = Ear(hub, channel)
    await ear.subscribe()
    wire = hub._wire
    assert wire is not None
    wire.pending.append((None, b"never sent", 0.0))  # so it is never answered
    wire.write(b"", 1, monotonic())
    started = monotonic()

    def heard_for_a_while() -> bool:
        server.call("PUBLISH", channel, "x")
        return monotonic() - started > 0.6

    await until(heard_for_a_while)
    assert "lost" not in ear.told
    await until(lambda: "lost" in ear.told)
    await hub.close()


async def test_a_subscribe_waits_for_a_server_that_comes_back(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """Within its budget a subscribe outlasts a server that is away."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    proxy.down()
    waiting = asyncio.ensure_future(ear.subscribe())
    await until(lambda: hub._supervisor._backoff.failures > 2)
    assert not waiting.done()
    proxy.up()
    await waiting
    assert server.call("PUBLISH", channel, "x") == 1
    await ear.hears(b"x")
    await hub.close()


@pytest.mark.parametrize("fault", ["down", "half_open"])
async def test_a_subscribe_that_cannot_be_had_fails_within_its_budget(
    server: Server, fault_proxy: Proxies, channel: bytes, fault: str
) -> None:
    """The error says where and what; the channel is free again, and can be had later."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy, replace(HASTY, retry_budget=0.5))
    ear = Ear(hub, channel)
    getattr(proxy, fault)()
    started = monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        await ear.subscribe()
    assert monotonic() - started < 5
    assert caught.value.server == f"127.0.0.1:{proxy.address[1]}"
    if fault == "down":
        assert caught.value.said == "Connection refused"
        proxy.up()
    else:
        assert type(caught.value) is StoreTimeoutError
        proxy.clear()
    hub.options = HASTY
    await ear.subscribe()
    server.call("PUBLISH", channel, "x")
    await until(lambda: bool(ear.told))
    assert set(ear.told) == {b"x"}
    await hub.close()


@asynccontextmanager
async def busy(server: Any) -> AsyncIterator[None]:
    """Have a server run a script without end, for the length of a block."""
    raw, script = raw_to(server), raw_to(server)
    loop = asyncio.get_running_loop()
    endless = loop.run_in_executor(None, script.many, [("EVAL", "while true do end", 0)])
    await until(lambda: b"BUSY" in repr(raw.many([("PING",)])).encode())
    try:
        yield
    finally:
        raw("SCRIPT", "KILL")
        await endless
        raw.close()
        script.close()


@pytest.mark.needs("config")
async def test_a_busy_server_is_asked_again(own_server: Servers, channel: bytes) -> None:
    """BUSY passes: what it refused, a subscribe or a leaving, is done after the script."""
    server = own_server(config={"lua-time-limit": "1"})
    hub = hub_to(server, LaneOptions(call_timeout=30.0, retry_budget=30.0))
    ear, gone = Ear(hub, channel), Ear(hub, channel + b":gone")
    await gone.subscribe()
    async with busy(server):
        waiting = asyncio.ensure_future(ear.subscribe())
        leaving = asyncio.ensure_future(hub.unsubscribe(gone.channel))
        await until(lambda: len(hub._refused) == 2)
        assert not waiting.done()
        assert not leaving.done()
    await asyncio.gather(waiting, leaving)
    raw = raw_to(server)
    assert raw("PUBLISH", channel, "x") == 1
    assert raw("PUBLISH", gone.channel, "x") == 0
    await ear.hears(b"x")
    await hub.close()
    raw.close()


@pytest.mark.needs("config")
async def test_a_server_that_stays_busy_is_named_so(own_server: Servers, channel: bytes) -> None:
    """After the budget the caller gets what the server said, and the others hear on."""
    server = own_server(config={"lua-time-limit": "1"})
    hub = hub_to(server, LaneOptions(call_timeout=30.0))
    ear, other = Ear(hub, channel), Ear(hub, channel + b":other")
    await other.subscribe()
    hub.options = replace(hub.options, retry_budget=0.5)
    async with busy(server):
        with pytest.raises(StoreBusyError):
            await ear.subscribe()
    await hub.unsubscribe(channel)
    raw = raw_to(server)
    assert raw("PUBLISH", other.channel, "x") == 1
    await other.hears(b"x")
    await until(lambda: raw("PUBLISH", channel, "x") == 0)
    await hub.close()
    raw.close()


async def test_a_refused_request_that_nobody_wants_any_more_is_dropped(
    server: Server, channel: bytes
) -> None:
    """What is sent again after a refusal never undoes what was asked for since."""
    hub = hub_to(server)
    ear, gone = Ear(hub, channel), Ear(hub, channel + b":gone")
    await asyncio.gather(ear.subscribe(), gone.subscribe())
    leave, told = Leave((False, channel)), ErrorReply("BUSY a script runs")
    hub.refused((leave, pack("UNSUBSCRIBE", channel), 0.0), told)
    again = hub._channels[False, gone.channel]
    hub.refused((again, pack("SUBSCRIBE", gone.channel), 0.0), told)
    assert len(hub._refused) == 2
    await hub.unsubscribe(gone.channel)
    await leave.future
    await hub.subscribe(channel + b":after", print)  # whatever was sent again is answered by now
    assert server.call("PUBLISH", gone.channel, "x") == 0
    assert server.call("PUBLISH", channel, "x") == 1
    await ear.hears(b"x")
    await hub.close()


@pytest.mark.needs("acl")
async def test_a_right_that_is_taken_and_given_back(own_server: Servers, channel: bytes) -> None:
    """A channel that was subscribed is asked for again until the server allows it again."""
    server = own_server()
    raw = raw_to(server)
    raw("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels", "&*")
    hub = hub_to(server, username="narrow", password="pw")
    ear = Ear(hub, channel)
    await ear.subscribe()
    raw("ACL", "SETUSER", "narrow", "resetchannels")  # which cuts those who listen
    await ear.hears("lost")
    await until(lambda: bool(hub._refused))
    raw("ACL", "SETUSER", "narrow", "resetchannels", "&*")
    await ear.hears("lost", "resumed")
    assert raw("PUBLISH", channel, "x") == 1
    await ear.hears("lost", "resumed", b"x")
    await hub.close()
    raw.close()


@pytest.mark.needs("acl")
async def test_a_password_that_is_changed_and_changed_back(
    own_server: Servers, channel: bytes
) -> None:
    """Even a refused login does not end a hub that has channels; a new subscribe fails at once."""
    server = own_server(password="first")
    raw = raw_to(server)
    raw("AUTH", "first")
    hub = hub_to(server, password="first")
    ear, other = Ear(hub, channel), Ear(hub, channel + b":other")
    await ear.subscribe()
    raw("CONFIG", "SET", "requirepass", "second")
    assert hub.info is not None
    raw("CLIENT", "KILL", "ID", hub.info.client_id)
    await ear.hears("lost")
    with pytest.raises(StoreUnavailableError, match="WRONGPASS"):
        await other.subscribe()
    raw("CONFIG", "SET", "requirepass", "first")
    await ear.hears("lost", "resumed")
    assert other.told == []
    await hub.close()
    raw.close()


# --- closing --------------------------------------------------------------------------------------


async def test_close_ends_a_subscribe_that_waits(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """Without a server a close returns at once, and so does the caller that waits."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    proxy.down()
    waiting = asyncio.ensure_future(ear.subscribe())
    await until(lambda: hub._supervisor._backoff.failures > 0)
    await hub.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await waiting
    assert hub.backlog == {}


async def test_close_is_bounded_when_the_server_is_silent(
    server: Server, fault_proxy: Proxies, channel: bytes
) -> None:
    """A giving up that waits for its confirmation ends too."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    ear = Ear(hub, channel)
    await ear.subscribe()
    proxy.half_open()
    leaving = asyncio.ensure_future(hub.unsubscribe(channel))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await hub.close()
        await leaving
    assert ear.told == []
