"""The past of a key: its changes from the log, and its value at an earlier moment.

Every change carries the revision that its key and its scope had before, so the past of one key is a
chain that is walked without reading the entries of other scopes. Where the chain leads before the
oldest entry that is kept, the past is gone and that is said.

What a restore has put back has a revision of its own, from before the moment at which it was there:
the entry that says when (``RESTORED``) is found along the scope's chain.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.changes import LogEntry, LoggedChange, Op, unpack_entry
from llmspell_dist.classes import StateClass
from llmspell_dist.context import CommitContext
from llmspell_dist.errors import (
    CipherNotConfiguredError,
    HistoryUnavailableError,
    InvalidArgumentError,
)
from llmspell_dist.records import (
    ENCRYPTED,
    META_FIELD,
    RESTORED,
    Head,
    Kind,
    StoredRecord,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import MAX_SEQ, Revision, from_ms, to_ms
from llmspell_dist.state.core import field_of
from llmspell_dist.state.model import Change

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps

__all__ = ["NAMES", "History", "moment_of"]

MAX_ENTRIES: Final = 10_000
_AT_ONCE: Final = 100
_LOOKED_AT: Final = 2000

NAMES: Final = {
    Op.SET: "set",
    Op.DELETE: "delete",
    Op.EXPIRED: "expired",
    Op.TTL: "ttl",
    Op.INCREMENT: "increment",
    Op.APPEND: "append",
    Op.MERGE: "merge",
    Op.ADOPT: "set",
    Op.CLEAR: "clear",
    Op.RESTORED: "restored",
}
"""What users see of the log, and what they call it."""
_GONE: Final = frozenset((Op.DELETE, Op.EXPIRED, Op.CLEAR))
_OF_ALL_KEYS: Final = frozenset((Op.CLEAR, Op.RESTORED))


class Walk(NamedTuple):
    """A stretch of a key's chain, newest first."""

    ended: str
    """``end``: nothing is older; ``trimmed``: the log does not reach further; ``more``."""
    cursor: bytes
    entries: list[LogEntry]


class Elements(NamedTuple):
    """What a frame says about a list or map."""

    count: int  # type: ignore[assignment] # nobody needs tuple.count
    size: int
    generation: str
    rest: bytes


class History:
    """The operations on the past, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads
        self._said: tuple[dict[str, Any], CommitContext] = ({}, CommitContext())

    def _walk(
        self, scope: ScopeKey, field: bytes, cursor: bytes, upto: bytes, most: int
    ) -> Steps[Walk]:
        call = ScriptCall(
            load_script("history"),
            (self.core.keyspace.log(self.core.keyspace.shard(scope.scope)), scope.hash),
            (scope.text, field, cursor, upto, b"%d" % most, b"%d" % _LOOKED_AT),
            bulk=True,
        )
        ended, following, *flat = yield call
        entries = [
            unpack_entry(flat[i], [b"c", flat[i + 1], b"m", flat[i + 2], b"o", flat[i + 3]])
            for i in range(0, len(flat), 4)
        ]
        return Walk(ended.decode(), following, entries)

    # --- the list of changes

    def history(self, scope: str | Scope, key: str, limit: int) -> Steps[list[Change]]:
        """Return the last changes of a key, newest first."""
        if type(limit) is not int or not 1 <= limit <= MAX_ENTRIES:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_ENTRIES:,}")
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        name = field.decode()
        changes: list[Change] = []
        cursor = b""
        while len(changes) < limit:
            most = min(_AT_ONCE, limit - len(changes))
            walk = yield from self._walk(scope_key, field, cursor, b"", most)
            for entry in walk.entries:
                changes += [
                    self.change(entry, logged, name)
                    for logged in reversed(entry.changes)
                    if _concerns(logged, scope_key.scope.text, name)
                ]
            cursor = walk.cursor
            if walk.ended != "more":
                break
        return changes[:limit]

    def change(self, entry: LogEntry, logged: LoggedChange, key: str) -> Change:
        """Return what the user gets for a frame."""
        try:
            has_value, value, removed = self._written(logged)
        except CipherNotConfiguredError:
            # Who may not read the value may still see who changed it, and when.
            has_value, value, removed = False, None, ()
        return Change(
            scope=logged.scope,
            key=key,
            op=NAMES[Op(logged.op)],
            revision=entry.revision,
            time=entry.revision.time,
            has_value=has_value,
            value=value,
            removed=removed,
            previous=logged.previous,
            expires=from_ms(logged.expires_ms) if logged.expires_ms else None,
            state_class=None if logged.op in _OF_ALL_KEYS else StateClass(logged.state_class),
            operation=entry.operation,
            context=self._context(entry.meta),
        )

    def _context(self, meta: dict[str, Any]) -> CommitContext:
        """Return what was said about a commit; one after the other they mostly say the same."""
        if meta != self._said[0]:
            self._said = meta, CommitContext.from_wire(meta)
        return self._said[1]

    def _written(self, logged: LoggedChange) -> tuple[bool, Any, tuple[Any, ...]]:
        """Return what a change wrote, as far as the log tells."""
        payload, op = logged.payload, logged.op
        if payload is None or op in _GONE or op in (Op.TTL, Op.RESTORED):
            return False, None, ()
        if op in (Op.SET, Op.INCREMENT):
            return True, self.decode(logged, payload), ()
        if op == Op.ADOPT:
            whole = _adopted(payload).rest
            return (True, self.decode_plain(logged, whole), ()) if whole else (False, None, ())
        elements = _updated(payload)
        if op == Op.APPEND:
            parts, _ = _parts(elements.rest, 0)
            return True, tuple(self._element(logged, part) for part in parts), ()
        fields, removed = self.merged(logged, elements.rest)
        return True, fields, tuple(removed)

    def decode(self, logged: LoggedChange, payload: bytes) -> Any:
        """Return the value that a frame holds."""
        return self.core.values.decode(logged.kind, logged.flags, payload, logged.scope, logged.key)

    def decode_plain(self, logged: LoggedChange, payload: bytes) -> Any:
        """Return the whole value that a frame of an adopted generation holds."""
        return self.core.values.decode(Kind.VALUE, 0, payload, logged.scope, logged.key)

    def _element(self, logged: LoggedChange, part: bytes) -> Any:
        flags = ENCRYPTED if logged.state_class == StateClass.SENSITIVE else 0
        return self.core.values.decode(Kind.VALUE, flags, part, logged.scope, logged.key)

    def merged(self, logged: LoggedChange, rest: bytes) -> tuple[dict[Any, Any], list[Any]]:
        """Return the fields that a merge set and removed."""
        count = int.from_bytes(rest[:2], "big")
        parts, at = _parts(rest, 2, 2 * count)
        decode = self.core.values.codec.decode
        fields = {
            decode(parts[i]): self._element(logged, parts[i + 1]) for i in range(0, len(parts), 2)
        }
        removed, _ = _parts(rest, at + 2, int.from_bytes(rest[at : at + 2], "big"))
        return fields, [decode(part) for part in removed]

    # --- the value at a moment

    def get_at(
        self, scope: str | Scope, key: str, at: Revision | datetime, default: Any
    ) -> Steps[Any]:
        """Return the value that a key had at a revision or moment."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        moment = moment_of(at)
        raw = yield Command(pack(b"HGET", scope_key.hash, field), "HGET")
        stored = None if raw is None else unpack_record(raw, scope_key.scope.text, key)
        if stored is not None and (yield from self._was_there(scope_key, stored, moment)):
            there, value = yield from self._present(scope_key, key, stored, moment, default)
            if there:
                return value
        rebuilt = _Rebuilt(self, scope_key, field.decode())
        cursor, most = b"", 1
        while True:
            walk = yield from self._walk(scope_key, field, cursor, moment.packed, most)
            for entry in walk.entries:
                if rebuilt.take(entry, moment):
                    if rebuilt.restored:
                        return (yield from self._restored(scope_key, key, entry, moment, default))
                    return (yield from rebuilt.value(default))
            if walk.ended == "trimmed":
                return (
                    yield from self._beyond(scope_key, key, stored, rebuilt, walk, moment, default)
                )
            if walk.ended == "end":
                if rebuilt.begun:
                    reason = "the log does not hold its first value"
                    raise HistoryUnavailableError(scope_key.scope.text, key, reason)
                yield from self._check_not_forgotten(scope_key, key, moment)
                return default
            cursor, most = walk.cursor, _AT_ONCE

    def _was_there(self, scope: ScopeKey, stored: StoredRecord, moment: Revision) -> Steps[bool]:
        """Whether a record surely lay there at a moment, if it has not changed since."""
        if stored.revision > moment or not stored.flags & RESTORED:
            return stored.revision <= moment
        # When a restore put it there, its revision does not say.
        raw = yield Command(pack(b"HGET", scope.hash, META_FIELD), "HGET")
        revision = unpack_meta(raw, scope.scope.text).revision
        return revision is not None and revision <= moment

    def _present(
        self, scope: ScopeKey, key: str, stored: StoredRecord, moment: Revision, default: Any
    ) -> Steps[tuple[bool, Any]]:
        """Return whether a record is still there, and the value that it had at a moment."""
        if 0 < stored.expires_ms <= moment.ms and stored.revision != moment:
            return True, default
        found = yield from self.reads.find(scope.scope, key)
        if found is None or found.stored.revision != stored.revision:
            return False, None
        return True, found.value

    def _beyond(
        self,
        scope: ScopeKey,
        key: str,
        stored: StoredRecord | None,
        rebuilt: _Rebuilt,
        walk: Walk,
        moment: Revision,
        default: Any,
    ) -> Steps[Any]:
        """Return the value at a moment if what the log no longer has does not matter."""
        restored = stored is not None and stored.flags & RESTORED and not rebuilt.begun
        # It was put back no later than the entry that is missing.
        if stored is not None and restored and Revision.parse(walk.cursor) <= moment:
            there, value = yield from self._present(scope, key, stored, moment, default)
            if there:
                return value
        reason = "the log no longer reaches back that far"
        raise HistoryUnavailableError(scope.scope.text, key, reason)

    def _restored(
        self, scope: ScopeKey, key: str, by: LogEntry, moment: Revision, default: Any
    ) -> Steps[Any]:
        """Return the value that a restore put there: the log does not hold it.

        It is there yet, or the first change after it tells whether there was one.
        """
        name, field = scope.scope.text, field_of(scope, key)
        raw = yield Command(pack(b"HGET", scope.hash, field), "HGET")
        newer = yield from self._first_after(scope, field, by.revision)
        if newer is None:
            if raw is None:
                return default
            stored = unpack_record(raw, name, key)
            if stored.flags & RESTORED:
                there, value = yield from self._present(scope, key, stored, moment, default)
                if there:
                    return value
        elif newer.op not in _OF_ALL_KEYS and newer.previous is None:
            return default
        raise HistoryUnavailableError(name, key, "the log does not hold what a restore put there")

    def _first_after(
        self, scope: ScopeKey, field: bytes, revision: Revision
    ) -> Steps[LoggedChange | None]:
        """Return the first change of a key after a revision."""
        name, first, cursor = field.decode(), None, b""
        while True:
            walk = yield from self._walk(scope, field, cursor, b"", _AT_ONCE)
            for entry in walk.entries:
                if entry.revision <= revision:
                    return first
                for logged in reversed(entry.changes):
                    if _concerns(logged, scope.scope.text, name):
                        first = logged
            if walk.ended != "more":
                return first
            cursor = walk.cursor

    def _check_not_forgotten(self, scope: ScopeKey, key: str, moment: Revision) -> Steps[None]:
        """Tell a key that was not there from one whose scope the sweeper has forgotten."""
        ctl = self.core.keyspace.ctl(self.core.keyspace.shard(scope.scope))
        forgotten = yield Command(pack(b"HGET", ctl, b"forgotten"), "HGET")
        if forgotten is not None and moment <= Revision.parse(forgotten):
            reason = "scopes were empty and forgotten since, and this may have been one of them"
            raise HistoryUnavailableError(scope.scope.text, key, reason)


class _Rebuilt:
    """A value put together from changes, taken newest first until one tells the rest."""

    def __init__(self, history: History, scope: ScopeKey, key: str) -> None:
        self.history = history
        self.scope = scope
        self.key = key
        self.begun = False
        self.restored = False
        """Whether a restore of the whole scope was last."""
        self._merges: list[LoggedChange] = []
        self._base: LoggedChange | None = None
        self._gone = False

    def take(self, entry: LogEntry, moment: Revision) -> bool:
        """Take the changes of an entry; True when nothing older is needed."""
        for logged in reversed(entry.changes):
            if not _concerns(logged, self.scope.scope.text, self.key):
                continue
            over = 0 < logged.expires_ms <= moment.ms and entry.revision != moment
            if over and not self.begun:
                self._gone = True
                return True
            if logged.op in _GONE:
                self._gone = not self.begun
                return True
            if logged.op == Op.RESTORED:
                if self.begun:
                    reason = "the log does not hold what a restore put there"
                    raise HistoryUnavailableError(self.scope.scope.text, self.key, reason)
                self.restored = True
                return True
            self.begun = True
            if logged.op == Op.TTL:
                continue
            if logged.payload is None:
                reason = "its state class keeps values out of the log"
                raise HistoryUnavailableError(self.scope.scope.text, self.key, reason)
            if logged.op != Op.MERGE:
                self._base = logged
                return True
            self._merges.append(logged)
            if logged.previous is None:
                return True
        return False

    def value(self, default: Any) -> Steps[Any]:
        """Return the value, once everything was taken."""
        if self._gone:
            return default
        base, history = self._base, self.history
        if base is not None and base.op in (Op.SET, Op.INCREMENT):
            value = history.decode(base, base.payload or b"")
        elif base is None:
            value = {}
        else:
            value = yield from self._elements(base)
        for logged in reversed(self._merges):
            fields, removed = history.merged(logged, _updated(logged.payload or b"").rest)
            value.update(fields)
            for field in removed:
                value.pop(field, None)
        return value

    def _elements(self, base: LoggedChange) -> Steps[Any]:
        """Return the value of an adopted generation, or of the part of a list that there was."""
        payload = base.payload or b""
        if base.op == Op.ADOPT:
            head = _adopted(payload)
            if head.rest:
                return self.history.decode_plain(base, head.rest)
        else:
            head = _updated(payload)
        if base.kind != Kind.MAP:
            place = Head(head.count, head.size or 64 * head.count, head.generation)
            elements = yield from self.history.reads.pages(self.scope, place, 0, head.count)
            if len(elements) == head.count:
                stored = _as_stored(base)
                return self.history.reads.join(stored, elements, self.scope, self.key)
        reason = "its elements were replaced, and the log does not hold them"
        raise HistoryUnavailableError(self.scope.scope.text, self.key, reason)


def _as_stored(logged: LoggedChange) -> StoredRecord:
    return StoredRecord(
        logged.kind,
        logged.state_class,
        logged.flags,
        logged.schema_version,
        Revision(0, 0),
        0,
        0,
        b"",
    )


def _concerns(logged: LoggedChange, scope: str, key: str) -> bool:
    return logged.scope == scope and (logged.key == key or logged.op in _OF_ALL_KEYS)


def _adopted(payload: bytes) -> Elements:
    """Return what an adopt frame says: generation, count, bytes, then perhaps the whole value."""
    length = payload[0]
    at = 1 + length
    return Elements(
        int.from_bytes(payload[at : at + 4], "big"),
        int.from_bytes(payload[at + 4 : at + 10], "big"),
        payload[1:at].decode(),
        payload[at + 10 :],
    )


def _updated(payload: bytes) -> Elements:
    """Return what an append or merge frame says: the count after it, generation, elements."""
    length = payload[4]
    count = int.from_bytes(payload[:4], "big")
    return Elements(count, 0, payload[5 : 5 + length].decode(), payload[5 + length :])


def _parts(framed: bytes, at: int, most: int = 2**32) -> tuple[list[bytes], int]:
    """Parts with a length of four bytes before each."""
    parts: list[bytes] = []
    while at < len(framed) and len(parts) < most:
        end = at + 4 + int.from_bytes(framed[at : at + 4], "big")
        parts.append(framed[at + 4 : end])
        at = end
    return parts, at


def moment_of(at: Revision | datetime) -> Revision:
    """Return the last revision that a moment includes."""
    if isinstance(at, Revision):
        return at
    if isinstance(at, datetime):
        milliseconds = to_ms(at)
        if milliseconds < 0:
            raise InvalidArgumentError("at", at, "must not be before 1970")
        return Revision(milliseconds, MAX_SEQ)
    raise InvalidArgumentError("at", at, "must be a Revision or an aware datetime")
