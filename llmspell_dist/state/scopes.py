"""Whole scopes: listing keys and scopes page by page, clearing, copying, moving.

The server's cursor is a place in the hash table of one server process; after a restart or failover
another one answers, whose table is laid out differently. So a page's cursor names the process, too:
at another one the scripts begin again, and what went through it sees every key that stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.backoff import Backoff
from llmspell_dist.changes import Op
from llmspell_dist.errors import ConflictError, InvalidArgumentError
from llmspell_dist.records import Kind, unpack_meta, unpack_record
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.commits import MAX_COMMIT_BYTES, ConditionMode, change, condition
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.state.model import Page
from llmspell_dist.state.steps import Pause

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Found, Reads
    from llmspell_dist.state.steps import Steps

__all__ = ["PAGE_KEYS", "Scopes", "glob_of"]

PAGE_KEYS: Final = 500
MAX_PAGE: Final = 5000
COPY_BATCH: Final = 400
COPY_BYTES: Final = MAX_COMMIT_BYTES
KEYS_ONLY, WITH_RECORDS, WITH_SIZES = b"0", b"1", b"2"
"""What a scan gives beside the keys."""
_ATTEMPTS: Final = 32
_CURSOR: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
_PROCESS: Final = re.compile(r"[0-9a-f]{0,40}", re.ASCII).fullmatch
_GLOB_SPECIAL: Final = frozenset("*?[]\\^")


def glob_of(prefix: str | None, match: str | None) -> str:
    """Return the pattern that Redis filters by; a prefix is taken literally."""
    for name, text in (("prefix", prefix), ("match", match)):
        if text is not None and not isinstance(text, str):
            raise InvalidArgumentError(name, text, "must be a str")
        if text is not None and len(text) > 1024:
            raise InvalidArgumentError(name, text, "must be at most 1,024 characters")
    if prefix is not None and match is not None:
        raise InvalidArgumentError("match", match, "cannot be combined with prefix")
    if match is not None:
        return match
    if not prefix:
        return ""
    return "".join("\\" + char if char in _GLOB_SPECIAL else char for char in prefix) + "*"


def check_page(cursor: str | None, limit: int) -> bytes:
    """Validate where a page begins and how long it is; the server's cursor."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_PAGE:,}")
    if cursor is None:
        return b"0"
    if not isinstance(cursor, str) or not _CURSOR(cursor) or int(cursor) >= 2**64:
        raise InvalidArgumentError("cursor", cursor, "must be one that a page returned")
    return cursor.encode()


def split_cursor(cursor: str | None, limit: int) -> tuple[bytes, bytes]:
    """Validate where a page begins and how long it is; the server's cursor, and who gave it."""
    if cursor is None:
        return check_page(None, limit), b""
    where, dash, process = cursor.partition("-") if isinstance(cursor, str) else ("", "", "")
    if not dash or not _PROCESS(process):
        raise InvalidArgumentError("cursor", cursor, "must be one that a page returned")
    return check_page(where, limit), process.encode()


class Stretch(NamedTuple):
    """What a scan gave at once."""

    found: list[Any]
    cursor: str | None
    """What to go on with; None: that was all."""
    again: bool
    """Whether it is the beginning, because the cursor was one of another server process."""

    @classmethod
    def read(cls, reply: list[Any], start: bytes, asked: bytes) -> Stretch:
        """Read what a scanning script answered."""
        following, process, *found = reply
        cursor = None if following == b"0" else f"{following.decode()}-{process.decode()}"
        return cls(found, cursor, start != b"0" and process != asked)


class Scopes:
    """The operations on whole scopes, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads

    # --- listing

    def keys_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[str]]:
        """Return some keys of a scope, in no order."""
        page = yield from self._scan(scope, cursor, limit, prefix, match)
        return Page([field.decode() for field in page.found], page.cursor)

    def items_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[tuple[str, Any]]]:
        """Return some keys of a scope with their values, in no order."""
        page = yield from self.found_page(scope, cursor, limit, prefix, match)
        return Page([(key, one.value) for key, one in page.found], page.cursor)

    def found_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None = None,
    ) -> Steps[Stretch]:
        """Return some keys of a scope with their records (`Found`), in no order."""
        scope_key = self.core.scope_key(scope)
        page = yield from self._scan(scope, cursor, limit, prefix, match, WITH_RECORDS)
        items: list[tuple[str, Found]] = []
        for field, raw in zip(page.found[::2], page.found[1::2], strict=True):
            key = field.decode()
            stored = unpack_record(raw, scope_key.scope.text, key)
            if stored.kind <= Kind.NUMBER:
                found = yield from self.reads.judge(scope_key, key, field, raw)
            else:
                found = yield from self.reads.find(scope, key)
            if found is not None:
                items.append((key, found))
        return page._replace(found=items)

    def _scan(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
        form: bytes = KEYS_ONLY,
    ) -> Steps[Stretch]:
        scope_key = self.core.scope_key(scope)
        start, process = split_cursor(cursor, limit)
        arguments = (
            start,
            glob_of(prefix, match).encode("utf-8", "replace"),
            b"%d" % limit,
            form,
            process,
        )
        reply = yield ScriptCall(load_script("scan"), (scope_key.hash,), arguments, bulk=True)
        return Stretch.read(reply, start, process)

    def scopes_page(
        self,
        shard: str,
        cursor: str | None,
        limit: int,
        kind: ScopeKind | str | None,
        prefix: str | None,
    ) -> Steps[Page[Scope]]:
        """Return some scopes of a shard that have keys, in no order."""
        start, process = split_cursor(cursor, limit)
        wanted = None if kind is None else kind_of(kind)
        due = self.core.keyspace.due(shard)
        arguments = (start, process, _scope_glob(wanted, prefix).encode(), b"%d" % limit)
        reply = yield ScriptCall(load_script("scan_set"), (due,), arguments, bulk=True)
        page = Stretch.read(reply, start, process)
        found: list[Scope] = []
        for text in page.found:
            scope = Scope.parse(text.decode())
            if wanted is None or scope.kind is wanted:
                found.append(scope)
        counts = yield [self._count_call(scope) for scope in found]
        filled = [scope for scope, (count, _) in zip(found, counts, strict=True) if count]
        return Page(filled, page.cursor)

    def every_page(
        self, cursor: str | None, limit: int, kind: ScopeKind | str | None, prefix: str | None
    ) -> Steps[Page[Scope]]:
        """Return some scopes of all shards, one shard after the other; the cursor names it."""
        shards = self.core.shards()
        shard, inner = shards[0], None
        if cursor is not None:
            shard, dot, rest = cursor.partition(".") if isinstance(cursor, str) else ("", "", "")
            if not dot or shard not in shards:
                raise InvalidArgumentError("cursor", cursor, "must be one that a page returned")
            inner = rest or None
        page = yield from self.scopes_page(shard, inner, limit, kind, prefix)
        following = None
        if page.cursor is not None:
            following = f"{shard}.{page.cursor}"
        elif shard != shards[-1]:
            following = f"{shards[shards.index(shard) + 1]}."
        return Page(page.items, following)

    def _count_call(self, scope: Scope) -> ScriptCall:
        keys = (self.core.keyspace.scope(scope), self.core.keyspace.ttl(scope))
        return ScriptCall(load_script("count"), keys, (), bulk=True)

    # --- clearing, copying, moving

    def clear(self, scope: str | Scope) -> Steps[int]:
        """Remove every key of a scope in one step; how many there were."""
        scope_key = self.core.scope_key(scope)
        commit = self.core.commit((scope_key,), (change(Op.CLEAR, b"", b""),))
        done = yield from self.core.carry_out(commit)
        return int(done.results[0])

    def transfer(self, source: str | Scope, target: str | Scope, move: bool) -> Steps[int]:
        """Copy or move every key of a scope to another of its shard; how many."""
        from_key, to_key = self.core.scope_key(source), self.core.scope_key(target)
        if from_key.hash == to_key.hash:
            raise InvalidArgumentError("target", target, "must be another scope than the source")
        self.core.commit((to_key, from_key), ())  # both must lie in one shard
        backoff = Backoff(first_s=0.002, max_s=0.25)
        for _ in range(_ATTEMPTS):
            keys = (from_key.hash, self.core.keyspace.ttl(from_key.scope))
            _, raw = yield ScriptCall(load_script("count"), keys, ())
            meta = unpack_meta(raw, from_key.scope.text)
            if meta.count > COPY_BATCH:
                return (yield from self._transfer_large(from_key, to_key, move))
            if meta.revision is None:
                return 0
            sizes: dict[bytes, int] = {}
            cursor = None
            while True:  # a hash that was large once may be scanned in several steps
                flat, cursor, _ = yield from self._scan(
                    source, cursor, MAX_PAGE, None, None, WITH_SIZES
                )
                sizes.update(zip(flat[::2], flat[1::2], strict=True))
                if cursor is None:
                    break
            if sum(sizes.values()) > COPY_BYTES:
                return (yield from self._transfer_large(from_key, to_key, move))
            fields = list(sizes)
            if not fields:
                return 0
            guard = condition(ConditionMode.SCOPE_REVISION, fields[0], meta.revision, scope=1)
            try:
                return (yield from self._copy(from_key, to_key, fields, move, guard))
            except ConflictError:
                yield Pause(backoff.next_s())
        raise ConflictError(None, None, [(from_key.scope.text, "", None, None)])

    def _copy(
        self, source: ScopeKey, target: ScopeKey, fields: list[bytes], move: bool, *guards: Any
    ) -> Steps[int]:
        flag = b"\1" if move else b"\0"
        changes = [
            change(Op.COPY, field, b"\0\1" + flag + self.core.new_generation()) for field in fields
        ]
        commit = self.core.commit((target, source), changes, guards)
        done = yield from self.core.carry_out(commit)
        return done.results.count(b"1")

    def _transfer_large(self, source: ScopeKey, target: ScopeKey, move: bool) -> Steps[int]:
        """Copy in batches, each atomic; a key that is moved is in one scope at any time.

        Done when one pass went through all of the scope at one server process.
        """
        total, cursor = 0, None
        while True:
            flat, cursor, again = yield from self._scan(
                source.scope, cursor, COPY_BATCH, None, None, WITH_SIZES
            )
            if again and not move:
                total = 0  # what was copied is met again; what was moved is not
            sizes = dict(zip(flat[::2], flat[1::2], strict=True))
            for batch in _batches(sizes):
                total += yield from self._copy(source, target, batch, move)
            if cursor is None:
                return total


def _batches(sizes: dict[bytes, int]) -> Iterator[list[bytes]]:
    """Keys that one commit may carry: their records stand in its log entry."""
    batch: list[bytes] = []
    weight = 0
    for field, size in sizes.items():
        if len(batch) == COPY_BATCH or (batch and weight + size > COPY_BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(field)
        weight += size
    if batch:
        yield batch


def kind_of(kind: ScopeKind | str) -> ScopeKind:
    """Return the kind that is meant; `InvalidArgumentError` if there is none."""
    try:
        return ScopeKind(kind)
    except ValueError:
        rule = f"must be one of {', '.join(ScopeKind)}"
        raise InvalidArgumentError("kind", kind, rule) from None


def _scope_glob(kind: ScopeKind | None, prefix: str | None) -> str:
    """Return a pattern over printed scopes; the prefix is one of the printed scope."""
    if prefix is not None:
        return glob_of(prefix, None)
    if kind is None or kind is ScopeKind.GLOBAL:
        return "global" if kind else ""
    if kind is ScopeKind.STEP:
        return "workflow:*/step:*"
    return f"{kind}:*"
