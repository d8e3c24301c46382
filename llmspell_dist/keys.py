"""Every Redis key of the library is spelled here, and read back here.

========================================= ==========================================================
``ns:{s}:<scope>``                        the records of a scope
``ns:{s}:<scope>:p:<generation>``         the elements of one composite value
``ns:{s}:<scope>:ttl``                    when the keys of a scope expire
``ns:{s}:<scope>:g``                      the generations of a scope
``ns:{s}:<scope>:lease:<name>``           one lease
``ns:{s}:<scope>:lease:<name>:q``         who waits for it, in order
``ns:{s}:<scope>:lease:<name>:s``         who holds it in shared mode
``ns:{s}:log`` ``due`` ``ctl`` ``trash``  what a shard has once
``ns:{s}:leases`` ``waits``               the leases of a shard, and who waits for which
``ns:{s}:ring:<client>``                  the last operations of one client
``ns:{s}:corr:<id>``                      what belongs to one correlation, as it came
``ns:{s}:corr:<id>:log``                  the revisions of its commits
``ns:{s}:restores`` ``restore:<id>``      restores that are going on, and what each has laid down
``ns:{s}:restore:<id>:<name>``            a scope that is restored; ``:ttl`` and ``:g`` as above
``ns:{s}:corrs``                          the correlations of a shard by their last activity
``ns:{s}:hooks`` ``hookindex``            the history of hooks, and by what it is found
``ns:{s}:hookbatch:<client>``             the last batch that a client added to it
``ns:{s}:hookfleet`` ``hookturn``         the hooks of the fleet, and whose turn it is to tidy up
``ns:{s}:hookbell``                       no key: the channel that tells of changes in the fleet
``ns:{s}:wake:<client>``                  no key: the channel that wakes a client
``ns:{s}:evq:<name>`` ``evdead:<name>``   what a durable subscription has to handle, or gave up
``ns:{s}:evs`` ``evidle`` ``evstat``      durable subscriptions, which of them wait, their counters
``ns:{s}:evring:<client>``                the last publish operations of one client
``ns:{s}:ev:<type>`` ``evbell:<name>``    no keys: the channels of live events and of a queue's bell
========================================= ==========================================================

``ns`` is the namespace, ``s`` the shard and the cluster's hash tag. Namespace, ids and names are
percent-encoded (`llmspell_dist.scope`), so a ``:`` or a brace always is one of ours, and no two
different (namespace, scope, key) reach the same Redis key and field.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from llmspell_dist.context import check_text
from llmspell_dist.errors import InvalidArgumentError, InvalidKeyError, InvalidScopeError
from llmspell_dist.scope import Scope, decode_part, encode_part, shard_of

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_NAMESPACE_BYTES",
    "MAX_SCOPED_BYTES",
    "MAX_SHARDS",
    "KeySpace",
    "KeyType",
    "ParsedKey",
    "scoped_field",
    "validate_key",
]

MAX_KEY_BYTES: Final = 256
MAX_SCOPED_BYTES: Final = 512
MAX_NAMESPACE_BYTES: Final = 64
MAX_SHARDS: Final = 16_384

_RESERVED_PREFIXES: Final = ("__", "$$")
_FORBIDDEN: Final = re.compile("[\0\r\n]")
_COMMON: Final = re.compile(r"(?!__|\$\$)[ -~]{1,256}").fullmatch
"""Printable ASCII needs no second look, and nearly all keys are just that."""
_CACHE_LIMIT: Final = 8192
_fields: dict[str, bytes] = {}


def validate_key(key: str) -> bytes:
    """Return the hash field of `key`: NFC-normalised UTF-8.

    A key has 1 to 256 bytes, no NUL, CR or LF, and does not begin with ``__`` or ``$$``. Raises
    InvalidKeyError otherwise. Keys seen lately cost one dictionary look-up.
    """
    try:
        return _fields[key]
    except (KeyError, TypeError):
        pass
    field = key.encode() if type(key) is str and _COMMON(key) else _checked_field(key)
    if len(_fields) < _CACHE_LIMIT:  # and no further: to clear and fill it again would cost more
        _fields[key] = field
    return field


def _checked_field(key: object) -> bytes:
    if not isinstance(key, str):
        raise InvalidKeyError("key", key, "must be a str")
    if not key:
        raise InvalidKeyError("key", key, "must not be empty")
    too_long = f"must be at most {MAX_KEY_BYTES} bytes of UTF-8"
    if len(key) > 3 * MAX_KEY_BYTES:  # before normalising, whose cost grows with the length
        raise InvalidKeyError("key", key, too_long)
    normal = key if key.isascii() else unicodedata.normalize("NFC", key)
    try:
        field = normal.encode()
    except UnicodeEncodeError:
        rule = "must be valid Unicode (no lone surrogates)"
        raise InvalidKeyError("key", key, rule) from None
    if len(field) > MAX_KEY_BYTES:
        raise InvalidKeyError("key", key, too_long)
    if _FORBIDDEN.search(normal):
        raise InvalidKeyError("key", key, "must not contain NUL, CR or LF")
    if normal.startswith(_RESERVED_PREFIXES):
        raise InvalidKeyError("key", key, "must not begin with __ or $$")
    return field


def scoped_field(scope: Scope, key: str) -> bytes:
    """Return the hash field of `key`, checked alone and together with `scope`.

    ``<scope>:<key>`` may have at most 512 bytes; more raises InvalidKeyError.
    """
    field = _fields.get(key) if type(key) is str else None
    if field is None:
        field = validate_key(key)
    size = scope.size + 1 + len(field)
    if size > MAX_SCOPED_BYTES:
        rule = f"must make at most {MAX_SCOPED_BYTES} bytes together with its scope, not {size}"
        raise InvalidKeyError("key", key, rule)
    return field


class KeyType(StrEnum):
    """What a Redis key of ours holds; the value is its marker in the key."""

    SCOPE = ""
    GENERATION = "p"
    TTL = "ttl"
    GENERATIONS = "g"
    LEASE = "lease"
    LEASE_QUEUE = "q"
    LEASE_READERS = "s"
    LEASES = "leases"
    WAITS = "waits"
    LOG = "log"
    DUE = "due"
    CTL = "ctl"
    TRASH = "trash"
    RING = "ring"
    HOOKS = "hooks"
    HOOK_INDEX = "hookindex"
    HOOK_BATCH = "hookbatch"
    HOOK_FLEET = "hookfleet"
    HOOK_TURN = "hookturn"
    CORRELATION = "corr"
    CORRELATION_LOG = "corr:log"
    CORRELATIONS = "corrs"
    EVENT_SUBSCRIPTIONS = "evs"
    EVENT_IDLE = "evidle"
    EVENT_STATS = "evstat"
    EVENT_RING = "evring"
    EVENT_QUEUE = "evq"
    EVENT_DEAD = "evdead"
    RESTORES = "restores"
    RESTORE = "restore"
    RESTORE_STAGED = "restore staged"


_OF_SHARD: Final = {
    t.value: t
    for t in (
        KeyType.LOG,
        KeyType.DUE,
        KeyType.CTL,
        KeyType.TRASH,
        KeyType.LEASES,
        KeyType.WAITS,
        KeyType.CORRELATIONS,
        KeyType.HOOKS,
        KeyType.HOOK_INDEX,
        KeyType.HOOK_FLEET,
        KeyType.HOOK_TURN,
        KeyType.EVENT_SUBSCRIPTIONS,
        KeyType.EVENT_IDLE,
        KeyType.EVENT_STATS,
        KeyType.CORRELATIONS,
        KeyType.RESTORES,
    )
}
_OF_SHARD_NAMED: Final = {
    t.value: t
    for t in (
        KeyType.EVENT_QUEUE,
        KeyType.EVENT_DEAD,
    )
}
_OF_CLIENT: Final = {t.value: t for t in (KeyType.RING, KeyType.EVENT_RING, KeyType.HOOK_BATCH)}
_OF_SCOPE: Final = {t.value: t for t in (KeyType.TTL, KeyType.GENERATIONS)}
_OF_LEASE: Final = {t.value: t for t in (KeyType.LEASE_QUEUE, KeyType.LEASE_READERS)}
_OF_SCOPE_NAMED: Final = {t.value: t for t in (KeyType.GENERATION, KeyType.LEASE)}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SHARD: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)


class ParsedKey(NamedTuple):
    """A Redis key of ours, taken apart."""

    namespace: str
    shard: str
    what: KeyType
    scope: Scope | None = None
    """The scope; None for what a shard has once."""
    extra: str | None = None
    """The generation, the name of a lease, subscription or correlation, or the client of a ring;
    else None."""


def _plain(argument: str, value: str | int | bytes) -> str:
    # The scripts build these keys too, so their last part must never need encoding.
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    if not _PLAIN_NAME.fullmatch(text):
        rule = "must be 1 to 64 ASCII letters, digits, hyphens and underscores"
        raise InvalidArgumentError(argument, value, rule)
    return text


class KeySpace:
    """Spells the Redis keys of one namespace with a fixed number of shards.

    `namespace` is any text of 1 to 64 bytes once percent-encoded. Every method returns bytes, and
    `parse` inverts them all.
    """

    __slots__ = ("_cache", "_printed", "namespace", "shards")

    def __init__(self, namespace: str = "llmspell", shards: int = 1) -> None:
        printed = encode_part(namespace, "namespace")
        if len(printed.encode()) > MAX_NAMESPACE_BYTES:
            rule = f"must be at most {MAX_NAMESPACE_BYTES} bytes when percent-encoded"
            raise InvalidScopeError("namespace", namespace, rule)
        if type(shards) is not int or not 1 <= shards <= MAX_SHARDS:
            raise InvalidArgumentError("shards", shards, f"must be an int from 1 to {MAX_SHARDS}")
        self.namespace = unicodedata.normalize("NFC", namespace)
        self.shards = shards
        self._printed = printed
        self._cache: dict[Scope, bytes] = {}

    def __repr__(self) -> str:
        return f"KeySpace({self.namespace!r}, shards={self.shards})"

    def shard(self, scope: Scope) -> str:
        """Return the shard of `scope`, as it stands in the hash tag."""
        return shard_of(scope, self.shards)

    # -- of a scope

    def scope(self, scope: Scope) -> bytes:
        """Return the hash of a scope's records; scopes seen lately cost one look-up."""
        try:
            return self._cache[scope]
        except KeyError:
            key = f"{self._printed}:{{{self.shard(scope)}}}:{scope.text}".encode()
        if len(self._cache) >= _CACHE_LIMIT:
            self._cache.clear()
        self._cache[scope] = key
        return key

    def generation(self, scope: Scope, generation: str | int | bytes) -> bytes:
        """Return the list or hash with the elements of one composite value."""
        return self.scope(scope) + b":p:" + _plain("generation", generation).encode()

    def generations(self, scope: Scope) -> bytes:
        """Return the key that holds the generations of a scope."""
        return self.scope(scope) + b":g"

    def ttl(self, scope: Scope) -> bytes:
        """Return the sorted set of the expiry times of a scope's keys."""
        return self.scope(scope) + b":ttl"

    def lease(self, scope: Scope, name: str) -> bytes:
        """Return the hash of the lease `name` of a scope; any non-empty name is encoded."""
        return self.scope(scope) + b":lease:" + encode_part(name, "name").encode()

    def lease_queue(self, scope: Scope, name: str) -> bytes:
        """Return the sorted set of those who wait for a lease."""
        return self.lease(scope, name) + b":q"

    def lease_readers(self, scope: Scope, name: str) -> bytes:
        """Return the hash of those who hold a lease in shared mode."""
        return self.lease(scope, name) + b":s"

    # -- of a shard

    def log(self, shard: str) -> bytes:
        """Return the change log of a shard."""
        return self._once(shard, KeyType.LOG)

    def due(self, shard: str) -> bytes:
        """Return the sorted set of all scopes of a shard by their next expiry."""
        return self._once(shard, KeyType.DUE)

    def ctl(self, shard: str) -> bytes:
        """Return the hash with format, shard count, floor and holds of a shard."""
        return self._once(shard, KeyType.CTL)

    def trash(self, shard: str) -> bytes:
        """Return the key that names what is still to be removed in a shard."""
        return self._once(shard, KeyType.TRASH)

    def leases(self, shard: str) -> bytes:
        """Return the sorted set of the leases of a shard by their expiry."""
        return self._once(shard, KeyType.LEASES)

    def waits(self, shard: str) -> bytes:
        """Return the hash that tells, by owner, which leases it waits for."""
        return self._once(shard, KeyType.WAITS)

    def wake(self, shard: str, client: str | bytes) -> bytes:
        """Return the channel over which a client is woken; it is no key."""
        return self._once(shard, KeyType.LOG)[:-3] + b"wake:" + _plain("client", client).encode()

    def ring(self, shard: str, client: str | bytes) -> bytes:
        """Return the hash of one client's last operations in a shard."""
        return self._once(shard, KeyType.RING) + b":" + _plain("client", client).encode()

    def hooks(self, shard: str) -> bytes:
        """Return the stream of the recorded executions of hooks."""
        return self._once(shard, KeyType.HOOKS)

    def hook_index(self, shard: str) -> bytes:
        """Return the sorted set by which recorded executions are found."""
        return self._once(shard, KeyType.HOOK_INDEX)

    def hook_batch(self, shard: str, client: str | bytes) -> bytes:
        """Return the key that says which batch of executions a client added last."""
        return self._once(shard, KeyType.HOOK_BATCH) + b":" + _plain("client", client).encode()

    def hook_fleet(self, shard: str) -> bytes:
        """Return the hash of the hooks that processes have for the whole fleet."""
        return self._once(shard, KeyType.HOOK_FLEET)

    def hook_bell(self, shard: str) -> bytes:
        """Return the channel that tells of changes in the fleet; it is no key."""
        return self._once(shard, KeyType.LOG)[:-3] + b"hookbell"

    def hook_turn(self, shard: str) -> bytes:
        """Return the key that is there while a process tidies the history up."""
        return self._once(shard, KeyType.HOOK_TURN)

    # -- of events, all of one shard

    def events(self, shard: str) -> bytes:
        """Return the hash of the durable subscriptions: name to definition."""
        return self._once(shard, KeyType.EVENT_SUBSCRIPTIONS)

    def event_idle(self, shard: str) -> bytes:
        """Return the hash of the subscriptions of which a consumer waits for its bell."""
        return self._once(shard, KeyType.EVENT_IDLE)

    def event_stats(self, shard: str) -> bytes:
        """Return the hash of what the server counted for durable subscriptions."""
        return self._once(shard, KeyType.EVENT_STATS)

    def event_ring(self, shard: str, client: str | bytes) -> bytes:
        """Return the hash of one publisher's last operations."""
        return self._once(shard, KeyType.EVENT_RING) + b":" + _plain("client", client).encode()

    def event_queue(self, shard: str, name: str) -> bytes:
        """Return the stream of what a durable subscription still has to handle."""
        return self._named(shard, KeyType.EVENT_QUEUE, name)

    def event_dead(self, shard: str, name: str) -> bytes:
        """Return the stream of the dead letters of a durable subscription."""
        return self._named(shard, KeyType.EVENT_DEAD, name)

    def event_channel(self, shard: str, event_type: str) -> bytes:
        """Return the channel of live events of a type; it is no key."""
        return self.prefix(shard) + b"ev:" + event_type.encode()

    def event_bell(self, shard: str, name: str) -> bytes:
        """Return the channel that tells of new events in a queue; it is no key."""
        return self.prefix(shard) + b"evbell:" + encode_part(name, "name").encode()

    # -- of restores

    def restores(self, shard: str) -> bytes:
        """Return the sorted set of the restores that are going on, by when they were heard of."""
        return self._once(shard, KeyType.RESTORES)

    def restore(self, shard: str, restore_id: str) -> bytes:
        """Return the hash that tells what a restore has laid down in a shard."""
        return self._once(shard, KeyType.RESTORE) + b":" + _plain("restore_id", restore_id).encode()

    def staged(self, shard: str, restore_id: str, name: str) -> bytes:
        """Return the hash of a scope that is being restored; what lies beside it is as a scope's.

        Beside it lie ``:ttl``, ``:g`` and, if only a key is taken out of it, ``:p:<generation>``.
        """
        return self.restore(shard, restore_id) + b":" + _plain("name", name).encode()

    def prefix(self, shard: str) -> bytes:
        """Return what every key of a shard begins with."""
        return self._once(shard, KeyType.LOG)[:-3]

    def _named(self, shard: str, what: KeyType, name: str, argument: str = "name") -> bytes:
        return self._once(shard, what) + b":" + encode_part(name, argument).encode()

    # -- of correlations

    def correlation(self, shard: str, correlation_id: str) -> bytes:
        """Return the stream of what belongs to a correlation; any non-empty id is encoded.

        Scripts spell it too (``lua_scripts/lib/correlation.lua``), so the encoding is that of URIs,
        byte by byte: the id is not normalised.
        """
        check_text("correlation_id", correlation_id)
        encoded = quote(correlation_id, safe="").encode()
        return self._once(shard, KeyType.CORRELATION) + b":" + encoded

    def correlation_log(self, shard: str, correlation_id: str) -> bytes:
        """Return the list of the revisions of a correlation's commits."""
        return self.correlation(shard, correlation_id) + b":log"

    def correlations(self, shard: str) -> bytes:
        """Return the sorted set of the correlations of a shard by their last activity."""
        return self._once(shard, KeyType.CORRELATIONS)

    def _once(self, shard: str, what: KeyType) -> bytes:
        if not self._is_shard(shard):
            rule = f"must be the number of one of {self.shards} shards, as text"
            raise InvalidArgumentError("shard", shard, rule)
        return f"{self._printed}:{{{shard}}}:{what.value}".encode()

    def _is_shard(self, shard: str) -> bool:
        return _SHARD.fullmatch(shard) is not None and int(shard) < self.shards

    # -- back

    def parse(self, redis_key: bytes) -> ParsedKey:
        """Return what `redis_key` holds and for whom.

        Raises InvalidArgumentError for a key that no method of this key space returns.
        """
        try:
            parsed = self._parse(redis_key.decode())
            if parsed is not None and self._print(parsed) == redis_key:
                return parsed
        except (InvalidArgumentError, UnicodeDecodeError):
            pass
        raise InvalidArgumentError("redis_key", redis_key, f"must be a key of {self!r}")

    def _parse(self, text: str) -> ParsedKey | None:
        namespace, tag, rest = (*text.split(":", 2), "", "")[:3]
        shard = tag[1:-1]
        if namespace != self._printed or tag != f"{{{shard}}}" or not self._is_shard(shard):
            return None
        parts = rest.split(":")
        if len(parts) == 1 and parts[0] in _OF_SHARD:
            return ParsedKey(self.namespace, shard, _OF_SHARD[parts[0]])
        if len(parts) == 2 and parts[0] in _OF_CLIENT:
            return ParsedKey(self.namespace, shard, _OF_CLIENT[parts[0]], None, parts[1])
        if parts[0] == KeyType.CORRELATION.value and len(parts) in {2, 3}:
            what = KeyType.CORRELATION if len(parts) == 2 else KeyType.CORRELATION_LOG
            return ParsedKey(self.namespace, shard, what, None, unquote(parts[1], errors="strict"))
        if len(parts) == 2 and parts[0] in _OF_SHARD_NAMED:
            name = decode_part(parts[1])
            return ParsedKey(self.namespace, shard, _OF_SHARD_NAMED[parts[0]], None, name)
        if parts[0] == KeyType.CORRELATION.value and len(parts) in {2, 3}:
            what = KeyType.CORRELATION if len(parts) == 2 else KeyType.CORRELATION_LOG
            return ParsedKey(self.namespace, shard, what, None, unquote(parts[1], errors="strict"))
        if parts[0] == KeyType.RESTORE.value and 1 < len(parts) < 6:
            what = KeyType.RESTORE if len(parts) == 2 else KeyType.RESTORE_STAGED
            return ParsedKey(self.namespace, shard, what, None, rest.partition(":")[2])
        # A printed scope has a fixed number of colons: none, one, or two with a step.
        width = 1 if parts[0] == "global" else 3 if parts[1:2] and "/" in parts[1] else 2
        scope = Scope.parse(":".join(parts[:width]))
        tail = parts[width:]
        if not tail:
            return ParsedKey(self.namespace, shard, KeyType.SCOPE, scope)
        if len(tail) == 1 and tail[0] in _OF_SCOPE:
            return ParsedKey(self.namespace, shard, _OF_SCOPE[tail[0]], scope)
        if len(tail) == 3 and tail[0] == KeyType.LEASE.value and tail[2] in _OF_LEASE:
            return ParsedKey(self.namespace, shard, _OF_LEASE[tail[2]], scope, decode_part(tail[1]))
        if len(tail) == 2 and tail[0] in _OF_SCOPE_NAMED:
            what = _OF_SCOPE_NAMED[tail[0]]
            name = decode_part(tail[1]) if what is KeyType.LEASE else tail[1]
            return ParsedKey(self.namespace, shard, what, scope, name)
        return None

    def _print(self, parsed: ParsedKey) -> bytes:
        """Return the key that `parsed` came from, if it is one: the check that parsing is exact."""
        extra = parsed.extra or ""
        if parsed.scope is None:
            if parsed.what.value in _OF_CLIENT:
                client = _plain("client", extra).encode()
                return self._once(parsed.shard, parsed.what) + b":" + client
            if parsed.what is KeyType.CORRELATION:
                return self.correlation(parsed.shard, extra)
            if parsed.what is KeyType.CORRELATION_LOG:
                return self.correlation_log(parsed.shard, extra)
            if parsed.what.value in _OF_SHARD_NAMED:
                return self._named(parsed.shard, parsed.what, extra)
            if parsed.what is KeyType.RESTORE:
                return self.restore(parsed.shard, extra)
            if parsed.what is KeyType.RESTORE_STAGED:
                return self._print_staged(parsed.shard, *extra.split(":"))
            return self._once(parsed.shard, parsed.what)
        scope = parsed.scope
        if parsed.what is KeyType.SCOPE:
            return self.scope(scope)
        if parsed.what is KeyType.GENERATION:
            return self.generation(scope, extra)
        of_lease = {
            KeyType.LEASE: self.lease,
            KeyType.LEASE_QUEUE: self.lease_queue,
            KeyType.LEASE_READERS: self.lease_readers,
        }.get(parsed.what)
        if of_lease is not None:
            return of_lease(scope, extra)
        return self.scope(scope) + f":{parsed.what.value}".encode()

    def _print_staged(
        self, shard: str, restore_id: str, name: str, what: str = "", generation: str | None = None
    ) -> bytes:
        key = self.staged(shard, restore_id, name)
        if generation is not None:
            return key + b":p:" + _plain("generation", generation).encode()
        return key + (f":{what}".encode() if what in _OF_SCOPE else b"")
