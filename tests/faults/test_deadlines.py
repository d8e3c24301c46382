"""Replies that come in drops, and primaries that move: the deadline is one for the whole reply."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest
from fix_faults import Servers, raw_to
from fix_lane import COMMIT, add, endpoint_of, total

from llmspell_dist.clock import ServerClock
from llmspell_dist.redis.blocking_driver import BlockingDriver
from llmspell_dist.redis.blocking_socket import BlockingSocket
from llmspell_dist.redis.connection import Endpoint
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack

pytestmark = pytest.mark.integration


def test_a_reply_that_trickles_in_is_given_up_at_the_deadline_of_the_whole() -> None:
    """A byte now and then keeps no caller waiting for ever."""
    ours, theirs = socket.socketpair()
    gone = threading.Event()

    def trickle() -> None:
        try:
            theirs.sendall(b"$1000\r\n")
            while not gone.wait(0.03):
                theirs.sendall(b"x")
        except OSError:
            return

    connection = BlockingSocket(LaneOptions(clock_interval=1000), (), ServerClock())
    connection._use_socket(ours)
    connection._clock_due = float("inf")
    connection.patience(0.3)
    thread = threading.Thread(target=trickle)
    thread.start()
    started = monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - EAGAIN or TimeoutError
        connection.round_trip(pack("GET", "a"))
    took = monotonic() - started
    gone.set()
    thread.join()
    theirs.close()
    assert 0.2 < took < 5  # the whole reply would take 30 s
    assert not connection.connected


def test_a_large_reply_in_many_pieces_arrives_and_leaves_the_patience_as_it_was() -> None:
    """The deadline of a reply in pieces does not shorten that of the next."""
    ours, theirs = socket.socketpair()
    connection = BlockingSocket(LaneOptions(clock_interval=1000), (), ServerClock())
    connection._use_socket(ours)
    connection._clock_due = float("inf")
    connection.patience(2.0)
    limit = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    payload = b"x" * 3_000_000
    thread = threading.Thread(target=theirs.sendall, args=(b"$3000000\r\n" + payload + b"\r\n",))
    thread.start()
    assert connection.round_trip(pack("GET", "a")) == payload
    thread.join()
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == limit
    connection.disconnect()
    theirs.close()


@dataclass
class Moving:
    """Leads to one server, and after it is asked again to another."""

    places: list[Endpoint]
    label: str = "the primary"
    asked: int = 0

    async def resolve(self) -> Endpoint:
        return self.resolve_blocking()

    def resolve_blocking(self) -> Endpoint:
        self.asked += 1
        return self.places[min(self.asked, len(self.places)) - 1]


@pytest.mark.needs("replicas")
@pytest.mark.parametrize("blocks", [False, True], ids=["async", "blocking"])
async def test_a_write_that_a_replica_refuses_follows_the_primary(
    own_server: Servers, blocks: bool
) -> None:
    """READONLY makes the driver ask again where the primary is, and connect there."""
    old, new = own_server(), own_server()
    resolver: Any = Moving([endpoint_of(old), endpoint_of(new)])
    raw = raw_to(old)
    raw("REPLICAOF", "127.0.0.1", 1)
    if blocks:
        with BlockingDriver(resolver, scripts=[COMMIT]) as driver:
            assert total(driver.commit(add("n"))) == 1
            assert driver.server == str(new.socket)
    else:
        async with Lanes(resolver, scripts=[COMMIT]) as lanes:
            assert total(await lanes.commit(add("n"))) == 1
            assert lanes.server == str(new.socket)
    assert resolver.asked == 2
    raw.close()
