"""What tests of the state layer share: a look at everything in Redis, and the rules it keeps.

`Store.check` is the invariant of the data model, asked after every behaviour test: no element lies
around that no record names, and what `$$` counts is what is there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import Any

import hiredis
import pytest
from fix_servers import behind

from llmspell_dist.changes import LogEntry, unpack_entry
from llmspell_dist.keys import KeySpace, KeyType
from llmspell_dist.records import (
    Kind,
    ScopeMeta,
    StoredRecord,
    pack_record,
    unpack_head,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.scope import Scope
from llmspell_dist.state.housekeeping import sweep
from llmspell_dist.state.manager import StateManager

Dump = dict[bytes, tuple[bytes, Any, bool]]
"""By key: its type, everything in it, whether it expires."""


class Raw:
    """A plain connection of a test to a server, beside the library's own."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(address)
        self._reader = hiredis.Reader()

    def send(self, packed: bytes, replies: int = 1) -> list[Any]:
        """Send requests that are packed already; their replies, errors among them."""
        self._socket.sendall(packed)
        found: list[Any] = []
        while len(found) < replies:
            reply = self._reader.gets()
            if reply is False:
                data = self._socket.recv(1 << 20)
                if not data:
                    raise ConnectionResetError
                self._reader.feed(data)
            else:
                found.append(reply)
        return found

    def many(self, requests: list[tuple[Any, ...]]) -> list[Any]:
        """Send several requests in one go."""
        packed = b"".join([hiredis.pack_command(request) for request in requests])
        return self.send(packed, len(requests))

    def __call__(self, *request: Any) -> Any:
        """Return the reply to one request; an error is raised."""
        reply = self.many([request])[0]
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def now_ms(self) -> int:
        """Return the server's time."""
        seconds, micros = self("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def close(self) -> None:
        self._socket.close()


_GONE = -2
"""What PTTL says of a key that is not there."""
_READ: dict[bytes, tuple[Any, ...]] = {
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
    b"string": ("GET",),
}


class Store:
    """Everything of one namespace, as it lies in Redis."""

    def __init__(self, raw: Raw, namespace: str, shards: int = 1) -> None:
        self.raw = raw
        self.space = KeySpace(namespace, shards)
        self.intact = True
        """Set to False by a test that damages records on purpose."""

    def all_keys(self) -> list[bytes]:
        """Return all Redis keys of the namespace."""
        prefix = self.space.namespace.encode() + b":"
        return sorted(key for key in self.raw("KEYS", "*") if key.startswith(prefix))

    def dump(self, *, without: tuple[str, ...] = (":ring:", ":hookturn")) -> Dump:
        """Return all data; rings left out, because they remember refusals too.

        So is whose turn it is to tidy hooks up, which a client says by itself now and then.
        """
        keys = [key for key in self.all_keys() if not any(part.encode() in key for part in without)]
        types = self.raw.many([("TYPE", key) for key in keys])
        # What expires while this looks is gone: it must not pass for a key that is to stay.
        there = [(key, kind) for key, kind in zip(keys, types, strict=True) if kind != b"none"]
        keys, types = [key for key, _ in there], [kind for _, kind in there]
        contents = self.raw.many(
            [(_READ[kind][0], key, *_READ[kind][1:]) for key, kind in zip(keys, types, strict=True)]
        )
        lives = self.raw.many([("PTTL", key) for key in keys])
        found: Dump = {}
        for key, kind, content, life in zip(keys, types, contents, lives, strict=True):
            if life == _GONE:
                continue
            if kind in (b"hash", b"zset"):
                content = dict(zip(content[::2], content[1::2], strict=True))  # noqa: PLW2901
            elif kind == b"set":
                content = set(content)  # noqa: PLW2901
            found[key] = (kind, content, life >= 0)
        return found

    # -- one scope

    def hash_of(self, scope: str) -> bytes:
        return self.space.scope(Scope.parse(scope))

    def field(self, scope: str, key: str) -> bytes | None:
        """Return the bytes of a record."""
        found: bytes | None = self.raw("HGET", self.hash_of(scope), key)
        return found

    def record(self, scope: str, key: str) -> StoredRecord:
        """Return a record, which must be there, with its payload still encoded."""
        raw = self.field(scope, key)
        assert raw is not None
        return unpack_record(raw, scope, key)

    def damage(self, scope: str, key: str, raw: bytes) -> None:
        """Put other bytes in the place of a record."""
        self.intact = False
        self.raw("HSET", self.hash_of(scope), key, raw)

    def meta(self, scope: str) -> ScopeMeta:
        raw = self.raw("HGET", self.hash_of(scope), "$$")
        return unpack_meta(raw, scope)

    def log(self, shard: str = "0") -> list[LogEntry]:
        """Return the whole log, oldest first."""
        return [
            unpack_entry(*entry) for entry in self.raw("XRANGE", self.space.log(shard), "-", "+")
        ]

    def everything(self) -> bytes:
        """Return all bytes of the namespace in one, to look for what must not be there."""
        return repr(self.dump(without=())).encode("latin-1", "backslashreplace")

    def elements(self) -> list[bytes]:
        """Return the keys that hold elements and are to stay."""
        return [
            key for key, (_, _, expires) in self.dump().items() if b":p:" in key and not expires
        ]

    # -- the invariant

    def check(self) -> None:
        """Compare what the scopes say about themselves with what is there."""
        dump = self.dump()
        trashed = _trashed(dump)
        named: set[bytes] = set()
        for key, (_, content, _) in dump.items():
            what = _what(self.space, key)
            if what is None or what[0] is not KeyType.SCOPE:
                continue
            named |= self._check_scope(key, what[1], content, dump)
        for key, (_, _, expires) in dump.items():
            what = _what(self.space, key)
            if what is not None and what[0] is KeyType.GENERATION:
                assert key in named or expires or key in trashed, f"{key!r} belongs to nothing"
            if what is not None and what[0] in (KeyType.TTL, KeyType.GENERATIONS):
                assert key.rpartition(b":")[0] in dump, f"{key!r} has no scope"

    def _check_scope(
        self, key: bytes, scope: Scope, fields: dict[bytes, bytes], dump: Dump
    ) -> set[bytes]:
        text = scope.text
        meta = unpack_meta(fields.get(b"$$"), text)
        size, generations, expiries = 0, set(), {}
        for field, raw in fields.items():
            if field == b"$$":
                continue
            stored = unpack_record(raw, text, field.decode())
            assert pack_record(stored) == raw, f"{text} {field!r}: not as Python would write it"
            assert meta.revision is not None
            assert stored.revision <= meta.revision, f"{text} {field!r} is ahead of its scope"
            size += len(field) + len(raw)
            if stored.expires_ms:
                expiries[field] = stored.expires_ms
            if stored.kind >= Kind.LIST:
                size += _check_elements(key, text, field, stored, dump)
                generations.add(unpack_head(stored.payload, text, "").generation.encode())
        assert (meta.count, meta.size) == (len(fields) - 1, size), f"$$ of {text} is wrong"
        assert dump.get(key + b":g", (b"", set(), False))[1] == generations, f"{text}: generations"
        index = {
            field: int(float(at)) for field, at in dump.get(key + b":ttl", (b"", {}, 0))[1].items()
        }
        assert index == expiries, f"expiry index of {text}"
        due = dump[self.space.due(self.space.shard(scope))][1].get(text.encode())
        assert due is not None, f"{text} is not registered"
        assert not expiries or float(due) <= min(expiries.values()), f"{text} is swept too late"
        return {key + b":p:" + generation for generation in generations}


def _check_elements(key: bytes, text: str, field: bytes, stored: StoredRecord, dump: Dump) -> int:
    head = unpack_head(stored.payload, text, field.decode())
    _, elements, expires = dump.get(key + b":p:" + head.generation.encode(), (b"", (), False))
    assert not expires, f"the elements of {text} {field!r} will go"
    assert len(elements) == head.count, f"{text} {field!r}: count"
    parts = [*elements, *elements.values()] if isinstance(elements, dict) else elements
    assert sum(map(len, parts)) == head.size, f"{text} {field!r}: bytes"
    return head.size


def _trashed(dump: Dump) -> set[bytes]:
    """Elements that a clear left for the sweeper."""
    found = set()
    for key, (_, asides, _) in dump.items():
        if not key.endswith(b":trash"):
            continue
        for aside in asides:
            scope_key = aside.rpartition(b":g:")[0]
            found |= {scope_key + b":p:" + name for name in dump[aside][1]}
    return found


def _what(space: KeySpace, key: bytes) -> tuple[KeyType, Scope] | None:
    if b":g:" in key:
        return None
    parsed = space.parse(key)
    return None if parsed.scope is None else (parsed.what, parsed.scope)


async def until(
    holds: Callable[[], bool | Awaitable[bool]], *, within_s: float = 5.0, every_s: float = 0.001
) -> None:
    """Wait for something that time brings, and fail if it does not come."""
    deadline = monotonic() + within_s
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(every_s)


async def sweep_all(spell: Any) -> int:
    """Remove everything that has expired now; how many keys."""
    total = 0
    spell = behind.get(spell, spell)
    core = spell.state._driver.core
    for shard in core.shards():
        more = True
        while more:
            _, removed, more = await spell.state._driver.run(sweep(core, shard))
            total += removed
    return total


@pytest.fixture
def raw(server: Any) -> Iterator[Raw]:
    """A connection of the test's own to `server`."""
    raw = Raw(server.address)
    yield raw
    raw.close()


@pytest.fixture
def store(raw: Raw, namespace: str) -> Store:
    """Everything of the test's namespace, as it lies in Redis."""
    return Store(raw, namespace)


@pytest.fixture
def state(spell: Any) -> StateManager:
    """The shared state of an open client."""
    state: StateManager = spell.state
    return state


class Expiring:
    """Sets keys that have expired by the time it returns, and that nobody has removed yet."""

    def __init__(self, state: StateManager, raw: Raw) -> None:
        self._state = state
        self._raw = raw

    async def __call__(self, scope: str, **values: Any) -> None:
        for key, value in values.items():
            await self._state.set(scope, key, value, ttl=0.001)
        await self.gone(scope, *values)

    async def gone(self, scope: str, *keys: str) -> None:
        """Wait until keys that have a short TTL are over by the server's clock."""
        core = self._state._driver.core
        hash_key = core.scope_key(scope).hash
        raws = self._raw.many([("HGET", hash_key, key) for key in keys])
        last = max(unpack_record(raw, scope, "").expires_ms for raw in raws if raw is not None)
        await until(lambda: self._raw.now_ms() > last)


@pytest.fixture
def expiring(state: StateManager, raw: Raw) -> Expiring:
    """Sets keys that have expired, and were not removed yet."""
    return Expiring(state, raw)
