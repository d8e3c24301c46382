"""Transactions: reads are remembered with their revisions, writes wait, one commit decides.

The commit carries a condition for every key that was read. If one of them changed meanwhile,
nothing at all is written and a `ConflictError` names it (optimistic concurrency control). A later
change of a key in the same transaction is folded into the earlier one, so a commit names every key
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.codec import is_number
from llmspell_dist.errors import ClassChangedError, InvalidArgumentError, WrongKindError
from llmspell_dist.redis.commits import (
    Change,
    Condition,
    ConditionMode,
    change,
    condition,
)
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import Expiry, IfPresent, checked_keys, field_of
from llmspell_dist.state.large import INLINE_LIMIT
from llmspell_dist.state.writes import added, check_schema_version
from llmspell_dist.ttl import KEEP, ttl_ms
from llmspell_dist.typed import from_builtin

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.partial import Partial
    from llmspell_dist.state.reads import Found, Reads
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.values import Encoded
    from llmspell_dist.state.writes import Writes
    from llmspell_dist.ttl import TTL

__all__ = ["TransactionSteps"]


@dataclass(slots=True)
class _Pending:
    """What a transaction will do to one key."""

    op: Op
    value: Any = None
    """set: the encoded value; increment: the addend; append: the elements; merge: the fields."""
    removed: tuple[Any, ...] = ()
    ttl: Expiry = KEEP
    state_class: StateClass | None = None
    schema_version: int = 1


class _Large(NamedTuple):
    """A value that must be laid down before the commit that adopts it."""

    at: int
    """Its position among the changes."""
    place: _Place
    encoded: Encoded
    state_class: StateClass
    schema_version: int


_Place = tuple["ScopeKey", str]


class TransactionSteps:
    """One transaction, as steps: what was read, what is to be written."""

    def __init__(self, core: Core, reads: Reads, writes: Writes, partial: Partial) -> None:
        self.core = core
        self.reads = reads
        self.writes = writes
        self.partial = partial
        self.revision: Revision | None = None
        self.results: list[bytes] = []
        """What the server said of each change, once committed."""
        self.ack: Ack | None = None
        self.closed = False
        self._read: dict[_Place, Found | None] = {}
        self._expected: dict[_Place, Revision | None] = {}
        """The revision that each key must still have at the commit; None: it must be absent."""
        self._absent: set[_Place] = set()
        self._pending: dict[_Place, _Pending] = {}

    @property
    def size(self) -> int:
        """How many keys it changes."""
        return len(self._pending)

    def _place(self, scope: str | Scope, key: str) -> _Place:
        if self.closed:
            raise InvalidArgumentError("transaction", "ended", "must still be open")
        scope_key = self.core.scope_key(scope)
        return scope_key, field_of(scope_key, key).decode()

    # --- reading

    def get(self, scope: str | Scope, key: str, default: Any, as_type: type | None) -> Steps[Any]:
        """Return the value of a key as this transaction sees it."""
        place = self._place(scope, key)
        there, value = yield from self._current(place)
        if not there:
            return default
        return value if as_type is None else from_builtin(as_type, value)

    def get_many(self, scope: str | Scope, keys: Iterable[str]) -> Steps[dict[str, Any]]:
        """Return the values of those of the keys that have one."""
        self._check_open()
        scope_key = self.core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        unread = {
            key: field
            for key, field in fields.items()
            if (scope_key, field.decode()) not in self._read
        }
        found = yield from self.reads.find_many(scope_key, unread)
        for key in unread:
            self._remember(self._place(scope, key), found.get(key))
        values = {}
        for key in fields:
            there, value = yield from self._current(self._place(scope, key))
            if there:
                values[key] = value
        return values

    def _find(self, place: _Place) -> Steps[Found | None]:
        if place not in self._read:
            self._remember(place, (yield from self.reads.find(place[0].scope, place[1])))
        return self._read[place]

    def _remember(self, place: _Place, found: Found | None) -> None:
        """Note what was read, and that it must not change until the commit."""
        self._read[place] = found
        self._expected.setdefault(place, None if found is None else found.stored.revision)

    def expect(self, scope: str | Scope, key: str, revision: Revision | None) -> None:
        """Let the commit fail unless a key is at a revision that was read before, or absent."""
        if revision is not None and not isinstance(revision, Revision):
            rule = "must be a Revision, or None for a key that must be absent"
            raise InvalidArgumentError("revision", revision, rule)
        self._expected[self._place(scope, key)] = revision

    def _current(self, place: _Place) -> Steps[tuple[bool, Any]]:
        pending = self._pending.get(place)
        if pending is not None and pending.op == Op.SET:
            return True, self._decoded(place, pending)
        if pending is not None and pending.op == Op.DELETE:
            return False, None
        found = yield from self._find(place)
        if pending is None or pending.op == Op.TTL:
            return found is not None, None if found is None else found.value
        return True, self._applied(place, pending, found)

    def _decoded(self, place: _Place, pending: _Pending) -> Any:
        """Return a value that waits to be set as it will come back: an object of its own."""
        kind, flags, payload = pending.value
        scope, key = place
        return self.core.values.decode(kind, flags, payload, scope.scope.text, key)

    def _applied(self, place: _Place, pending: _Pending, found: Found | _Value | None) -> Any:
        """Return what a partial update will make of a value."""
        if pending.op == Op.INCREMENT:
            value = 0 if found is None else found.value
            _must_be(is_number(value), place, value, "increment")
            return added(place[0].scope.text, place[1], value, pending.value)
        if pending.op == Op.APPEND:
            value = [] if found is None else found.value
            _must_be(type(value) is list, place, value, "append")
            return [*value, *pending.value]
        value = {} if found is None else found.value
        _must_be(type(value) is dict, place, value, "merge")
        merged = {**value, **pending.value}
        for field in pending.removed:
            merged.pop(field, None)
        return merged

    # --- writing

    def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: TTL,
        state_class: StateClass | None,
        schema_version: int,
    ) -> None:
        """Set a key at the commit; a value that cannot be stored raises here."""
        place = self._place(scope, key)
        check_schema_version(schema_version)
        resolved = self.core.rules.resolve(place[0].scope, key, state_class)
        self.core.expiry(ttl, resolved)
        self._set(place, value, ttl, resolved, schema_version)

    def _set(
        self,
        place: _Place,
        value: Any,
        ttl: Expiry,
        state_class: StateClass,
        schema_version: int,
    ) -> None:
        scope, key = place
        encoded = self.core.values.encode(value, state_class, scope.scope.text, key)
        before = self._pending.get(place)
        if ttl is KEEP and before is not None:
            # After a delete the key begins anew, with no more than what its class gives it.
            fresh = BEHAVIOURS[state_class].default_ttl
            if before.op == Op.DELETE:
                ttl = fresh
            else:
                ttl = _after_expire(before) if before.op == Op.TTL else before.ttl
        self._pending[place] = _Pending(Op.SET, encoded, (), ttl, state_class, schema_version)

    def set_if_absent(
        self, scope: str | Scope, key: str, value: Any, ttl: TTL, state_class: StateClass | None
    ) -> None:
        """Set a key, and let the commit fail if it has a value by then."""
        place = self._place(scope, key)
        before = self._pending.get(place)
        self.set(scope, key, value, ttl, state_class, 1)
        if before is None or before.op != Op.DELETE:
            self._absent.add(place)

    def delete(self, scope: str | Scope, key: str) -> None:
        """Remove a key at the commit."""
        self._pending[self._place(scope, key)] = _Pending(Op.DELETE)

    def increment(self, scope: str | Scope, key: str, by: float, ttl: TTL) -> None:
        """Add to a number at the commit, without reading it."""
        place = self._place(scope, key)
        self.writes.increment_change(b"", by, ttl, StateClass.STANDARD)
        self._fold(place, _Pending(Op.INCREMENT, by, (), ttl))

    def append(self, scope: str | Scope, key: str, items: tuple[Any, ...], ttl: TTL) -> None:
        """Add elements to a list at the commit, without reading it."""
        place = self._place(scope, key)
        resolved = self.core.rules.resolve(place[0].scope, key, None)
        self.core.expiry(ttl, resolved)
        self.partial.elements(place[0], key, items, resolved)
        copies = tuple(map(self.core.values.as_stored, items))
        self._fold(place, _Pending(Op.APPEND, copies, (), ttl))

    def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        remove: Iterable[Any],
        ttl: TTL,
    ) -> None:
        """Set and remove fields of a map at the commit, without reading it."""
        place = self._place(scope, key)
        resolved = self.core.rules.resolve(place[0].scope, key, None)
        self.core.expiry(ttl, resolved)
        decode = self.core.values.codec.decode
        removed = tuple(map(decode, self.partial.removals(remove)))
        if not self.partial.fields(place[0], key, mapping, resolved) and not removed:
            raise InvalidArgumentError("mapping", mapping, "must set or remove at least one field")
        copies = {name: self.core.values.as_stored(value) for name, value in mapping.items()}
        self._fold(place, _Pending(Op.MERGE, copies, removed, ttl))

    def expire(self, scope: str | Scope, key: str, ttl: TTL) -> None:
        """Let a key end after a while, from the commit on; None: let it stay."""
        place = self._place(scope, key)
        if ttl is KEEP:
            raise InvalidArgumentError("ttl", ttl, "must be a time, or None to let the key stay")
        ttl_ms(ttl)
        before = self._pending.get(place)
        if before is None:
            self._pending[place] = _Pending(Op.TTL, ttl=ttl)
        elif before.op != Op.DELETE:
            before.ttl = ttl

    def _fold(self, place: _Place, later: _Pending) -> None:
        """Put a partial update behind what is already to be done to the key."""
        before = self._pending.get(place)
        if before is None:
            self._pending[place] = later
            return
        ttl = before.ttl if later.ttl is KEEP else later.ttl
        if before.op == Op.TTL:
            later.ttl = _after_expire(before) if later.ttl is KEEP else later.ttl
        elif before.op in (Op.SET, Op.DELETE):
            base = None if before.op == Op.DELETE else _Value(self._decoded(place, before))
            value = self._applied(place, later, base)
            state_class = self._class_of(place)
            self._set(place, value, later.ttl, state_class, before.schema_version)
            return
        elif before.op == later.op == Op.MERGE:
            fields = {name: v for name, v in before.value.items() if name not in later.removed}
            kept = [name for name in before.removed if name not in later.value]
            removed = tuple(dict.fromkeys((*kept, *later.removed)))
            later = _Pending(Op.MERGE, fields | later.value, removed, ttl)
        elif before.op == later.op == Op.APPEND:
            later = _Pending(Op.APPEND, (*before.value, *later.value), (), ttl)
        elif before.op == later.op == Op.INCREMENT:
            total = added(place[0].scope.text, place[1], before.value, later.value)
            later = _Pending(Op.INCREMENT, total, (), ttl)
        else:
            kind = before.op.name.lower()
            raise WrongKindError(place[0].scope.text, place[1], kind, later.op.name.lower())
        self._pending[place] = later

    # --- committing

    def commit(self) -> Steps[Revision | None]:
        """Carry everything out, or raise and change nothing."""
        self._check_open()
        self.closed = True
        scopes: dict[ScopeKey, int] = {}
        for scope, _ in (*self._pending, *self._expected, *self._absent):
            scopes.setdefault(scope, len(scopes))
        if not scopes:
            return None
        whole: dict[_Place, Found | None] = {}
        classes: dict[_Place, StateClass] = {}
        while True:
            for place, pending in self._pending.items():
                state_class = classes.setdefault(place, self._class_of(place))
                if pending.op == Op.INCREMENT and BEHAVIOURS[state_class].encrypt:
                    yield from self._read_whole(place, whole)
            changes = yield from self._changes(scopes, classes, whole)
            commit = self.core.commit(tuple(scopes), changes, self._conditions(scopes))
            ack = self.ack
            for state_class in classes.values():
                ack = ack or self.core.ack_for(state_class, None)
            try:
                done = yield from self.core.carry_out(commit, ack)
            except WrongKindError as wrong:
                # The value lies as a whole: this key is rewritten instead, under its revision.
                place = self._pending_place(wrong.scope, wrong.key)
                if place in whole or wrong.kind not in ("value", "blob"):
                    raise
                yield from self._read_whole(place, whole)
            except ClassChangedError as changed:
                place = self._pending_place(changed.scope, changed.key)
                classes[place] = StateClass(changed.state_class)
            else:
                self.revision, self.results = done.revision, done.results
                return done.revision

    def _read_whole(self, place: _Place, whole: dict[_Place, Found | None]) -> Steps[None]:
        """Read a value that is to be rewritten; it must not change until the commit.

        Read again even if the transaction did before: what it returned then the caller may have
        changed. The condition stays on the revision that was read first.
        """
        if place not in whole:
            whole[place] = yield from self.reads.find(place[0].scope, place[1])
            if place not in self._read:
                self._remember(place, whole[place])

    def _changes(
        self,
        scopes: Mapping[ScopeKey, int],
        classes: Mapping[_Place, StateClass],
        whole: Mapping[_Place, Found | None],
    ) -> Steps[list[Change]]:
        """Return the changes of all keys; what is large is laid down once all is checked."""
        changes: list[Change] = []
        large: list[_Large] = []
        for place, pending in self._pending.items():
            at = scopes[place[0]]
            built = self._build(place, pending, classes[place], at, len(changes), whole)
            if isinstance(built, _Large):
                large.append(built)
                built = change(Op.ADOPT, place[1].encode(), b"")
            changes.append(built)
        self.core.commit(tuple(scopes), changes, self._conditions(scopes))
        for one in large:
            scope, key = one.place
            changes[one.at] = yield from self.writes.large_change(
                scope,
                key.encode(),
                one.encoded,
                self._pending[one.place].ttl,
                one.state_class,
                one.schema_version,
                scopes[scope],
            )
        return changes

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidArgumentError("transaction", "ended", "must still be open")

    def _pending_place(self, scope: str, key: str) -> _Place:
        return next(
            place for place in self._pending if (place[0].scope.text, place[1]) == (scope, key)
        )

    def _class_of(self, place: _Place) -> StateClass:
        given = self._pending[place].state_class
        return self.core.rules.resolve(place[0].scope, place[1], given)

    def _conditions(self, scopes: Mapping[ScopeKey, int]) -> list[Condition]:
        conditions = []
        for place, revision in self._expected.items():
            scope, key = place
            if revision is None:
                one = condition(ConditionMode.ABSENT, key.encode(), scope=scopes[scope])
            else:
                one = condition(ConditionMode.REVISION, key.encode(), revision, scope=scopes[scope])
            conditions.append(one)
        conditions += [
            condition(ConditionMode.ABSENT, key.encode(), scope=scopes[scope])
            for scope, key in self._absent
        ]
        return conditions

    def _build(
        self,
        place: _Place,
        pending: _Pending,
        state_class: StateClass,
        at: int,
        position: int,
        whole: Mapping[_Place, Found | None],
    ) -> Change | _Large:
        """Return the change of one key."""
        (scope, key), op = place, pending.op
        field = key.encode()
        if op == Op.DELETE:
            return change(Op.DELETE, field, b"", scope=at)
        if op == Op.TTL:
            mode, milliseconds = self.core.expiry(pending.ttl, state_class)
            return change(Op.TTL, field, b"", ttl_mode=mode, ttl_ms=milliseconds, scope=at)
        schema_version = pending.schema_version
        if op == Op.SET:
            encoded: Encoded = pending.value
        elif place in whole:
            found = whole[place]
            value = self._applied(place, pending, found)
            if found is not None:
                state_class = StateClass(found.stored.state_class)
                schema_version = found.stored.schema_version
            encoded = self.core.values.encode(value, state_class, scope.scope.text, key)
        elif op == Op.INCREMENT:
            return self.writes.increment_change(field, pending.value, pending.ttl, state_class, at)
        else:
            return self._partial_change(place, pending, state_class, at)
        if len(encoded.payload) > INLINE_LIMIT:
            return _Large(position, place, encoded, state_class, schema_version)
        return self.core.set_change(at, field, encoded, pending.ttl, state_class, schema_version)

    def _partial_change(
        self, place: _Place, pending: _Pending, state_class: StateClass, at: int
    ) -> Change:
        (scope, key), field = place, place[1].encode()
        if pending.op == Op.APPEND:
            elements = self.partial.elements(scope, key, pending.value, state_class)
            return self.partial.append_change(field, elements, state_class, pending.ttl, at)
        fields = self.partial.fields(scope, key, pending.value, state_class)
        removed = self.partial.removals(pending.removed)
        return self.partial.merge_change(field, fields, removed, state_class, pending.ttl, at)


@dataclass(slots=True)
class _Value:
    """A value that only this transaction knows, in the place of one that was read."""

    value: Any


def _after_expire(before: _Pending) -> Expiry:
    """Return what an `expire` leaves to a write behind it: nothing, if there was no key."""
    milliseconds = None if isinstance(before.ttl, IfPresent) else ttl_ms(before.ttl)
    if milliseconds is None or milliseconds is KEEP:
        return before.ttl
    return IfPresent(milliseconds)


def _must_be(fits: bool, place: _Place, value: Any, operation: str) -> None:
    if not fits:
        kind = type(value).__name__
        raise WrongKindError(place[0].scope.text, place[1], kind, operation)
