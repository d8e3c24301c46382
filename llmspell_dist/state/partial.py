"""Partial updates: `append` and `merge` send and rewrite only what is new.

The elements of a list or map that has been appended to or merged into lie one by one beside the
record. A plain value that was `set` is converted by the first partial update, under
compare-and-set; from then on the cost no longer depends on the size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from llmspell_dist.backoff import Backoff
from llmspell_dist.changes import Op
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import (
    ClassChangedError,
    CodecError,
    ConflictError,
    InvalidArgumentError,
    LimitError,
    WrongKindError,
)
from llmspell_dist.records import Kind
from llmspell_dist.redis.commits import (
    Change,
    Condition,
    ConditionMode,
    change,
    condition,
)
from llmspell_dist.state.core import Expiry, field_of
from llmspell_dist.state.staging import LOGGED_LIMIT, adopt, stage
from llmspell_dist.state.steps import Pause

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import Commit, ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Found, Reads
    from llmspell_dist.state.steps import Steps

__all__ = ["Partial"]

_CONVERSIONS: Final = 16
MAX_ELEMENTS: Final = 10_000


_FIELD_TYPES: Final = frozenset({str, int, bytes, UUID, date, type(None)})
"""Types of a merged map's fields. To Python 1, 1.0, True and Decimal(1) are one field, and so are
datetimes of one moment in two zones; on the server each would be one of its own."""


class Partial:
    """The partial updates, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads

    # --- building

    def elements(
        self, scope: ScopeKey, key: str, items: Sequence[Any], state_class: StateClass
    ) -> list[bytes]:
        """Encode what is to be appended."""
        if not items:
            raise InvalidArgumentError("items", items, "must be at least one")
        if len(items) > MAX_ELEMENTS:
            rule = f"must be at most {MAX_ELEMENTS:,} in one call"
            raise InvalidArgumentError("items", len(items), rule)
        encode, name = self.core.values.encode_element, scope.scope.text
        elements: list[bytes] = []
        try:
            for item in items:
                elements.append(encode(item, state_class, name, key))  # noqa: PERF401 - counted
        except (CodecError, LimitError) as error:
            raise error.inside(f"[{len(elements)}]") from None
        return elements

    def fields(
        self, scope: ScopeKey, key: str, mapping: Mapping[Any, Any], state_class: StateClass
    ) -> dict[bytes, bytes]:
        """Encode what is to be merged."""
        if not isinstance(mapping, Mapping):
            raise InvalidArgumentError("mapping", mapping, "must be a mapping")
        if len(mapping) > MAX_ELEMENTS:
            rule = f"must be at most {MAX_ELEMENTS:,} fields in one call"
            raise InvalidArgumentError("mapping", len(mapping), rule)
        return self._encoded(scope, key, mapping, state_class)

    def _encoded(
        self, scope: ScopeKey, key: str, mapping: Mapping[Any, Any], state_class: StateClass
    ) -> dict[bytes, bytes]:
        encode, name = self.core.values.encode_element, scope.scope.text
        fields: dict[bytes, bytes] = {}
        for field, value in mapping.items():
            try:
                fields[self._field(field)] = encode(value, state_class, name, key)
            except (CodecError, LimitError) as error:
                raise error.inside(f".{field}" if type(field) is str else f"[{field!r}]") from None
        return fields

    def _field(self, field: Any) -> bytes:
        """Encode the name of a field; of equal names there must be one form only."""
        if type(field) not in _FIELD_TYPES:
            rule = "must have fields that are str, int, bytes, UUID, date or None"
            raise InvalidArgumentError("mapping", field, rule)
        return self.core.values.codec.encode(field)

    def removals(self, removed: Iterable[Any]) -> list[bytes]:
        """Encode the names of fields to be removed, each once."""
        if isinstance(removed, (str, bytes)) or not isinstance(removed, Iterable):
            raise InvalidArgumentError("remove", removed, "must be several fields, not one text")
        encode = self._field
        fields = list(dict.fromkeys([encode(name) for name in removed]))
        if len(fields) > MAX_ELEMENTS:
            rule = f"must be at most {MAX_ELEMENTS:,} fields in one call"
            raise InvalidArgumentError("remove", len(fields), rule)
        return fields

    def append_change(
        self,
        field: bytes,
        elements: Sequence[bytes],
        state_class: StateClass,
        ttl: Expiry,
        scope: int = 0,
    ) -> Change:
        """Return the change that appends encoded elements."""
        framed = b"".join([len(part).to_bytes(4, "big") + part for part in elements])
        return self._change(Op.APPEND, Kind.LIST, field, framed, state_class, ttl, scope)

    def merge_change(
        self,
        field: bytes,
        fields: Mapping[bytes, bytes],
        removed: Sequence[bytes],
        state_class: StateClass,
        ttl: Expiry,
        scope: int = 0,
    ) -> Change:
        """Return the change that merges encoded fields; one that is removed as well is removed."""
        gone = frozenset(removed)
        kept = {name: value for name, value in fields.items() if name not in gone}
        parts = [len(kept).to_bytes(2, "big")]
        for pair in kept.items():
            parts += [len(part).to_bytes(4, "big") + part for part in pair]
        parts.append(len(removed).to_bytes(2, "big"))
        parts += [len(part).to_bytes(4, "big") + part for part in removed]
        return self._change(Op.MERGE, Kind.MAP, field, b"".join(parts), state_class, ttl, scope)

    def generation_of(self, one: Change) -> str:
        """Return where the elements lie if an append or merge begins its list or map."""
        return one.payload[1 : 1 + one.payload[0]].decode()

    def _change(
        self,
        op: Op,
        kind: Kind,
        field: bytes,
        framed: bytes,
        state_class: StateClass,
        ttl: Expiry,
        scope: int,
    ) -> Change:
        generation = self.core.new_generation()
        mode, milliseconds = self.core.expiry(ttl, state_class)
        payload = bytes((len(generation),)) + generation + framed
        return change(
            op,
            field,
            payload,
            kind=kind,
            state_class=state_class,
            ttl_mode=mode,
            ttl_ms=milliseconds,
            scope=scope,
        )

    # --- carrying out

    def append(
        self,
        scope: str | Scope,
        key: str,
        items: Sequence[Any],
        ttl: Expiry,
        state_class: StateClass | None,
    ) -> Steps[int]:
        """Add elements to the end of a list; the new length."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        backoff = Backoff()
        for _ in range(_CONVERSIONS):
            elements = self.elements(scope_key, key, items, resolved)
            one = self.append_change(field, elements, resolved, ttl)
            commit = self.core.commit((scope_key,), (one,))
            length = yield from self._attempt(commit, resolved)
            if isinstance(length, int):
                return length
            if isinstance(length, ClassChangedError):
                resolved = StateClass(length.state_class)
                continue
            try:
                found = yield from self.reads.find(scope, key)
                if found is None or found.stored.kind == Kind.LIST:
                    continue
                changed, guard = yield from self.converted_list(
                    scope_key, key, field, found, items, ttl
                )
                commit = self.core.commit((scope_key,), (changed,), (guard,))
                yield from self._convert(commit, found)
                return len(found.value) + len(items)
            except ConflictError:
                yield Pause(backoff.next_s())
        raise ConflictError(None, None, [(scope_key.scope.text, key, None, None)])

    def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        removed: Iterable[Any],
        ttl: Expiry,
        state_class: StateClass | None,
    ) -> Steps[int]:
        """Set and remove some fields of a map; how many it has then."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        gone = self.removals(removed)
        if not mapping and not gone:
            raise InvalidArgumentError("mapping", mapping, "must set or remove at least one field")
        backoff = Backoff()
        for _ in range(_CONVERSIONS):
            fields = self.fields(scope_key, key, mapping, resolved)
            one = self.merge_change(field, fields, gone, resolved, ttl)
            commit = self.core.commit((scope_key,), (one,))
            count = yield from self._attempt(commit, resolved)
            if isinstance(count, int):
                return count
            if isinstance(count, ClassChangedError):
                resolved = StateClass(count.state_class)
                continue
            try:
                found = yield from self.reads.find(scope, key)
                if found is None or found.stored.kind == Kind.MAP:
                    continue
                changed, guard, size = yield from self.converted_map(
                    scope_key, key, field, found, mapping, gone, ttl
                )
                commit = self.core.commit((scope_key,), (changed,), (guard,))
                yield from self._convert(commit, found)
                return size  # noqa: TRY300 - the loop goes on after a conflict
            except ConflictError:
                yield Pause(backoff.next_s())
        raise ConflictError(None, None, [(scope_key.scope.text, key, None, None)])

    def _attempt(
        self, commit: Commit, state_class: StateClass
    ) -> Steps[int | ClassChangedError | WrongKindError]:
        """Carry out, or say why it needs another form: the class differs, the value is whole."""
        try:
            done = yield from self.core.carry_out(commit, self.core.ack_for(state_class, None))
        except ClassChangedError as changed:
            return changed
        except WrongKindError as wrong:
            if wrong.kind not in ("value", "blob"):
                raise
            return wrong
        return int(done.results[0])

    def _convert(self, commit: Commit, found: Found) -> Steps[None]:
        state_class = StateClass(found.stored.state_class)
        yield from self.core.carry_out(commit, self.core.ack_for(state_class, None))

    def converted_list(
        self,
        scope: ScopeKey,
        key: str,
        field: bytes,
        found: Found,
        added: Sequence[Any],
        ttl: Expiry,
    ) -> Steps[tuple[Change, Condition]]:
        """Return the change that turns a list that was set whole into elements, and adds to it.

        Old and new elements alike are encoded as the class of the record wants it.
        """
        if type(found.value) is not list:
            raise WrongKindError(scope.scope.text, key, type(found.value).__name__, "append")
        state_class = StateClass(found.stored.state_class)
        encode, name = self.core.values.encode_element, scope.scope.text
        elements = [encode(item, state_class, name, key) for item in (*found.value, *added)]
        staged = yield from stage(self.core, scope, Kind.LIST, elements)
        header = b"\xdd" + staged.count.to_bytes(4, "big")
        whole = b"".join((header, *elements))
        return self._adoption(staged, field, found, whole, state_class, ttl)

    def converted_map(
        self,
        scope: ScopeKey,
        key: str,
        field: bytes,
        found: Found,
        mapping: Mapping[Any, Any],
        removed: Sequence[bytes],
        ttl: Expiry,
    ) -> Steps[tuple[Change, Condition, int]]:
        """Return the change that turns a dict that was set whole into fields, and merges."""
        if type(found.value) is not dict:
            raise WrongKindError(scope.scope.text, key, type(found.value).__name__, "merge")
        state_class = StateClass(found.stored.state_class)
        merged = self._encoded(scope, key, {**found.value, **mapping}, state_class)
        for name in removed:
            merged.pop(name, None)
        staged = yield from stage(self.core, scope, Kind.MAP, merged)
        header = b"\xdf" + staged.count.to_bytes(4, "big")
        whole = header + b"".join(part for pair in merged.items() for part in pair)
        changed, guard = self._adoption(staged, field, found, whole, state_class, ttl)
        return changed, guard, len(merged)

    def _adoption(
        self,
        staged: Any,
        field: bytes,
        found: Found,
        whole: bytes,
        state_class: StateClass,
        ttl: Expiry,
    ) -> tuple[Change, Condition]:
        mode, milliseconds = self.core.expiry(ttl, state_class)
        logged = (
            whole if len(whole) <= LOGGED_LIMIT and state_class != StateClass.SENSITIVE else b""
        )
        changed = adopt(
            staged,
            field,
            state_class=state_class,
            schema_version=found.stored.schema_version,
            ttl_mode=mode,
            ttl_ms=milliseconds,
            logged=logged,
        )
        guard = condition(ConditionMode.REVISION, field, found.stored.revision)
        return changed, guard
