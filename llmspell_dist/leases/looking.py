"""Looking at leases, breaking them, demanding them: what is no part of holding one; steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgpack

from llmspell_dist.changes import Op
from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError
from llmspell_dist.leases.model import LeaseInfo, WaitEdge, WaitGraph
from llmspell_dist.leases.terms import DEFAULT_NAME, check_name, check_reason
from llmspell_dist.leases.wire import NONCE_BYTES, pack_said
from llmspell_dist.records import DEMANDS_LEASE, unpack_meta
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import change
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, decode_part

if TYPE_CHECKING:
    from llmspell_dist.leases.steps import LeaseSteps, Target
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["LeaseViews"]

MAX_WAITERS_SHOWN: Final = 1000
MAX_LISTED: Final = 1000
_REGISTRY_PAGE: Final = 500


class LeaseViews:
    """The operations on leases that hold nothing."""

    def __init__(self, steps: LeaseSteps) -> None:
        self.steps = steps
        self.core = steps.core

    def show(self, scope: str | Scope, name: str, waiters: int) -> Steps[LeaseInfo]:
        """Everything about one lease."""
        if type(waiters) is not int or not 0 <= waiters <= MAX_WAITERS_SHOWN:
            rule = f"must be an int from 0 to {MAX_WAITERS_SHOWN:,}"
            raise InvalidArgumentError("waiters", waiters, rule)
        return (yield from self._show(self.steps.target(scope, name), waiters))

    def _show(self, target: Target, waiters: int) -> Steps[LeaseInfo]:
        return self.steps.read_show(target, (yield self.steps.show_call(target, waiters)))

    def requirement(self, scope: str | Scope) -> Steps[str | None]:
        """Return the name of the lease that every write of a scope must carry; None: none."""
        scope_key = self.core.scope_key(scope)
        raw = yield Command(pack(b"HGET", scope_key.hash, b"$$"), "HGET")
        meta = unpack_meta(raw, scope_key.scope.text)
        if not meta.flags & DEMANDS_LEASE:
            return None
        return decode_part(meta.policy[1 : 1 + meta.policy[0]].decode(), "name")

    def listing(self, shard: str, limit: int, waiters: int) -> Steps[list[LeaseInfo]]:
        """Return the leases of a shard that are held or waited for, first those that end first."""
        if type(limit) is not int or not 1 <= limit <= MAX_LISTED:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_LISTED:,}")
        registry = self.core.keyspace.leases(shard)
        found: dict[bytes, LeaseInfo] = {}
        cursor = b"0"
        while True:  # the registry has the leases that ended, too, until they are forgotten
            request = pack(b"ZSCAN", registry, cursor, b"COUNT", _REGISTRY_PAGE)
            cursor, flat = yield Command(request, "ZSCAN", bulk=True)
            keys = flat[::2]
            looks: list[Command | ScriptCall] = [
                Command(pack(b"HMGET", key, b"x", b"b"), "HMGET", bulk=True) for key in keys
            ]
            answers = (yield looks) if looks else []
            for key, (held, busy) in zip(keys, answers, strict=True):
                if held or busy:
                    info = yield from self._show(self._target_of(key), waiters)
                    if info.held or info.waiting:
                        found[key] = info
            if cursor == b"0" or len(found) >= limit:
                break
        ordered = sorted(found.values(), key=lambda info: [one.expires for one in info.holders])
        return ordered[:limit]

    def graph(self, shard: str) -> Steps[WaitGraph]:
        """Who waits for whom in a shard."""
        request = pack(b"HVALS", self.core.keyspace.waits(shard))
        waits = yield Command(request, "HVALS", bulk=True)
        edges: dict[WaitEdge, None] = {}
        for key in dict.fromkeys(
            line[NONCE_BYTES:] for lines in waits for line in split_waits(lines)
        ):
            info = yield from self._show(self._target_of(key), MAX_WAITERS_SHOWN)
            for waiter in info.waiters:
                if waiter.connected:  # one that is gone waits for nothing any more
                    for holder in info.holders:
                        edges[WaitEdge(waiter.owner, info.scope, info.name, holder.owner)] = None
        return WaitGraph(tuple(edges))

    def _target_of(self, key: bytes) -> Target:
        parsed = self.core.keyspace.parse(key)
        assert parsed.scope is not None  # noqa: S101 - a lease's key has one
        return self.steps.target(parsed.scope, parsed.extra or DEFAULT_NAME)

    # --- changing

    def break_lease(
        self, scope: str | Scope, name: str, reason: str, token: int | None
    ) -> Steps[tuple[int, Revision | None]]:
        """Take a lease from who holds it; how many lost it, and the revision in the log."""
        check_reason(reason)
        if token is not None and (type(token) is not int or not 0 < token < 2**53):
            raise InvalidArgumentError("token", token, "must be the int of a holder, or None")
        target = self.steps.target(scope, name)
        info = yield from self._show(target, 0)
        meant = [holder for holder in info.holders if token in (None, holder.token)]
        said = {
            "lease": name,
            "reason": reason,
            "holders": [[holder.owner, holder.label, holder.token] for holder in meant],
        }
        keyspace = self.core.keyspace
        reply = yield ScriptCall(
            load_script("lease_break"),
            (
                *target.keys,
                *(keyspace.log(target.shard), keyspace.due(target.shard), target.scope.hash),
            ),
            (
                b"" if token is None else token.to_bytes(8, "big"),
                target.scope.text,
                msgpack.packb(said),
                self.core.meta(),
                self.steps.new_nonce(),
                pack_said(reason, self.core.actor()),
            ),
        )
        if not reply[0]:
            why = "nobody holds it" if token is None else f"nobody holds it with token {token}"
            current = info.holders[0] if info.holders else None
            raise LeaseNotHeldError(target.text, name, "break it", why, current=current)
        return int(reply[0]), Revision.parse(reply[1])

    def require(self, core: Core, scope: str | Scope, name: str | None) -> Steps[bool]:
        """Let every write of a scope need a lease, or none; whether that is new."""
        scope_key = core.scope_key(scope)
        payload = b"" if name is None else check_name(name).encode()
        commit = core.commit((scope_key,), (change(Op.POLICY, b"", payload),))
        done = yield from core.carry_out(commit)
        return done.results == [b"1"]


def split_waits(lines: bytes) -> list[bytes]:
    """Split what ``waits`` holds for an owner: a nonce of 12 bytes, which may be any, and a key."""
    found, at = [], 0
    while at < len(lines):
        stop = lines.index(b"\n", at + NONCE_BYTES)
        found.append(lines[at:stop])
        at = stop + 1
    return found
