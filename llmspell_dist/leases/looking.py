"""Looking at leases, breaking them, demanding them: what is no part of holding one; steps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgpack

from llmspell_dist.changes import Op
from llmspell_dist.context import get_context
from llmspell_dist.correlated import KIND_LEASE, LeaseEvent, pack_lease_event
from llmspell_dist.errors import InvalidArgumentError, LeaseNotHeldError, SpellError
from llmspell_dist.leases.model import LeaseInfo, WaitEdge, WaitGraph
from llmspell_dist.leases.terms import DEFAULT_NAME, check_name, check_reason
from llmspell_dist.leases.wire import NONCE_BYTES, pack_said
from llmspell_dist.records import DEMANDS_LEASE, META_FIELD, unpack_meta
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import change
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, decode_part
from llmspell_dist.state.correlated import note_call
from llmspell_dist.state.scopes import Stretch, split_cursor

if TYPE_CHECKING:
    from llmspell_dist.leases.model import LeaseHolder
    from llmspell_dist.leases.steps import LeaseSteps, Target
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["LeaseViews", "ending"]

MAX_WAITERS_SHOWN: Final = 1000
MAX_LISTED: Final = 1000
_REGISTRY_PAGE: Final = 500
_NOT_HELD: Final = datetime.min.replace(tzinfo=UTC)


def ending(info: LeaseInfo) -> tuple[datetime, str, str]:
    """Return what sorts leases by their end; first those that nobody holds, at last by name."""
    ends = min((holder.expires for holder in info.holders), default=_NOT_HELD)
    return ends, info.scope, info.name


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
        raw = yield Command(pack(b"HGET", scope_key.hash, META_FIELD), "HGET")
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
        cursor: str | None = None
        while True:  # the registry has the leases that ended, too, until they are forgotten
            start, process = split_cursor(cursor, _REGISTRY_PAGE)
            arguments = (start, process, b"", b"%d" % _REGISTRY_PAGE)
            reply = yield ScriptCall(load_script("scan_set"), (registry,), arguments, bulk=True)
            keys, cursor, _ = Stretch.read(reply, start, process)
            looks: list[Command | ScriptCall] = [
                Command(pack(b"HMGET", key, b"x", b"b"), "HMGET", bulk=True) for key in keys
            ]
            answers = (yield looks) if looks else []
            for key, (held, busy) in zip(keys, answers, strict=True):
                if held or busy:
                    info = yield from self._show(self._target_of(key), waiters)
                    if info.held or info.waiting:
                        found[key] = info
            if cursor is None or len(found) >= limit:
                break
        return sorted(found.values(), key=ending)[:limit]

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
        return WaitGraph(tuple(sorted(edges, key=astuple)))

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
        yield from self._note_broken(target, meant, reason)
        return int(reply[0]), Revision.parse(reply[1])

    def _note_broken(
        self, target: Target, meant: Sequence[LeaseHolder], reason: str
    ) -> Steps[None]:
        """Remember it with the correlation of who broke it, too; the holders do so with theirs."""
        said = get_context()
        if said is None or said.correlation_id is None:
            return
        items = []
        for holder in meant:
            event = LeaseEvent(
                what="broken",
                scope=target.text,
                name=target.name,
                token=holder.token,
                owner=holder.owner,
                mode=str(holder.mode),
                causation_id=said.causation_id,
                actor=self.core.actor(),
                reason=reason,
            )
            items.append((KIND_LEASE, pack_lease_event(event)))
        with contextlib.suppress(SpellError):  # the change log has it all the same
            yield note_call(self.core, said.correlation_id, items, behind_commits=True)

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
