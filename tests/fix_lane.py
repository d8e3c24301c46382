"""What the tests of the lanes share: endpoints of test servers, and commits that count."""

from __future__ import annotations

from typing import Any

from llmspell_dist.changes import Op
from llmspell_dist.records import Kind
from llmspell_dist.redis.commits import Commit, Condition, ScopeKey, change
from llmspell_dist.redis.connection import Endpoint, StaticEndpoint
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.scope import Scope

SHARD = b"lane:{0}"
SCOPE = ScopeKey(b"lane:{0}:agent:a", b"agent:a", SHARD, Scope.agent("a"))
COMMIT = load_script("commit")


def endpoint_of(server: Any, **options: Any) -> Endpoint:
    """Return the endpoint of a test server, an embedded server or a proxy."""
    address = getattr(server, "address", None) or str(server.socket)
    if isinstance(address, tuple):
        return Endpoint(host=address[0], port=address[1], **options)
    return Endpoint(path=address, **options)


def lanes_to(server: Any, *, options: LaneOptions | None = None, **endpoint: Any) -> Lanes:
    """Return unconnected lanes to a test server."""
    resolver = StaticEndpoint(endpoint_of(server, **endpoint))
    return Lanes(resolver, options=options, scripts=[COMMIT])


def scope_in(shard: str) -> ScopeKey:
    """Return a scope that lies in a shard of that name."""
    prefix = b"lane:{%b}" % shard.encode()
    return ScopeKey(b"%b:agent:a" % prefix, b"agent:a", prefix, Scope.agent("a"))


def add(
    key: str, by: int = 1, *, scope: ScopeKey = SCOPE, conditions: tuple[Condition, ...] = ()
) -> Commit:
    """Return a commit that adds to a number; its outcome ends with the new number."""
    one = change(Op.INCREMENT, key.encode(), b"%d" % by, kind=Kind.NUMBER)
    return Commit((scope,), [one], conditions)


def put(key: str, payload: bytes) -> Commit:
    """Return a commit that sets an opaque value."""
    return Commit((SCOPE,), [change(Op.SET, key.encode(), payload, kind=Kind.VALUE)])


def total(outcome: bytes) -> int:
    """Return the number in the outcome of `add`."""
    return int(outcome.split(b" ")[1])


def read(key: str) -> bytes:
    """Return the request that reads a key's record."""
    return pack("HGET", SCOPE.hash, key)


def count(record: bytes | None) -> int:
    """Return the one-digit number that `add` has stored, 0 if there is none."""
    return 0 if record is None else int(record[-1:])


def echo(text: object) -> bytes:
    """Return a request whose reply is the given text."""
    return pack("ECHO", str(text))
