"""``memory://name``: a server inside the process, for unit tests.

fakeredis (with Lua) holds the data and runs the same scripts as a real server. It is served over
loopback TCP, so that the same lanes, drivers and handshakes talk to it as to any other server: all
names of a process share one daemon thread with an event loop of its own.

A name's data lives as long as somebody holds it; the last `release` closes the port, and the thread
when no name is left. A forked child starts with none of it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fakeredis import FakeServer

from llmspell_dist import fork
from llmspell_dist.redis.memory_socket import Connection

__all__ = ["acquire", "names", "release"]

_T = TypeVar("_T")
_START_TIMEOUT_S = 10.0


@dataclass(eq=False)
class _Host:
    """The server of one name."""

    listener: socket.socket
    data: FakeServer
    users: int = 0
    connections: set[Connection] = field(default_factory=set)
    _accepting: set[asyncio.Task[Any]] = field(default_factory=set)

    async def open(self) -> None:
        self.listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self.listener, self._accept)

    def _accept(self) -> None:
        # By hand, because asyncio's server cannot tell which connections it is just taking in, and
        # one of those would outlive `close`.
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return  # it was gone before it was here
        sock.setblocking(False)
        # asyncio sets it only where the protocol's number is given; without it the second of two
        # small replies waits 40 ms for the client's delayed acknowledgement of the first.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        work = loop.connect_accepted_socket(lambda: Connection(self.data, self.connections), sock)
        task = loop.create_task(work)
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.listener)
        self.listener.close()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # abort() has scheduled connection_lost for this turn


class _Loop:
    """The daemon thread that runs the event loop of all names."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="llmspell-memory", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_TIMEOUT_S)

    def stop(self) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_TIMEOUT_S)
        self._loop.close()


async def _cancel_others() -> None:
    """End blocking commands whose clients are gone."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_lock = threading.Lock()
_hosts: dict[str, _Host] = {}
_loop: _Loop | None = None


def acquire(name: str) -> tuple[str, int]:
    """Return host and port of the server called `name`, created if nobody holds it yet.

    Each call needs one `release` of the same name.
    """
    global _loop
    with _lock:
        host = _hosts.get(name)
        if host is None:
            _loop = _loop or _Loop()
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            try:
                host = _Host(listener, FakeServer(version=(7, 0)))
                _loop.run(host.open())
            except BaseException:
                listener.close()
                raise
            _hosts[name] = host
        host.users += 1
        address: tuple[str, int] = host.listener.getsockname()[:2]
        return address


def release(name: str) -> None:
    """Give back one `acquire`; the last one ends the server and its data."""
    global _loop
    with _lock:
        host = _hosts.get(name)
        if host is None:
            # After a fork the child holds nothing, though its objects may still be closed.
            return
        host.users -= 1
        if host.users > 0 or _loop is None:
            return
        del _hosts[name]
        _loop.run(host.close())
        if not _hosts:
            _loop.stop()
            _loop = None


def names() -> list[str]:
    """Return the names held now, for leak checks."""
    with _lock:
        return sorted(_hosts)


def _forget_after_fork() -> None:
    """Drop the parent's servers: nothing serves them here, and open copies keep them alive."""
    global _loop, _lock
    for host in _hosts.values():
        fork.close_silently(host.listener)
        for connection in tuple(host.connections):
            # The real socket behind asyncio's wrapper, which can only shut it down.
            fork.close_silently(connection.transport.get_extra_info("socket")._sock)  # noqa: SLF001
    fork.keep_forever(dict(_hosts), _loop)
    _hosts.clear()
    _loop = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
