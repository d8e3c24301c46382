"""The hub against real servers: what is heard, in which order, by whom, and until when."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fix_faults import raw_to
from fix_lane import endpoint_of
from fix_proxy import FaultProxy
from fix_servers import Server
from fix_state import until

from llmspell_dist.errors import (
    ClosedError,
    InvalidArgumentError,
    StoreAuthenticationError,
    StorePermissionError,
    StoreUnavailableError,
    WrongEventLoopError,
)
from llmspell_dist.redis.connection import Endpoint, StaticEndpoint
from llmspell_dist.redis.hub import Hub
from llmspell_dist.redis.options import LaneOptions

pytestmark = pytest.mark.integration

Proxies = Callable[..., FaultProxy]
Servers = Callable[..., Any]

both_protocols = pytest.mark.parametrize("protocol", [2, 3])


def hub_to(server: Any, *, options: LaneOptions | None = None, **endpoint: Any) -> Hub:
    """Return an unconnected hub to a test server."""
    return Hub(StaticEndpoint(endpoint_of(server, **endpoint)), options=options)


@pytest.fixture
def channel(namespace: str) -> bytes:
    """A channel that no other test uses."""
    return namespace.encode()


# --- messages -------------------------------------------------------------------------------------


@both_protocols
async def test_messages_are_heard_in_the_order_of_their_arrival(
    server: Server, channel: bytes, protocol: int
) -> None:
    """A thousand messages reach their listener one by one, in order, in both protocols."""
    heard: list[bytes] = []
    hub = hub_to(server, protocol=protocol)
    await hub.subscribe(channel, heard.append)
    raw = raw_to(server)
    counts = raw.many([("PUBLISH", channel, b"%d" % i) for i in range(1000)])
    await until(lambda: len(heard) >= 1000)
    assert heard == [b"%d" % i for i in range(1000)]
    assert counts == [1] * 1000
    assert hub.info is not None
    assert hub.info.protocol == protocol
    raw.close()
    await hub.close()


@both_protocols
async def test_any_bytes_are_heard_as_they_were_published(
    server: Server, channel: bytes, fault_proxy: Proxies, protocol: int
) -> None:
    """Empty, binary and large messages come through, also in the smallest pieces."""
    proxy = fault_proxy(server)
    heard: list[bytes] = []
    hub = hub_to(proxy, protocol=protocol)
    await hub.subscribe(channel, heard.append)
    proxy.slicer(1)
    small = [b"", b"\r\n", bytes(range(256)), b"*3\r\n$7\r\nmessage\r\n"]
    for message in small:
        server.call("PUBLISH", channel, message)
    await until(lambda: len(heard) == len(small))
    proxy.clear()
    server.call("PUBLISH", channel, b"x" * 1_000_000)
    await until(lambda: len(heard) > len(small))
    assert heard == [*small, b"x" * 1_000_000]
    await hub.close()


@both_protocols
async def test_each_channel_has_its_own_listener(
    server: Server, channel: bytes, protocol: int
) -> None:
    """Each message is heard by its own channel's listener only, all over one connection."""
    hub = hub_to(server, protocol=protocol, client_name="the-hub")
    names = [b"%b:%d" % (channel, i) for i in range(100)]
    heard: dict[bytes, list[bytes]] = {name: [] for name in names}
    await asyncio.gather(*[hub.subscribe(name, heard[name].append) for name in names])
    raw = raw_to(server)
    assert raw.many([("PUBLISH", name, name) for name in names]) == [1] * 100
    await until(lambda: all(heard.values()))
    assert heard == {name: [name] for name in names}
    if "info" in server.row.capabilities:
        clients = raw("CLIENT", "LIST").decode().splitlines()
        assert sum("name=the-hub " in line for line in clients) == 1
    raw.close()
    await hub.close()


async def test_a_listener_that_raises_is_logged_and_called_again(
    server: Server, channel: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a listener, a cancelled future's too, costs nobody a message."""
    heard: list[bytes] = []
    hub = hub_to(server)

    def listener(message: bytes) -> None:
        heard.append(message)
        if message == b"cancelled":
            raise asyncio.CancelledError
        raise ValueError("the listener's own fault")

    others: list[bytes] = []
    await hub.subscribe(channel, listener)
    await hub.subscribe(channel + b":other", others.append)
    raw = raw_to(server)
    raw.many([("PUBLISH", channel, word) for word in ("one", "cancelled", "three")])
    raw("PUBLISH", channel + b":other", "four")
    await until(lambda: bool(others))
    assert heard == [b"one", b"cancelled", b"three"]
    assert hub.connected
    failed = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failed) == 3
    assert channel.decode() in failed[0].getMessage()
    assert "the listener's own fault" in caplog.text
    raw.close()
    await hub.close()


# --- subscriptions --------------------------------------------------------------------------------


async def test_publish_counts_the_hub_once_a_subscribe_has_returned(
    server: Server, channel: bytes
) -> None:
    """When `subscribe` returns the server knows the subscriber, when `unsubscribe` does no more."""
    heard: list[bytes] = []
    hub = hub_to(server)
    assert server.call("PUBLISH", channel, "nobody hears this") == 0
    await hub.subscribe(channel, heard.append)
    assert server.call("PUBLISH", channel, "one") == 1
    await until(lambda: len(heard) == 1)
    await hub.unsubscribe(channel)
    assert server.call("PUBLISH", channel, "nobody hears this either") == 0
    await hub.unsubscribe(channel)
    await hub.unsubscribe(b"never subscribed")
    await hub.subscribe(channel, heard.append)
    assert server.call("PUBLISH", channel, "two") == 1
    await until(lambda: len(heard) == 2)
    assert heard == [b"one", b"two"]
    await hub.close()


@both_protocols
async def test_a_listener_is_not_called_once_its_channel_is_given_up(
    server: Server, channel: bytes, protocol: int
) -> None:
    """What was on its way at that moment is dropped, and the other channels go on."""
    heard: list[bytes] = []
    others: list[bytes] = []
    hub = hub_to(server, protocol=protocol)
    await hub.subscribe(channel, heard.append)
    await hub.subscribe(channel + b":other", others.append)
    server.call("PUBLISH", channel, "arrives with nobody there")
    await hub.unsubscribe(channel)
    server.call("PUBLISH", channel + b":other", "x")
    await until(lambda: bool(others))
    assert heard == []
    await hub.close()


@both_protocols
async def test_the_last_of_many_changes_of_mind_counts(
    server: Server, channel: bytes, protocol: int
) -> None:
    """Subscribing and giving up in one turn of the loop ends as the last call says."""
    heard: list[bytes] = []
    hub = hub_to(server, protocol=protocol)
    await hub.subscribe(b"warm", heard.append)
    early = [
        asyncio.ensure_future(hub.subscribe(channel, lambda _: heard.append(b"the first's"))),
        asyncio.ensure_future(hub.unsubscribe(channel)),
        asyncio.ensure_future(hub.subscribe(channel, heard.append)),
    ]
    await asyncio.gather(*early)
    assert server.call("PUBLISH", channel, "x") == 1
    await until(lambda: bool(heard))
    assert heard == [b"x"]
    await hub.close()


async def test_a_channel_has_one_listener(server: Server, channel: bytes) -> None:
    """A second one is refused, whether or not the first is confirmed yet; the first goes on."""
    heard: list[bytes] = []
    hub = hub_to(server)
    first = asyncio.ensure_future(hub.subscribe(channel, heard.append))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="listener") as caught:
            await hub.subscribe(channel, print)
        assert caught.value.argument == "channel"
        await first
    with pytest.raises(InvalidArgumentError, match="must be bytes"):
        await hub.subscribe("text", print)  # type: ignore[arg-type]
    server.call("PUBLISH", channel, "x")
    await until(lambda: bool(heard))
    await hub.close()


async def test_a_cancelled_subscribe_leaves_nothing_behind(
    server: Server, channel: bytes, fault_proxy: Proxies
) -> None:
    """Cancelled before its confirmation, the subscription is taken back on the server too."""
    proxy = fault_proxy(server)
    heard: list[bytes] = []
    hub = hub_to(proxy)
    await hub.subscribe(b"warm", heard.append)
    proxy.hold_replies()
    waiting = asyncio.ensure_future(hub.subscribe(channel, heard.append))
    await until(lambda: server.call("PUBLISH", channel, "early") == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: server.call("PUBLISH", channel, "late") == 0)
    proxy.clear()
    await hub.subscribe(channel, heard.append)
    server.call("PUBLISH", channel, "x")
    await until(lambda: bool(heard))
    assert heard == [b"x"]
    await hub.close()


@pytest.mark.needs("acl")
async def test_a_channel_without_the_right_to_it_is_refused_alone(
    own_server: Servers, channel: bytes
) -> None:
    """The caller gets the server's refusal at once; the other channels go on."""
    server = own_server()
    raw = raw_to(server)
    raw("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels", "&open*")
    hub = hub_to(server, username="narrow", password="pw")
    heard: list[bytes] = []
    await hub.subscribe(b"open", heard.append)
    with pytest.raises(StorePermissionError):
        await hub.subscribe(b"closed", heard.append)
    with pytest.raises(StorePermissionError):
        await hub.subscribe(b"closed", heard.append)  # it is not taken for subscribed
    assert raw("PUBLISH", "closed", "x") == 0
    assert raw("PUBLISH", "open", "y") == 1
    await until(lambda: bool(heard))
    assert heard == [b"y"]
    await hub.close()
    raw.close()


@pytest.mark.needs("acl")
async def test_a_wrong_password_fails_the_subscribe_at_once(
    own_server: Servers, channel: bytes
) -> None:
    """What no retry mends is told without using up the budget, and nothing is tried afterwards."""
    server = own_server(password="right")
    options = LaneOptions(retry_budget=3600.0)
    hub = hub_to(server, options=options, password="wrong")
    async with asyncio.timeout(10):
        with pytest.raises(StoreAuthenticationError):
            await hub.subscribe(channel, print)
    assert not hub.connected
    assert not hub.backlog
    await hub.close()


@pytest.mark.needs("info")
async def test_an_idle_hub_sends_nothing_but_its_ping(own_server: Servers, channel: bytes) -> None:
    """Between messages the server runs PING for it and no other command."""
    server = own_server()
    raw = raw_to(server)
    hub = hub_to(server, options=LaneOptions(health_check_interval=0.02, retry_budget=2))
    await hub.subscribe(channel, print)
    raw("CONFIG", "RESETSTAT")

    def commands() -> dict[str, int]:
        lines = raw("INFO", "commandstats").decode().splitlines()
        pairs = [line.removeprefix("cmdstat_").split(":calls=") for line in lines if ":" in line]
        return {name: int(rest.split(",")[0]) for name, rest in pairs}

    await until(lambda: commands().get("ping", 0) >= 3)
    assert set(commands()) - {"ping"} <= {"info", "config|resetstat", "config"}
    assert hub.connected
    raw.close()
    await hub.close()


# --- where and how --------------------------------------------------------------------------------


@pytest.mark.needs("tls")
async def test_messages_are_heard_over_tls(
    own_server: Servers, free_port: Callable[[], int], tmp_path: Any, channel: bytes
) -> None:
    """The hub trusts a server as the lanes do: by its certificate, and only by that."""
    trustme = pytest.importorskip("trustme")
    from llmspell_dist.redis.embedded import TLSFiles

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = TLSFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(str(files.cert))
    issued.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.ca))
    port = free_port()
    server = own_server(port=port, tls=files)
    raw = raw_to(server)
    trusting = ssl.create_default_context(cafile=str(files.ca))
    hub = Hub(StaticEndpoint(Endpoint(host="127.0.0.1", port=port, tls=trusting)))
    heard: list[bytes] = []
    await hub.subscribe(channel, heard.append)
    assert raw("PUBLISH", channel, "x") == 1
    await until(lambda: bool(heard))
    await hub.close()
    raw.close()
    stranger = Endpoint(host="127.0.0.1", port=port, tls=ssl.create_default_context())
    hub = Hub(StaticEndpoint(stranger))
    with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
        await hub.subscribe(channel, heard.append)
    await hub.close()


# --- lifetime -------------------------------------------------------------------------------------


async def test_nothing_connects_before_the_first_subscribe(
    server: Server, channel: bytes, fault_proxy: Proxies
) -> None:
    """Neither the constructor nor the close of an unused hub connects; a subscribe does, once."""
    proxy = fault_proxy(server)
    unused = hub_to(proxy)
    await unused.close()
    hub = hub_to(proxy)
    await hub.unsubscribe(channel)
    assert (proxy.connections, hub.connected) == (0, False)
    await asyncio.gather(hub.subscribe(channel, print), hub.subscribe(b"other", print))
    assert (proxy.connections, hub.connected) == (1, True)
    await hub.close()


async def test_close_ends_the_subscriptions(server: Server, channel: bytes) -> None:
    """A closed hub, also one closed twice, is gone from the server, calls nobody, takes nothing."""
    heard: list[bytes] = []
    hub = hub_to(server)
    await hub.subscribe(channel, heard.append, lost=lambda: heard.append(b"lost"))
    assert server.call("PUBLISH", channel, "has arrived and is not read yet") == 1
    await asyncio.gather(hub.close(), hub.close())
    await hub.close()
    await until(lambda: server.call("PUBLISH", channel, "x") == 0)
    assert (heard, hub.connected) == ([], False)
    await hub.unsubscribe(channel)
    with pytest.raises(ClosedError):
        await hub.subscribe(channel, heard.append)


def test_a_hub_belongs_to_the_event_loop_that_used_it_first(server: Server, channel: bytes) -> None:
    """Another event loop is told the rule, at every call, and the hub works on."""
    heard: list[bytes] = []
    hub = hub_to(server)

    async def listens() -> None:
        server.call("PUBLISH", channel, "x")
        await until(lambda: bool(heard))

    with asyncio.Runner() as runner:
        runner.run(hub.subscribe(channel, heard.append))
        for call in (hub.subscribe(b"c", print), hub.unsubscribe(channel), hub.close()):
            with pytest.raises(WrongEventLoopError, match="one client per event loop"):
                asyncio.run(call)
        runner.run(listens())
        runner.run(hub.close())


@pytest.mark.needs("process")
@both_protocols
def test_a_forked_child_listens_on_a_connection_of_its_own(
    server: Server, channel: bytes, protocol: int
) -> None:
    """The child starts without the parent's channels; the parent does not notice."""
    heard: list[bytes] = []
    hub = hub_to(server, protocol=protocol)

    async def child() -> None:
        own: list[bytes] = []
        assert not hub.connected
        await hub.subscribe(channel, own.append)
        assert server.call("PUBLISH", channel, "to both") == 2
        await until(lambda: own == [b"to both"])
        await hub.close()

    async def until_heard(message: bytes) -> None:
        await until(lambda: heard[-1:] == [message])

    with asyncio.Runner() as runner:
        runner.run(hub.subscribe(channel, heard.append, lost=lambda: heard.append(b"lost")))
        info, inherited = hub.info, hub._supervisor._sock
        assert inherited is not None
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with asyncio.Runner() as inner:
                    inner.run(child())
                code = int(heard != [] or inherited.fileno() >= 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        runner.run(until_heard(b"to both"))
        server.call("PUBLISH", channel, "to the parent")
        runner.run(until_heard(b"to the parent"))
        assert heard == [b"to both", b"to the parent"]
        assert hub.info is info, "the parent had to reconnect"
        runner.run(hub.close())


# --- whether a channel is heard now ---------------------------------------------------------------


async def test_a_channel_is_heard_once_the_present_connection_has_confirmed(
    server: Server, channel: bytes, fault_proxy: Proxies
) -> None:
    """Who asks for it waits until then, and is told if that does not come in time."""
    proxy = fault_proxy(server)
    hub = hub_to(proxy)
    with pytest.raises(InvalidArgumentError, match="must have a listener"):
        await hub.confirmed(channel)
    assert not hub.hears(channel)
    await hub.subscribe(channel, print)
    assert hub.hears(channel)
    await hub.confirmed(channel)
    proxy.down()
    await until(lambda: not hub.hears(channel))
    patient, hub.options = hub.options, replace(hub.options, retry_budget=0.2)
    with pytest.raises(StoreUnavailableError):
        await hub.confirmed(channel)
    hub.options = patient
    waiting = [asyncio.ensure_future(hub.confirmed(channel)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    proxy.up()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None, None]
    await hub.confirmed(channel)
    proxy.down()
    await until(lambda: not hub.hears(channel))
    late = asyncio.ensure_future(hub.confirmed(channel))
    await asyncio.sleep(0)
    await hub.close()
    with pytest.raises((ClosedError, StoreUnavailableError)):
        await late
    with pytest.raises(ClosedError):
        await hub.confirmed(channel)
