"""Writing through a sidecar: the library's writing steps, asked of it.

What is wrong with an argument is found here, before anything is sent, by the library's own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmspell_dist.ack import Ack
from llmspell_dist.classes import StateClass
from llmspell_dist.codec import is_number
from llmspell_dist.errors import CodecError, InvalidArgumentError, InvalidTTLError, LimitError
from llmspell_dist.redis.commits import ConditionMode
from llmspell_dist.remote.documents import pack_list, pack_map
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.remote.reads import GONE, key_path, scope_path
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import IfPresent, checked_keys, field_of
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.writes import Writes, _Any, _guard, check_mapping, check_schema_version
from llmspell_dist.ttl import KEEP, ttl_ms

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import Commit, ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core, Expiry
    from llmspell_dist.state.steps import Steps

__all__ = ["RemotePartial", "RemoteWrites", "keeping", "said_ttl"]

Guard = tuple[int, Revision | None]


def said_ttl(ttl: Expiry) -> float | str | None:
    """Return a time to live as routes take it: seconds, ``none``, or None to leave it.

    To the millisecond, which is what the server keeps: a float of seconds says that exactly.
    """
    if isinstance(ttl, IfPresent):  # only inside of transactions
        raise InvalidTTLError("ttl", ttl, "must be a time")
    milliseconds = ttl_ms(ttl)
    if milliseconds is KEEP:
        return None
    return "none" if milliseconds is None else milliseconds / 1000


def keeping(
    core: Core, scope: ScopeKey, key: str, ttl: Expiry, state_class: StateClass | None
) -> dict[str, Any]:
    """Return how a value is to be kept, as routes take it; what is not said is left out.

    A class that this client's rules give is said; the sidecar's own rules decide about the rest.
    """
    said: dict[str, Any] = {}
    resolved = core.rules.resolve(scope.scope, key, state_class)
    if state_class is not None or resolved is not StateClass.STANDARD:
        said["state_class"] = str(resolved)
    seconds = said_ttl(ttl)
    if seconds is not None:
        said["ttl"] = seconds
    return said


def said_ack(ack: Ack | None) -> dict[str, Any]:
    """Return the level to wait for, as routes take it."""
    if ack is None:
        return {}
    if not isinstance(ack, Ack):
        raise InvalidArgumentError("ack", ack, "must be an Ack")
    return {"ack": str(ack)}


def condition_of(guard: Guard | None) -> dict[str, str] | None:
    """Return a condition as a header: RFC 9110, section 13."""
    if guard is None:
        return None
    mode, revision = guard
    if mode == ConditionMode.ABSENT:
        return {"if-none-match": "*"}
    return {"if-match": f'"{revision}"'}


class RemoteWrites(Writes):
    """The writing operations, asked of a sidecar; update and its kin are built upon `set`."""

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
        """Return the steps that set a key."""
        return self.set(scope, key, value, ttl, state_class, schema_version, ack)

    def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
        guard: Guard | None = None,
    ) -> Steps[Revision]:
        """Set a key, under a condition if one is given."""
        scope_key = self.core.scope_key(scope)
        path = key_path(scope_key, key)
        query = keeping(self.core, scope_key, key, ttl, state_class) | said_ack(ack)
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        packed = self.core.values.encode_element(value, resolved, scope_key.scope.text, key)
        check_schema_version(schema_version)
        if schema_version != 1:
            query["schema_version"] = schema_version
        ask = Ask("PUT", path, query, packed=packed, headers=condition_of(guard))
        answer = yield from asked(ask)
        return Revision.parse(answer.document["revision"])

    def delete(
        self, scope: str | Scope, key: str, expected: Revision | _Any | None, ack: Ack | None
    ) -> Steps[bool]:
        """Remove a key; whether it was there."""
        path = key_path(self.core.scope_key(scope), key)
        guard = None if isinstance(expected, _Any) else _guard(expected)
        headers = condition_of(guard)
        answer = yield from asked(Ask("DELETE", path, said_ack(ack), headers=headers, accept=GONE))
        return answer.status != 404

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
        path = key_path(scope_key, key, "increment")
        if not is_number(by):
            rule = "must be an int from -2**63 to 2**63-1 or a finite float"
            raise InvalidArgumentError("by", by, rule)
        body = {"by": by} | keeping(self.core, scope_key, key, ttl, state_class) | said_ack(ack)
        answer = yield from asked(Ask("POST", path, document=body))
        total: int | float = answer.document["value"]
        return total

    def expire(self, scope: str | Scope, key: str, ttl: Expiry) -> Steps[bool]:
        """Let a key end after a while; whether it was there."""
        path = key_path(self.core.scope_key(scope), key, "expire")
        seconds = said_ttl(ttl)
        if not isinstance(seconds, float):
            raise InvalidTTLError("ttl", ttl, "must be a time; use persist() to remove it")
        answer = yield from asked(Ask("POST", path, document={"ttl": seconds}))
        return bool(answer.document["found"])

    def persist(self, scope: str | Scope, key: str) -> Steps[bool]:
        """Let a key stay; whether it had an expiry."""
        path = key_path(self.core.scope_key(scope), key, "expire")
        answer = yield from asked(Ask("POST", path, document={"ttl": None}))
        return bool(answer.document["found"])

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
        check_mapping(mapping)
        check_schema_version(schema_version)
        scope_key = self.core.scope_key(scope)
        name, values = scope_key.scope.text, self.core.values
        encode = values.codec.encode
        packed: dict[bytes, bytes] = {}
        kept: dict[bytes, dict[str, Any]] = {}
        fields: set[bytes] = set()
        for key, value in mapping.items():
            field = field_of(scope_key, key)
            if field in fields:
                raise InvalidArgumentError("mapping", key, "must not name one key twice")
            fields.add(field)
            resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
            try:
                encoded = values.encode_element(value, resolved, name, key)
            except (CodecError, LimitError) as error:
                raise error.inside(f".{key}") from None
            packed[encode(key)] = encoded
            kept[encode(key)] = keeping(self.core, scope_key, key, ttl, state_class)
        said = {"schema_version": schema_version} | said_ack(ack)
        first = next(iter(kept.values()))
        if all(one == first for one in kept.values()):
            path = scope_path(scope_key, "set-many")
            body = _encoded(encode, said | first) | {encode("values"): pack_map(packed)}
        else:  # this client's rules give the keys several classes
            path = ("v1", "transactions")
            common = {"op": "set", "scope": name, "schema_version": schema_version}
            operations = [
                pack_map(
                    _encoded(encode, common | kept[key])
                    | {encode("key"): key, encode("value"): one}
                )
                for key, one in packed.items()
            ]
            body = _encoded(encode, said_ack(ack)) | {encode("operations"): pack_list(operations)}
        answer = yield from asked(Ask("POST", path, packed=pack_map(body)))
        return Revision.parse(answer.document["revision"])

    def delete_many(self, scope: str | Scope, keys: Iterable[str], ack: Ack | None) -> Steps[int]:
        """Remove up to 1,000 keys in one step; how many were there."""
        scope_key = self.core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        if not fields:
            return 0
        body = {"keys": list(fields)} | said_ack(ack)
        answer = yield from asked(Ask("POST", scope_path(scope_key, "delete-many"), document=body))
        return int(answer.document["count"])


class RemotePartial(Partial):
    """The partial updates, asked of a sidecar."""

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
        path = key_path(scope_key, key, "append")
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        elements = self.elements(scope_key, key, items, resolved)
        encode = self.core.values.codec.encode
        body = _encoded(encode, keeping(self.core, scope_key, key, ttl, state_class))
        body[encode("items")] = pack_list(elements)
        answer = yield from asked(Ask("POST", path, packed=pack_map(body)))
        return int(answer.document["length"])

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
        path = key_path(scope_key, key, "merge")
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        gone = self.removals(removed)
        if not mapping and not gone:
            raise InvalidArgumentError("mapping", mapping, "must set or remove at least one field")
        fields = self.fields(scope_key, key, mapping, resolved)
        encode = self.core.values.codec.encode
        body = _encoded(encode, keeping(self.core, scope_key, key, ttl, state_class))
        body |= {encode("fields"): pack_map(fields), encode("remove"): pack_list(gone)}
        answer = yield from asked(Ask("POST", path, packed=pack_map(body)))
        return int(answer.document["fields"])


def _encoded(encode: Callable[[Any], bytes], said: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return parts of a body, each encoded by itself: others that are so already join them."""
    return {encode(name): encode(value) for name, value in said.items()}
