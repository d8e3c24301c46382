"""Commits as data: conditions and changes in, the bytes for the commit script out, its answer read.

Nothing here does I/O. A `Commit` is complete when it is made and never changes, so the lane can
send it again after a lost reply; what differs between two sendings (the group that it stands in,
the retry flag) is added by `pack_group`. ``lua_scripts/commit.lua`` documents the arguments byte
by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from llmspell_dist.changes import Op
from llmspell_dist.errors import (
    ClassChangedError,
    ConflictError,
    CorruptRecordError,
    LeaseRequiredError,
    LimitError,
    NumberOverflowError,
    OperationReusedError,
    OutcomeUnknownError,
    SpellError,
    StagedElementsLostError,
    StaleFencingTokenError,
    WrongKindError,
    shorten,
)
from llmspell_dist.records import Kind
from llmspell_dist.redis.replies import error_from_reply
from llmspell_dist.redis.resp import ErrorReply
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import NO_REVISION, Revision
from llmspell_dist.scope import decode_part

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope

MAX_CHANGES = 1000
MAX_COMMIT_BYTES = 8 * 1024 * 1024

RETRY, RING_EXPECTED, RENEW_RING, FREEING, FENCED = 1, 2, 4, 8, 16
"""Flags of an item: see ``commit.lua``."""


class TTLMode(IntEnum):
    """What happens to the expiry of the key."""

    KEEP = 0
    SET = 1
    DROP = 2
    DEFAULT = 3
    """Set, unless the key has one already."""
    IF_PRESENT = 4
    """Set, if the key is there; a new one has none."""


class ConditionMode(IntEnum):
    """What must hold, or the whole commit is refused."""

    REVISION = 1
    ABSENT = 2
    PRESENT = 3
    SCOPE_REVISION = 4


_CHANGE = struct.Struct(">BBBHHIBHI")
_ITEM = struct.Struct(">BHHHI")
_INDEX = tuple(index.to_bytes(2, "big") for index in range(MAX_CHANGES * 2 + 1))
_FINGERPRINT = struct.Struct(">II")


class Change(NamedTuple):
    """One change of one key; ``scope`` is a position in the commit's ``scopes``."""

    head: bytes
    scope: int
    key: bytes
    payload: bytes


class Condition(NamedTuple):
    """One condition; ``scope`` is a position in the commit's ``scopes``."""

    head: bytes
    scope: int
    key: bytes


class Fence(NamedTuple):
    """A lease that a commit carries: it is refused unless the lease holds."""

    lease: bytes
    """The Redis key."""
    scope_hash: bytes
    """The hash of the scope whose highest token it is compared with; empty: none."""
    token: int
    owner: bytes
    scope: str
    name: str


@lru_cache(maxsize=1024)
def _pack_fence(token: int, owner: bytes) -> bytes:
    """Token, length of the owner, owner: the same for every write under a lease."""
    return token.to_bytes(8, "big") + bytes((len(owner),)) + owner


class ScopeKey(NamedTuple):
    """A scope as the scripts need it: its hash, its printed name, its shard's prefix."""

    hash: bytes
    text: bytes
    shard: bytes
    scope: Scope
    hget: bytes = b""
    """An HGET of one of its fields, up to the field."""


def change(
    op: int,
    key: bytes,
    payload: bytes,
    *,
    kind: int = 0,
    state_class: int = 0,
    flags: int = 0,
    schema_version: int = 1,
    ttl_mode: int = 0,
    ttl_ms: int = 0,
    scope: int = 0,
) -> Change:
    """Describe one change of one key."""
    head = _CHANGE.pack(
        op,
        kind << 4 | state_class,
        flags,
        schema_version,
        len(key),
        len(payload),
        ttl_mode,
        ttl_ms >> 32,
        ttl_ms & 0xFFFFFFFF,
    )
    return Change(head, scope, key, payload)


def condition(
    mode: int, key: bytes, revision: Revision | None = None, *, scope: int = 0
) -> Condition:
    """Describe one condition on a key, or on a scope's revision."""
    packed = revision.packed if revision is not None else NO_REVISION
    return Condition(bytes((mode,)) + packed, scope, key)


class Commit:
    """Changes that happen all together or not at all, if every condition holds."""

    __slots__ = (
        "changes",
        "conditions",
        "fences",
        "fingerprint",
        "freeing",
        "meta",
        "scopes",
        "size",
    )

    def __init__(
        self,
        scopes: tuple[ScopeKey, ...],
        changes: Sequence[Change],
        conditions: Sequence[Condition] = (),
        meta: bytes = b"",
        fences: Sequence[Fence] = (),
    ) -> None:
        self.scopes = scopes
        self.fences = fences
        self.changes = changes
        self.conditions = conditions
        self.meta = meta
        size, crc, freeing = 64 + len(meta), 0, True
        for scope in scopes:
            crc = crc32(scope.hash, crc)
        for head, _, key, payload in changes:
            size += 64 + len(key) + len(payload)
            crc = crc32(payload, crc32(key, crc32(head, crc)))
            freeing = freeing and head[0] in _FREEING
        for head, _, key in conditions:
            size += 48 + len(key)
            crc = crc32(key, crc32(head, crc))
        for fence in fences:
            size += 64 + len(fence.lease)
        self.size = size
        self.freeing = freeing
        self.fingerprint = _FINGERPRINT.pack(crc, size & 0xFFFFFFFF)

    @classmethod
    def of_one(
        cls, scope: ScopeKey, change: Change, meta: bytes, fences: Sequence[Fence] = ()
    ) -> Commit:
        """Return the commit of one change without conditions, as the constructor, but faster."""
        self = cls.__new__(cls)
        self.fences = fences
        head, _, key, payload = change
        self.scopes = (scope,)
        self.changes = (change,)
        self.conditions = ()
        self.meta = meta
        size = 128 + len(meta) + len(key) + len(payload)
        for fence in fences:
            size += 64 + len(fence.lease)
        self.size = size
        self.freeing = head[0] in _FREEING
        crc = crc32(payload, crc32(key, crc32(head, crc32(scope.hash))))
        self.fingerprint = _FINGERPRINT.pack(crc, size)
        return self

    @property
    def shard(self) -> bytes:
        """The prefix of the shard's keys, ``ns:{s}``."""
        return self.scopes[0].shard

    def check(self) -> None:
        """Refuse, before anything is sent, what is more than one log entry may hold."""
        count = len(self.changes)
        if count > MAX_CHANGES or len(self.conditions) > MAX_CHANGES:
            most = max(count, len(self.conditions))
            raise LimitError("changes in one commit", most, MAX_CHANGES)
        if self.size > MAX_COMMIT_BYTES:
            raise LimitError("bytes in one commit", self.size, MAX_COMMIT_BYTES)

    def __repr__(self) -> str:
        scopes = ", ".join(str(scope.scope) for scope in self.scopes)
        return f"<Commit of {len(self.changes)} changes in {scopes}>"


_FREEING = frozenset((Op.DELETE, Op.CLEAR))


def _relocated(copy: Change, places: Sequence[bytes]) -> Change:
    """Return a copy with its source as the group numbers it; a commit has nothing but copies."""
    payload = copy.payload
    source = places[int.from_bytes(payload[:2], "big")]
    return copy._replace(payload=source + payload[2:])


def pack_group(
    ring_key: bytes,
    items: Sequence[tuple[int, int, Commit]],
    *,
    eval_body: bool = False,
) -> bytes:
    """Build the request that carries out a group: items of (sequence, flags, commit), one shard.

    ``EVALSHA``, or with ``eval_body`` the ``EVAL`` form for a server that has lost the script.
    """
    indexes: dict[bytes, int] = {}
    leases: dict[bytes, int] = {}
    keys: list[bytes] = []
    texts: list[bytes] = []
    args: list[bytes] = []
    count = 0
    renew = 0
    for sequence, flags, commit in items:
        places = []
        for scope_hash, text, _, _, _ in commit.scopes:
            index = indexes.get(scope_hash)
            if index is None:
                index = indexes[scope_hash] = len(keys)
                keys.append(b"$%d\r\n%b\r\n" % (len(scope_hash), scope_hash))
                texts.append(b"$%d\r\n%b\r\n" % (len(text), text))
            places.append(_INDEX[index] if index < len(_INDEX) else index.to_bytes(2, "big"))
        renew |= flags & RENEW_RING
        changes, conditions, meta = commit.changes, commit.conditions, commit.meta
        if len(places) > 1 and changes and changes[0].head[0] == Op.COPY:
            changes = [_relocated(one, places) for one in changes]
        if commit.freeing:
            flags |= FREEING  # noqa: PLW2901 - what differs between the members of a group
        if commit.fences:
            flags |= FENCED  # noqa: PLW2901 - as above
        head = _ITEM.pack(
            flags,
            len(conditions),
            len(changes),
            sequence >> 32,
            sequence & 0xFFFFFFFF,
        )
        args.append(b"$19\r\n%b%b\r\n$%d\r\n%b\r\n" % (head, commit.fingerprint, len(meta), meta))
        if commit.fences:
            fences = _fences(commit, places, leases)
            args.append(b"$%d\r\n%b\r\n" % (len(fences), fences))
            count += 1
        for head, scope, key in conditions:
            args.append(b"$13\r\n%b%b\r\n$%d\r\n%b\r\n" % (head, places[scope], len(key), key))
        for head, scope, key, payload in changes:
            args.append(
                b"$20\r\n%b%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                % (head, places[scope], len(key), key, len(payload), payload)
            )
        count += 2 + 2 * len(conditions) + 3 * len(changes)
    shard = items[0][2].scopes[0].shard
    script = load_script("commit")
    name, text = (b"EVAL", script.body) if eval_body else (b"EVALSHA", script.sha)
    numkeys = b"%d" % (3 + len(keys) + len(leases))
    start = (
        b"*%d\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
        b"$%d\r\n%b:log\r\n$%d\r\n%b:due\r\n$%d\r\n%b\r\n"
        % (
            7 + 2 * len(keys) + len(leases) + count,
            *(len(name), name, len(text), text, len(numkeys), numkeys),
            *(len(shard) + 4, shard, len(shard) + 4, shard, len(ring_key), ring_key),
        )
    )
    client = bytes.fromhex(ring_key[-16:].decode())
    group = b"$13\r\n%b%b%c%b\r\n" % (
        client,
        len(items).to_bytes(2, "big"),
        1 if renew else 0,
        len(leases).to_bytes(2, "big"),
    )
    if leases:
        keys += [b"$%d\r\n%b\r\n" % (len(lease), lease) for lease in leases]
    return b"".join((start, *keys, group, *texts, *args))


_NO_SCOPE = b"\xff\xff"


def _fences(commit: Commit, places: Sequence[bytes], leases: dict[bytes, int]) -> bytes:
    """Return the fences of an item, and enter their leases among those of the group."""
    parts = []
    for fence in commit.fences:
        index = leases.setdefault(fence.lease, len(leases))
        place = _NO_SCOPE
        for scope, at in zip(commit.scopes, places, strict=True):
            if scope.hash == fence.scope_hash:
                place = at
        parts.append(_INDEX[index] + place + _pack_fence(fence.token, fence.owner))
    return b"".join(parts)


class Committed(NamedTuple):
    """What a commit gave: its revision (None if nothing had to change) and its changes' results."""

    revision: Revision | None
    results: list[bytes]


_DIGITS = frozenset(b"0123456789-")


def read_revision(outcome: bytes, commit: Commit, server: str = "") -> Revision:
    """Read the outcome of a commit without results; for the hot path."""
    ms, dash, seq = outcome.partition(b"-")
    if dash and ms.isdigit() and seq.isdigit():
        return Revision(int(ms), int(seq))
    revision = read_outcome(outcome, commit, server).revision
    assert revision is not None  # noqa: S101 - a set always changes something
    return revision


def read_outcome(
    outcome: bytes, commit: Commit, server: str = "", operation: str = ""
) -> Committed:
    """Read one item's outcome; a refusal is raised as the exception that its code stands for."""
    if outcome[0] not in _DIGITS:
        raise refusal(outcome.decode("utf-8", "replace"), commit, server, operation)
    if b" " in outcome:
        revision, *results = outcome.split(b" ")
    else:
        revision, results = outcome, []
    if revision == b"-":
        return Committed(None, results)
    ms, _, seq = revision.partition(b"-")
    return Committed(Revision(int(ms), int(seq)), results)


def _facts(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def _conflict(text: str, commit: Commit) -> ConflictError:
    keys: list[tuple[str, str, Any, Any]] = []
    for position, actual in _facts(text).items():
        head, scope, key = commit.conditions[int(position)]
        found = None if actual == "none" else Revision.parse(actual)
        expected: Any = Revision.unpack(head[1:])
        if head[0] == ConditionMode.PRESENT:
            expected = "present"
        keys.append((commit.scopes[scope].text.decode(), key.decode(), expected, found))
    return ConflictError(keys[0][2], keys[0][3], keys)


def refusal(text: str, commit: Commit, server: str, operation: str) -> SpellError:
    """Return the exception for a code of the commit script; the codes are those of its header."""
    code, _, rest = text.partition(" ")
    if code == "CONFLICT":
        return _conflict(rest, commit)
    if code == "REUSED":
        return OperationReusedError(operation)
    if code == "UNKNOWN":
        said = "its outcome is no longer known: too many operations or too much time since"
        return OutcomeUnknownError(server, said)
    if code == "FAILED":
        return error_from_reply(ErrorReply(rest), server)
    facts = _facts(rest)
    if code == "FENCED":
        return _stale(facts, commit)
    if code == "UNLEASED":
        return LeaseRequiredError(facts["scope"], decode_part(facts["lease"]))
    return _unfit(code, facts, commit)


def _stale(facts: Mapping[str, str], commit: Commit) -> StaleFencingTokenError:
    fence = commit.fences[int(facts["fence"])]
    current = int(facts["current"]) or None
    return StaleFencingTokenError(fence.scope, fence.name, fence.token, current, facts["why"])


def _unfit(code: str, facts: Mapping[str, str], commit: Commit) -> SpellError:
    """Return the exception for a change that does not fit what is there."""
    at = commit.changes[int(facts["change"])]
    place = at.scope
    if at.head[0] == Op.COPY and code == "CORRUPT":
        place = int.from_bytes(at.payload[:2], "big")  # what it would have read
    scope, key = commit.scopes[place].text.decode(), at.key.decode()
    if code == "KIND":
        kind = int(facts["kind"])
        name = Kind(kind).name.lower() if kind in _KINDS else f"kind {kind}"
        return WrongKindError(scope, key, name, Op(at.head[0]).name.lower())
    if code == "CLASS":
        return ClassChangedError(scope, key, int(facts["class"]))
    if code == "OVERFLOW":
        return NumberOverflowError("number after increment", None, 2**63 - 1, f"{scope} {key}")
    if code == "STAGED":
        return StagedElementsLostError()
    if code == "CORRUPT":
        return CorruptRecordError(scope, key, "its format version is unknown here")
    return SpellError(f"the commit script answered {shorten(code)}")


_KINDS = frozenset(int(kind) for kind in Kind)
