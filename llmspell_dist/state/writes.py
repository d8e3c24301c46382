"""Writing: set, compare-and-set, delete, increment, expiry, batches, optimistic updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.codec import encode_number, is_number
from llmspell_dist.errors import (
    ClassChangedError,
    CodecError,
    ConflictError,
    InvalidArgumentError,
    InvalidTTLError,
    LimitError,
    NumberOverflowError,
    UpdateConflictError,
    WrongKindError,
)
from llmspell_dist.keys import scoped_field
from llmspell_dist.records import ENCRYPTED, Kind
from llmspell_dist.redis.commits import (
    Commit,
    ConditionMode,
    TTLMode,
    change,
    condition,
)
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import MAX_BATCH, Expiry, IfPresent, checked_keys, field_of
from llmspell_dist.state.large import INLINE_LIMIT, pieces_of
from llmspell_dist.state.staging import adopt, stage
from llmspell_dist.state.steps import Call, Pause
from llmspell_dist.ttl import KEEP, ttl_ms

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.redis.commits import Change, Condition, ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Found, Reads
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.values import Encoded

__all__ = ["ANY", "Writes"]


class _Any:
    """The type of `ANY`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = _Any()
"""No condition on the revision."""

_INT64_MAX: Final = 2**63 - 1


class Writes:
    """The writing operations, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads

    # --- one key

    def prepare_set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
    ) -> Commit | Steps[Revision]:
        """Return what sets a key: nearly always one commit that waits for nothing, else steps."""
        core = self.core
        scope_key = core.scope_key(scope)
        field = scoped_field(scope_key.scope, key)
        resolved = core.rules.resolve(scope_key.scope, key, state_class)
        encoded = core.values.encode(value, resolved, scope_key.scope.text, key)
        check_schema_version(schema_version)
        if (
            ack is not None
            or len(encoded.payload) > INLINE_LIMIT
            or BEHAVIOURS[resolved].durable_ack
        ):
            return self._store(scope_key, field, encoded, ttl, resolved, schema_version, ack, None)
        one = core.set_change(0, field, encoded, ttl, resolved, schema_version)
        return Commit.of_one(scope_key, one, core.meta((scope_key,)), core.fences_for(scope_key))

    def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
        guard: tuple[int, Revision | None] | None = None,
    ) -> Steps[Revision]:
        """Set a key, under a condition (mode and revision) if one is given."""
        core = self.core
        scope_key = core.scope_key(scope)
        field = field_of(scope_key, key)
        resolved = core.rules.resolve(scope_key.scope, key, state_class)
        encoded = core.values.encode(value, resolved, scope_key.scope.text, key)
        check_schema_version(schema_version)
        return (
            yield from self._store(
                scope_key, field, encoded, ttl, resolved, schema_version, ack, guard
            )
        )

    def _store(
        self,
        scope_key: ScopeKey,
        field: bytes,
        encoded: Encoded,
        ttl: Expiry,
        resolved: StateClass,
        schema_version: int,
        ack: Ack | None,
        guard: tuple[int, Revision | None] | None,
    ) -> Steps[Revision]:
        """Set a key to an encoded value."""
        core = self.core
        if len(encoded.payload) <= INLINE_LIMIT:
            one = core.set_change(0, field, encoded, ttl, resolved, schema_version)
        else:
            one = yield from self.large_change(
                scope_key, field, encoded, ttl, resolved, schema_version
            )
        conditions: tuple[Condition, ...] = ()
        if guard is not None:
            conditions = (condition(guard[0], field, guard[1]),)
        commit = core.commit((scope_key,), (one,), conditions)
        done = yield from core.carry_out(commit, core.ack_for(resolved, ack))
        return _revision(done.revision)

    def large_change(
        self,
        scope: ScopeKey,
        field: bytes,
        encoded: Encoded,
        ttl: Expiry,
        state_class: StateClass,
        schema_version: int,
        place: int = 0,
    ) -> Steps[Change]:
        """Lay a large value down and describe the change that adopts it."""
        mode, milliseconds = self.core.expiry(ttl, state_class)
        staged = yield from stage(self.core, scope, Kind.BLOB, pieces_of(encoded.payload))
        return adopt(
            staged,
            field,
            state_class=state_class,
            flags=encoded.flags,
            schema_version=schema_version,
            ttl_mode=mode,
            ttl_ms=milliseconds,
            scope=place,
        )

    def set_if_absent(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
    ) -> Steps[Revision | None]:
        """Set a key that has no value; None if it has one."""
        guard = (ConditionMode.ABSENT, None)
        try:
            return (
                yield from self.set(scope, key, value, ttl, state_class, schema_version, ack, guard)
            )
        except ConflictError:
            return None

    def compare_and_set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        expected: Revision | None,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
    ) -> Steps[Revision]:
        """Set a key if it is still at a revision, or (None) still absent."""
        guard = _guard(expected)
        return (
            yield from self.set(scope, key, value, ttl, state_class, schema_version, ack, guard)
        )

    def delete(
        self,
        scope: str | Scope,
        key: str,
        expected: Revision | _Any | None,
        ack: Ack | None,
    ) -> Steps[bool]:
        """Remove a key; whether it was there."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        conditions: tuple[Condition, ...] = ()
        if not isinstance(expected, _Any):
            mode, revision = _guard(expected)
            conditions = (condition(mode, field, revision),)
        commit = self.core.commit((scope_key,), (change(Op.DELETE, field, b""),), conditions)
        state_class = self.core.rules.resolve(scope_key.scope, key)
        done = yield from self.core.carry_out(commit, self.core.ack_for(state_class, ack))
        return done.results == [b"1"]

    def increment(
        self,
        scope: str | Scope,
        key: str,
        by: float,
        ttl: Expiry,
        state_class: StateClass | None,
        ack: Ack | None,
    ) -> Steps[int | float]:
        """Add to a number on the server; the new number."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        while True:
            one = self.increment_change(field, by, ttl, resolved)
            if BEHAVIOURS[resolved].encrypt:
                break
            commit = self.core.commit((scope_key,), (one,))
            try:
                done = yield from self.core.carry_out(commit, self.core.ack_for(resolved, ack))
            except ClassChangedError as changed:
                resolved = StateClass(changed.state_class)
            except WrongKindError as wrong:
                if wrong.kind != "value":
                    raise
                found = yield from self.reads.find(scope, key)
                if found is not None and not found.stored.flags & ENCRYPTED:
                    raise
                break
            else:
                return read_number(done.results[0])

        # The server cannot add to what it cannot read.
        def add(value: Any) -> int | float:
            if not is_number(value):
                kind = type(value).__name__
                raise WrongKindError(scope_key.scope.text, key, kind, "increment")
            return added(scope_key.scope.text, key, value, by)

        total: int | float = yield from self.update(scope, key, add, 0, 64, ttl, ack, state_class)
        return total

    def increment_change(
        self, field: bytes, by: float, ttl: Expiry, state_class: StateClass, place: int = 0
    ) -> Change:
        """Return the change that adds to a number."""
        if not is_number(by):
            rule = "must be an int from -2**63 to 2**63-1 or a finite float"
            raise InvalidArgumentError("by", by, rule)
        mode, milliseconds = self.core.expiry(ttl, state_class)
        return change(
            Op.INCREMENT,
            field,
            encode_number(by),
            kind=Kind.NUMBER,
            state_class=state_class,
            ttl_mode=mode,
            ttl_ms=milliseconds,
            scope=place,
        )

    def expire(self, scope: str | Scope, key: str, ttl: Expiry) -> Steps[bool]:
        """Let a key end after a while; whether it was there."""
        milliseconds = None if isinstance(ttl, IfPresent) else ttl_ms(ttl)
        if milliseconds is None or milliseconds is KEEP:
            raise InvalidTTLError("ttl", ttl, "must be a time; use persist() to remove it")
        return (yield from self._change_ttl(scope, key, TTLMode.SET, milliseconds))

    def persist(self, scope: str | Scope, key: str) -> Steps[bool]:
        """Let a key stay; whether it had an expiry."""
        return (yield from self._change_ttl(scope, key, TTLMode.DROP, 0))

    def _change_ttl(
        self, scope: str | Scope, key: str, mode: TTLMode, milliseconds: int
    ) -> Steps[bool]:
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        one = change(Op.TTL, field, b"", ttl_mode=mode, ttl_ms=milliseconds)
        commit = self.core.commit((scope_key,), (one,))
        state_class = self.core.rules.resolve(scope_key.scope, key)
        done = yield from self.core.carry_out(commit, self.core.ack_for(state_class, None))
        return done.results == [b"1"]

    # --- many keys

    def set_many(
        self,
        scope: str | Scope,
        mapping: Mapping[str, Any],
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
    ) -> Steps[Revision]:
        """Set up to 1,000 keys, all or none."""
        core = self.core
        check_mapping(mapping)
        check_schema_version(schema_version)
        scope_key = core.scope_key(scope)
        name, encode, resolve = scope_key.scope.text, core.values.encode, core.rules.resolve
        changes: dict[bytes, Change] = {}
        large: list[tuple[bytes, Encoded, StateClass]] = []
        durable = None
        for key, value in mapping.items():
            field = field_of(scope_key, key)
            if field in changes:
                raise InvalidArgumentError("mapping", key, "must not name one key twice")
            resolved = resolve(scope_key.scope, key, state_class)
            try:
                encoded = encode(value, resolved, name, key)
            except (CodecError, LimitError) as error:
                raise error.inside(f".{key}") from None
            durable = durable or core.ack_for(resolved, ack)
            if len(encoded.payload) <= INLINE_LIMIT:
                changes[field] = core.set_change(0, field, encoded, ttl, resolved, schema_version)
            else:
                changes[field] = change(Op.ADOPT, field, b"")
                large.append((field, encoded, resolved))
        commit = core.commit((scope_key,), tuple(changes.values()))
        for field, encoded, resolved in large:
            changes[field] = yield from self.large_change(
                scope_key, field, encoded, ttl, resolved, schema_version
            )
        if large:
            commit = core.commit((scope_key,), tuple(changes.values()))
        done = yield from core.carry_out(commit, durable)
        return _revision(done.revision)

    def delete_many(self, scope: str | Scope, keys: Iterable[str], ack: Ack | None) -> Steps[int]:
        """Remove up to 1,000 keys in one step; how many were there."""
        scope_key = self.core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        if not fields:
            return 0
        changes = [change(Op.DELETE, field, b"") for field in dict.fromkeys(fields.values())]
        for key in fields:
            ack = self.core.ack_for(self.core.rules.resolve(scope_key.scope, key), ack)
        done = yield from self.core.carry_out(self.core.commit((scope_key,), changes), ack)
        return done.results.count(b"1")

    # --- read, change, write

    def update(
        self,
        scope: str | Scope,
        key: str,
        function: Callable[[Any], Any],
        default: Any,
        attempts: int,
        ttl: Expiry,
        ack: Ack | None,
        state_class: StateClass | None = None,
    ) -> Steps[Any]:
        """Replace a value by what a function makes of it, again if another was faster."""
        if not callable(function):
            raise InvalidArgumentError("function", function, "must be callable")
        if type(attempts) is not int or attempts < 1:
            raise InvalidArgumentError("attempts", attempts, "must be an int of at least 1")
        started = monotonic()
        backoff = Backoff(first_s=0.002, max_s=0.25)
        for attempt in range(1, attempts + 1):
            found: Found | None = yield from self.reads.find(scope, key)
            value = yield Call(function, (default if found is None else found.value,))
            try:
                yield from self.set(
                    scope,
                    key,
                    value,
                    ttl,
                    state_class if found is None else _class_of(found),
                    1 if found is None else found.stored.schema_version,
                    ack,
                    _guard(None if found is None else found.stored.revision),
                )
            except ConflictError as conflict:
                if attempt == attempts:
                    raise UpdateConflictError(
                        conflict.expected,
                        conflict.actual,
                        conflict.keys,
                        attempts=attempts,
                        elapsed_s=monotonic() - started,
                    ) from None
                yield Pause(backoff.next_s())
            else:
                return value
        return None  # not reached: the last attempt returns or raises


def _class_of(found: Found) -> StateClass:
    return StateClass(found.stored.state_class)


def _guard(expected: Revision | None) -> tuple[int, Revision | None]:
    if expected is None:
        return ConditionMode.ABSENT, None
    if not isinstance(expected, Revision):
        rule = "must be a Revision, or None for a key that must be absent"
        raise InvalidArgumentError("expected", expected, rule)
    return ConditionMode.REVISION, expected


def _revision(revision: Revision | None) -> Revision:
    assert revision is not None, "a set always changes something"  # noqa: S101
    return revision


def added(scope: str, key: str, number: float, by: float) -> int | float:
    """Return the sum of two numbers, as the server would have it."""
    total = number + by
    if not is_number(total):
        raise NumberOverflowError("number after increment", None, _INT64_MAX, f"{scope} {key}")
    return total


def read_number(text: bytes) -> int | float:
    """Return a number as the script returns it."""
    return int(text) if text.lstrip(b"-").isdigit() else float(text)


def check_mapping(mapping: object) -> None:
    """Refuse what is no batch of keys to set."""
    if not isinstance(mapping, Mapping):
        raise InvalidArgumentError("mapping", mapping, "must be a mapping of keys to values")
    if not mapping:
        raise InvalidArgumentError("mapping", mapping, "must have at least one key")
    if len(mapping) > MAX_BATCH:
        raise LimitError("keys in one call", len(mapping), MAX_BATCH)


def check_schema_version(version: int) -> None:
    """Refuse what two bytes of a record cannot hold."""
    if type(version) is not int or not 0 <= version < 65_536:
        raise InvalidArgumentError("schema_version", version, "must be an int from 0 to 65,535")
