"""Reading: single values, batches, whole scopes; expiry is judged by the server's clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.classes import StateClass
from llmspell_dist.clock import Liveness
from llmspell_dist.errors import (
    CodecError,
    CorruptRecordError,
    InvalidArgumentError,
    LimitError,
    WrongKindError,
)
from llmspell_dist.keys import scoped_field
from llmspell_dist.records import (
    CODEC_FLAGS,
    ENCRYPTED,
    FORMAT,
    MIN_HEADER,
    Head,
    Kind,
    ScopeMeta,
    StoredRecord,
    unpack_head,
    unpack_meta,
    unpack_record,
)
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import BEGINNING, from_ms
from llmspell_dist.state.core import checked_keys, field_of
from llmspell_dist.state.large import NOT_LARGE, Collector
from llmspell_dist.state.model import Record, ScopeStat, Snapshot
from llmspell_dist.typed import from_builtin

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["Reads"]

INLINE_BYTES: Final = 1024 * 1024
"""Elements up to this come with the record in one round trip; more are fetched page by page."""
PAGE_BYTES: Final = 256 * 1024
ALL_KEYS, ALL_BYTES = 1000, 1024 * 1024
"""Most keys and bytes of a scope that `get_all` reads in one go."""
_RESTARTS: Final = 5
_PIECES: Final = 4

_VALUE, _NUMBER = int(Kind.VALUE), int(Kind.NUMBER)
_CLASSES: Final = {int(one): one for one in StateClass}
_KIND_NAMES: Final = {int(kind): kind.name.lower() for kind in Kind}
_LIST, _MAP, _BLOB = int(Kind.LIST), int(Kind.MAP), int(Kind.BLOB)


NOT_PLAIN: Final = object()
"""What `Reads.plain` gives for a record that needs a closer look."""


class Found(NamedTuple):
    """A live record with its decoded value."""

    stored: StoredRecord
    value: Any


class Reads:
    """The reading operations, as steps."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._decode_value = core.values.codec.decode

    # --- one key

    def get_request(self, scope: str | Scope, key: str) -> bytes:
        """Return the request whose reply `plain` or `get` read."""
        scope_key = self.core.scope_key(scope)
        field = scoped_field(scope_key.scope, key)
        return b"%b$%d\r\n%b\r\n" % (scope_key.hget, len(field), field)

    def plain(self, raw: bytes) -> Any:
        """Return the value of a record that is all there and cannot have expired, else `NOT_PLAIN`.

        This is what nearly every read comes to; `get` does the rest, errors included.
        """
        if len(raw) > MIN_HEADER and raw[0] == FORMAT and raw[1] >> 4 == _VALUE and raw[2] <= 1:
            try:
                return self._decode_value(raw[21 if raw[2] else MIN_HEADER :])
            except (CodecError, LimitError):
                return NOT_PLAIN
        return NOT_PLAIN

    def get(
        self, scope: str | Scope, key: str, raw: bytes | None, default: Any, as_type: type | None
    ) -> Steps[Any]:
        """Return the value of a key of which a plain read gave `raw`, or the default."""
        scope_key = self.core.scope_key(scope)
        found = yield from self.judge(scope_key, key, field_of(scope_key, key), raw)
        if found is None:
            return default
        return found.value if as_type is None else from_builtin(as_type, found.value)

    def get_record(
        self, scope: str | Scope, key: str, as_type: type | None
    ) -> Steps[Record | None]:
        """Return the value of a key with all that is known about it."""
        found = yield from self.find(scope, key)
        return None if found is None else self.record(scope, key, found, as_type)

    def record_of(
        self, scope: str | Scope, key: str, raw: bytes, as_type: type | None
    ) -> Steps[Record | None]:
        """As `get_record`, of a key of which a plain read gave `raw`."""
        scope_key = self.core.scope_key(scope)
        found = yield from self.judge(scope_key, key, field_of(scope_key, key), raw)
        return None if found is None else self.record(scope, key, found, as_type)

    def find(self, scope: str | Scope, key: str) -> Steps[Found | None]:
        """Return the live record of a key."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        raw = yield Command(pack(b"HGET", scope_key.hash, field), "HGET")
        return (yield from self.judge(scope_key, key, field, raw))

    def judge(
        self, scope: ScopeKey, key: str, field: bytes, raw: bytes | None
    ) -> Steps[Found | None]:
        """Decode what a plain read gave; ask the server where that cannot be enough."""
        if raw is None:
            return None
        stored = unpack_record(raw, scope.scope.text, key)
        if stored.expires_ms:
            liveness = self.core.clock.compare(stored.expires_ms)
            if liveness is Liveness.EXPIRED:
                return None
            if liveness is Liveness.UNSURE:
                return (yield from self._ask(scope, key, field, bulk=False))
        if stored.kind <= _NUMBER:
            return Found(stored, self._decode(stored, scope, key))
        return (yield from self._ask(scope, key, field))

    def _ask(
        self, scope: ScopeKey, key: str, field: bytes, *, bulk: bool = True
    ) -> Steps[Found | None]:
        """Read a record, its elements and the server's clock in one step."""
        most_bytes = INLINE_BYTES if bulk else PAGE_BYTES
        for _ in range(_RESTARTS):
            call = self.core.read_call(scope, (field,), most_bytes=most_bytes, bulk=bulk)
            _, _, raw, elements = yield call
            if raw is None:
                return None
            stored = unpack_record(raw, scope.scope.text, key)
            found = yield from self._assemble(stored, elements, scope, key)
            if found is not None:
                return found
        reason = "its elements are not there"
        raise CorruptRecordError(scope.scope.text, key, reason)

    def _assemble(
        self, stored: StoredRecord, elements: list[bytes] | None, scope: ScopeKey, key: str
    ) -> Steps[Found | None]:
        """Put a value together from record and elements; None if they were replaced meanwhile."""
        if stored.kind <= _NUMBER:
            return Found(stored, self._decode(stored, scope, key))
        head = unpack_head(stored.payload, scope.scope.text, key)
        if elements is None:
            if stored.kind == _MAP:
                field = field_of(scope, key)
                call = self.core.read_call(scope, (field,), most_bytes=2**52, bulk=True)
                _, _, raw, elements = yield call
                if raw is None or elements is None:
                    return None
                stored = unpack_record(raw, scope.scope.text, key)
                head = unpack_head(stored.payload, scope.scope.text, key)
            else:
                if stored.kind == _BLOB and not stored.flags & CODEC_FLAGS:
                    return (yield from self._collect(stored, head, scope, key))
                elements = yield from self.pages(scope, head, 0, head.count)
        if len(elements) != (2 * head.count if stored.kind == _MAP else head.count):
            return None
        return Found(stored, self.join(stored, elements, scope, key))

    def _collect(
        self, stored: StoredRecord, head: Head, scope: ScopeKey, key: str
    ) -> Steps[Found | None]:
        """Put a large value together as its pieces arrive; None if they were replaced meanwhile."""
        collector = Collector()
        for start in range(0, head.count, _PIECES):
            stop = min(start + _PIECES, head.count)
            for piece in (yield from self.pages(scope, head, start, stop)):
                collector.add(piece)
        if collector.count != head.count:
            return None
        try:
            value = collector.value()
        except UnicodeDecodeError:
            raise CorruptRecordError(scope.scope.text, key, "its text is not UTF-8") from None
        if value is NOT_LARGE:
            payload = collector.payload()
            value = self.core.values.decode(_VALUE, 0, payload, scope.scope.text, key)
        return Found(stored, value)

    def pages(self, scope: ScopeKey, head: Head, start: int, stop: int) -> Steps[list[bytes]]:
        """Read elements of a list or chunks of a large value; they never change."""
        generation = self.core.keyspace.generation(scope.scope, head.generation)
        step = max(1, PAGE_BYTES * head.count // max(1, head.size))
        elements: list[bytes] = []
        while start < stop:
            last = min(start + step, stop) - 1
            request = pack(b"LRANGE", generation, start, last)
            page = yield Command(request, "LRANGE", bulk=True)
            elements += page
            if len(page) != last - start + 1:
                break
            start = last + 1
        return elements

    def join(
        self, stored: StoredRecord, elements: Sequence[bytes], scope: ScopeKey, key: str
    ) -> Any:
        """Put a value together from all its elements."""
        name = scope.scope.text
        values = self.core.values
        if stored.kind == _BLOB:
            return values.decode(_VALUE, stored.flags, b"".join(elements), name, key)
        if stored.state_class == StateClass.SENSITIVE:
            elements = [
                values.plain(ENCRYPTED, element, name, key)
                if stored.kind == _LIST or place % 2
                else element
                for place, element in enumerate(elements)
            ]
        if stored.kind == _LIST:
            header = b"\xdd" + len(elements).to_bytes(4, "big")
        else:
            header = b"\xdf" + (len(elements) // 2).to_bytes(4, "big")
        return values.decode_joined(header, elements, name, key)

    def _decode(self, stored: StoredRecord, scope: ScopeKey, key: str) -> Any:
        return self.core.values.decode(
            stored.kind, stored.flags, stored.payload, scope.scope.text, key
        )

    def record(
        self, scope: str | Scope, key: str, found: Found, as_type: type | None = None
    ) -> Record:
        """Return what the user gets for a live record."""
        stored = found.stored
        value = found.value if as_type is None else from_builtin(as_type, found.value)
        name = self.core.scope_key(scope).scope.text
        try:
            return Record(
                name,
                key,
                value,
                stored.revision,
                from_ms(stored.created_ms),
                stored.revision.time,
                from_ms(stored.expires_ms) if stored.expires_ms else None,
                _CLASSES[stored.state_class],
                stored.schema_version,
                _KIND_NAMES[stored.kind],
            )
        except (LookupError, ValueError, OverflowError) as error:  # a class, a year: none such
            raise CorruptRecordError(name, key, f"its header makes no sense: {error}") from None

    def exists(self, scope: str | Scope, key: str) -> Steps[bool]:
        """Whether a key has a value."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        _, _, raw, _ = yield self.core.read_call(scope_key, (field,), most_bytes=-1)
        return raw is not None

    def get_slice(
        self, scope: str | Scope, key: str, start: int, stop: int | None
    ) -> Steps[list[Any]]:
        """Return some elements of a list, without reading the others."""
        scope_key = self.core.scope_key(scope)
        field = field_of(scope_key, key)
        for name, value in (("start", start), ("stop", stop)):
            if value is not None and type(value) is not int:
                raise InvalidArgumentError(name, value, "must be an int")
        for _ in range(_RESTARTS):
            _, _, raw, _ = yield self.core.read_call(scope_key, (field,), most_bytes=-1)
            if raw is None:
                return []
            stored = unpack_record(raw, scope_key.scope.text, key)
            if stored.kind != _LIST:
                found = yield from self.find(scope, key)
                value = None if found is None else found.value
                if type(value) is not list:
                    kind = Kind(stored.kind).name.lower()
                    raise WrongKindError(scope_key.scope.text, key, kind, "get_slice")
                return value[start:stop]
            head = unpack_head(stored.payload, scope_key.scope.text, key)
            first, last, _ = slice(start, stop).indices(head.count)
            elements = yield from self.pages(scope_key, head, first, last)
            if len(elements) == max(0, last - first):
                joined: list[Any] = self.join(stored, elements, scope_key, key)
                return joined
        raise CorruptRecordError(scope_key.scope.text, key, "its elements are not there")

    # --- many keys

    def get_many(
        self, scope: str | Scope, keys: Iterable[str], as_type: type | None
    ) -> Steps[dict[str, Any]]:
        """Return the values of those of the keys that have one."""
        scope_key = self.core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        if not fields:
            return {}
        raws = yield self._many_call(scope_key, fields)
        if as_type is None:
            values, plain = {}, self.plain
            for key, raw in zip(fields, raws, strict=True):
                if raw is not None:
                    value = values[key] = plain(raw)
                    if value is NOT_PLAIN:
                        break
            else:
                return values
        found = yield from self.judge_many(scope_key, fields, raws)
        if as_type is None:
            return {key: record.value for key, record in found.items()}
        return {key: from_builtin(as_type, record.value) for key, record in found.items()}

    def _many_call(self, scope: ScopeKey, fields: dict[str, bytes]) -> Command:
        return Command(pack(b"HMGET", scope.hash, *fields.values()), "HMGET")

    def find_many(self, scope: ScopeKey, fields: dict[str, bytes]) -> Steps[dict[str, Found]]:
        """Return the live records of a batch of keys."""
        if not fields:
            return {}
        raws = yield self._many_call(scope, fields)
        return (yield from self.judge_many(scope, fields, raws))

    def judge_many(
        self, scope: ScopeKey, fields: dict[str, bytes], raws: list[bytes | None]
    ) -> Steps[dict[str, Found]]:
        """Decode what a plain read of a batch gave; ask the server where that cannot be enough."""
        name, compare, values = scope.scope.text, self.core.clock.compare, self.core.values
        found: dict[str, Found] = {}
        for key, raw in zip(fields, raws, strict=True):
            if raw is None:
                continue
            stored = unpack_record(raw, name, key)
            if stored.expires_ms:
                liveness = compare(stored.expires_ms)
                if liveness is Liveness.EXPIRED:
                    continue
                if liveness is Liveness.UNSURE:
                    return (yield from self._ask_many(scope, fields))
            if stored.kind > _NUMBER:
                return (yield from self._ask_many(scope, fields))
            value = values.decode(stored.kind, stored.flags, stored.payload, name, key)
            found[key] = Found(stored, value)
        return found

    def _ask_many(self, scope: ScopeKey, fields: dict[str, bytes]) -> Steps[dict[str, Found]]:
        """Read records and elements as of one moment; large elements follow one by one."""
        call = self.core.read_call(
            scope, fields.values(), most_bytes=INLINE_BYTES // len(fields), bulk=True
        )
        _, _, *rest = yield call
        found = {}
        for key, raw, elements in zip(fields, rest[::2], rest[1::2], strict=True):
            if raw is None:
                continue
            stored = unpack_record(raw, scope.scope.text, key)
            record = yield from self._assemble(stored, elements, scope, key)
            if record is None:
                record = yield from self._ask(scope, key, fields[key])
            if record is not None:
                found[key] = record
        return found

    def get_all(self, scope: str | Scope) -> Steps[dict[str, Any]]:
        """Everything in a scope of at most 1,000 keys and 1 MiB, as of one moment."""
        _, found = yield from self.everything(scope, "get_all")
        return {key: one.value for key, one in found.items()}

    def snapshot(self, scope: str | Scope) -> Steps[Snapshot]:
        """As `get_all`, with the revision of that moment."""
        meta, found = yield from self.everything(scope, "snapshot")
        values = {key: one.value for key, one in found.items()}
        return Snapshot(self.core.scope_key(scope).scope.text, meta.revision or BEGINNING, values)

    def everything(
        self, scope: str | Scope, call_name: str
    ) -> Steps[tuple[ScopeMeta, dict[str, Found]]]:
        """Return the scope's own record and all others, of one moment."""
        scope_key = self.core.scope_key(scope)
        arguments = (b"%d" % INLINE_BYTES, b"%d" % ALL_KEYS, b"%d" % ALL_BYTES)
        call = ScriptCall(load_script("read"), (scope_key.hash,), arguments, bulk=True)
        answer = yield call
        meta = unpack_meta(answer[1], scope_key.scope.text)
        rest = answer[2:]
        if len(rest) == 1 and rest[0].startswith(b"TOOLARGE"):
            if meta.count > ALL_KEYS:
                raise LimitError(f"keys in {call_name} (use items())", meta.count, ALL_KEYS)
            raise LimitError(f"bytes in {call_name} (use items())", meta.size, ALL_BYTES)
        every = {}
        for field, raw, elements in _triples(rest):
            key = field.decode()
            stored = unpack_record(raw, scope_key.scope.text, key)
            found = yield from self._assemble(stored, elements, scope_key, key)
            if found is None:
                found = yield from self._ask(scope_key, key, field)
            if found is not None:
                every[key] = found
        return meta, every

    # --- whole scopes

    def count(self, scope: str | Scope) -> Steps[int]:
        """How many keys a scope has."""
        scope_key = self.core.scope_key(scope)
        keys = (scope_key.hash, self.core.keyspace.ttl(scope_key.scope))
        counted, raw = yield ScriptCall(load_script("count"), keys, ())
        unpack_meta(raw, scope_key.scope.text)
        return int(counted)

    def stat(self, scope: str | Scope) -> Steps[ScopeStat]:
        """How much lies in a scope."""
        scope_key = self.core.scope_key(scope)
        keys = (scope_key.hash, self.core.keyspace.ttl(scope_key.scope))
        counted, raw = yield ScriptCall(load_script("count"), keys, ())
        meta = unpack_meta(raw, scope_key.scope.text)
        return ScopeStat(
            scope_key.scope.text,
            int(counted),
            meta.size,
            meta.revision,
            meta.schema_version,
            meta.fence,
        )


def _triples(flat: Sequence[Any]) -> Iterator[tuple[bytes, bytes, list[bytes] | None]]:
    return zip(flat[::3], flat[1::3], flat[2::3], strict=True)
