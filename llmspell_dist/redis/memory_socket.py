"""The server side of one ``memory://`` connection: RESP in, fakeredis, RESP out.

fakeredis's own TCP server is not used: it polls (10 ms per push), answers binary values as simple
strings, and drops the connection when a command raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import hiredis
from fakeredis import FakeServer
from fakeredis._helpers import SimpleError, SimpleString
from fakeredis._socket import AsyncFakeSocket
from fakeredis.model import ClientInfo

_NOTHING = object()


# --- replies --------------------------------------------------------------------------------------


def encode_reply(value: Any, protocol: int) -> bytes:
    """Return `value` as a real server that speaks RESP `protocol` would send it."""
    if isinstance(value, dict):
        flat = [part for pair in value.items() for part in pair]
        head = b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % len(flat)
        return head + b"".join(encode_reply(item, protocol) for item in flat)
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = b"~" if protocol == 3 and isinstance(value, (set, frozenset)) else b"*"
        parts = [encode_reply(item, protocol) for item in value]
        return b"%b%d\r\n%b" % (kind, len(parts), b"".join(parts))
    return _encode_scalar(value, protocol)


def _encode_scalar(value: Any, protocol: int) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    elif isinstance(value, float) and protocol != 3:
        value = b"%.17g" % value
    match value:
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case None:
            return b"_\r\n" if protocol == 3 else b"$-1\r\n"
        case bool() if protocol == 3:
            return b"#t\r\n" if value else b"#f\r\n"
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%.17g\r\n" % value
        case SimpleString():
            return b"+%b\r\n" % value.value
        case SimpleError():
            text: str = value.value.replace("\r", " ").replace("\n", " ")
            return b"-%b\r\n" % text.encode()
    raise TypeError(f"fakeredis replied with {type(value).__name__}")


# --- one connection -------------------------------------------------------------------------------


class _Client(AsyncFakeSocket):
    """fakeredis's side of one connection: replies and pushes leave through the transport."""

    def __init__(self, server: FakeServer, connection: Connection, info: ClientInfo) -> None:
        self._connection = connection
        self._in_command = False
        self._waiting: asyncio.Task[Any] | None = None
        self._gone = False
        super().__init__(server, 0, client_class=_Client, client_info=info)

    def put_response(self, msg: Any) -> None:
        """Send a reply, or (from another client's PUBLISH) a push."""
        protocol = self._client_info.protocol_version
        data = encode_reply(msg, protocol)
        if protocol == 3 and _is_push(msg):
            data = b">" + data[1:]
        self._connection.send(data)

    def _decode_result(self, result: Any) -> Any:
        return result  # errors and status replies are told apart by `encode_reply`

    def run(self, fields: list[bytes]) -> None:
        """Execute one request; whatever goes wrong inside fakeredis becomes an error reply."""
        try:
            answer = _ANSWERS.get(fields[0].upper())
            if answer is None:
                self._process_command(fields)
            else:
                self.put_response(answer(fields))
        except Exception as error:  # noqa: BLE001  # a bug of fakeredis must not hang the caller
            self.put_response(SimpleError(f"ERR fakeredis failed: {type(error).__name__}: {error}"))

    def copy(self, key: Any, newkey: Any, *args: bytes) -> int:
        """Carry out COPY; fakeredis's own puts the very same list or hash under both keys."""
        copied = int(super().copy(key, newkey, *args))
        if copied:
            ends = newkey.expireat
            del newkey.db[newkey.key]  # what lies there is the source's
            newkey.value, newkey.expireat = deepcopy(key.value), ends
        return copied

    def _get_server_runtime(self, server: Any) -> Any:
        runtime = super()._get_server_runtime(server)
        if not hasattr(server, "llmspell_runtime"):
            server.llmspell_runtime = _Runtime(runtime)
        return server.llmspell_runtime

    async def _async_blocking(self, *args: Any, **kwargs: Any) -> None:
        # fakeredis forgets the task; it must end with the connection, or the collector ends it.
        self._waiting = asyncio.current_task()
        if self._gone and self._waiting is not None:
            self._waiting.cancel()
        await super()._async_blocking(*args, **kwargs)

    def leave(self) -> None:
        """Stop being a client: the connection is lost."""
        self._gone = True
        if self._waiting is not None:
            self._waiting.cancel()
        self.close()

    def resume(self) -> None:
        """Go on with the requests that came during a blocking one."""
        self._paused = False
        self._connection.work()

    def kill(self) -> None:
        """Close the connection, after its own reply if it killed itself."""
        super().kill()
        self._connection.hang_up()


class _Runtime:
    """fakeredis's Lua runtime that compiles a script once, not at every call.

    It also collects garbage now and then instead of after every call; the two are most of the time
    of a small script.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._compile = lru_cache(maxsize=128)(runtime.compile)
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def execute(self, script: str | bytes) -> Any:
        if script == "collectgarbage()":
            self._calls += 1
            if self._calls % 256:
                return None
        return self._compile(script)()


# Commands that fakeredis lacks and clients ask: one server, no replicas, nothing on disk.
_INFO = b"\r\n".join(
    [
        b"# Server",
        b"redis_version:7.0.0",
        b"server_name:fakeredis",
        b"redis_mode:standalone",
        b"# Persistence",
        b"loading:0",
        b"aof_enabled:0",
        b"rdb_last_bgsave_status:ok",
        b"aof_last_write_status:ok",
        b"# Memory",
        b"maxmemory:0",
        b"maxmemory_policy:noeviction",
        b"# Replication",
        b"role:master",
        b"connected_slaves:0",
        b"",
    ]
)
_CONFIG = {
    b"appendonly": b"no",
    b"appendfsync": b"no",
    b"save": b"",
    b"maxmemory": b"0",
    b"maxmemory-policy": b"noeviction",
}


def _config(fields: list[bytes]) -> Any:
    if len(fields) < 3 or fields[1].upper() != b"GET":
        return SimpleError("ERR memory:// has no configuration to change")
    return {name: _CONFIG[name] for name in fields[2:] if name in _CONFIG}


_ANSWERS: dict[bytes, Callable[[list[bytes]], Any]] = {
    b"INFO": lambda _fields: _INFO,
    b"CONFIG": _config,
    b"ROLE": lambda _fields: [b"master", 0, []],
    b"WAIT": lambda _fields: 0,
    b"WAITAOF": lambda _fields: [0, 0],
}


_PUSHES = frozenset(
    f"{kind}{what}".encode()
    for kind in ("", "p", "s")
    for what in ("message", "subscribe", "unsubscribe")
)


def _is_push(msg: Any) -> bool:
    return (
        isinstance(msg, list)
        and len(msg) >= 3
        and isinstance(msg[0], (bytes, str))
        and msg[0] in _PUSHES
    )


class Connection(asyncio.Protocol):
    """A client's TCP connection: requests in, replies of one turn out in one write."""

    def __init__(self, data: FakeServer, connections: set[Connection]) -> None:
        self._data = data
        self._connections = connections
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._out: list[bytes] = []
        self._working = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Become a client of the fake server."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        self._connections.add(self)
        addresses = (
            transport.get_extra_info(name) or ("?", 0) for name in ("sockname", "peername")
        )
        local, peer = (f"{address[0]}:{address[1]}" for address in addresses)
        info = ClientInfo(addr=peer, laddr=local, fd=0, name="", flags="N", resp=2)
        self._client: _Client | None = _Client(self._data, self, info)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        """Stop being one."""
        self._connections.discard(self)
        client, self._client = self._client, None
        if client is not None:
            client.leave()

    def data_received(self, data: bytes) -> None:
        """Take in a piece of requests."""
        self._reader.feed(data)
        self.work()

    def work(self) -> None:
        """Run the complete requests that have come, up to one that blocks."""
        client = self._client
        if client is None or self._working:
            return
        self._working = True
        try:
            while not (client._paused or client._killed):  # noqa: SLF001
                fields = self._reader.gets()
                if fields is _NOTHING:
                    break
                if not isinstance(fields, list) or not fields:
                    raise hiredis.ProtocolError("a request is an array")  # noqa: TRY301
                client.run(fields)
        except hiredis.ProtocolError as error:
            self._out.append(f"-ERR Protocol error: {error}\r\n".encode())
            self._closing = True
        finally:
            self._working = False
            self._flush()

    def send(self, data: bytes) -> None:
        """Queue `data`; it leaves at once unless more of this turn will follow."""
        self._out.append(data)
        if not self._working:
            self._flush()

    def hang_up(self) -> None:
        """Close after what is queued."""
        self._closing = True
        if not self._working:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()
        if self._closing:
            self.transport.close()
