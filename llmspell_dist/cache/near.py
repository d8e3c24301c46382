"""The near cache of a client: what was read stays in memory until somebody changes it.

A scope is subscribed to before anything of it is kept, so whoever changes it, the change is heard:
with its keys, which are dropped, or without, and then the whole scope is. A connection that is lost
drops everything at once, and nothing is kept until messages come again. Each reply comes with the
revision that its scope had, so that of two reads, or of a read and a change, it is known which is
newer: nothing is kept that is older than what some reader was given (monotonic reads; Terry et al.,
"Session guarantees for weakly consistent replicated data", 1994).
"""

from __future__ import annotations

import fnmatch
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.cache.scope import CachedScope
from llmspell_dist.cache.store import IMMUTABLE, Entry, Store
from llmspell_dist.changes import Op
from llmspell_dist.classes import StateClass
from llmspell_dist.clock import Liveness
from llmspell_dist.errors import ClosedError, SpellError
from llmspell_dist.fork import on_fork
from llmspell_dist.records import META_FIELD, unpack_meta
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.revision import BEGINNING
from llmspell_dist.state.core import checked_keys, field_of
from llmspell_dist.state.near import ABSENT, MISS
from llmspell_dist.state.reads import Reads
from llmspell_dist.typed import from_builtin

if TYPE_CHECKING:
    from llmspell_dist.cache.scope import OnTheWay
    from llmspell_dist.config import NearCache
    from llmspell_dist.redis.commits import Commit, ScopeKey
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Found
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.watch.feed import Feeds

__all__ = ["Near", "NearCacheStats"]

logger = logging.getLogger("llmspell_dist.cache")

_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class NearCacheStats:
    """What a near cache did since the client was opened, and what it holds."""

    hits: int
    misses: int
    fills: int
    invalidations: int
    """Values dropped because they changed, or because nobody could tell any more."""
    evictions: int
    """Values dropped to make room."""
    entries: int
    bytes: int
    scopes: int


class Reply(NamedTuple):
    """What a read of a key gave."""

    key: str
    raw: bytes | None
    found: Found | None


class Near:
    """Serves reads from memory; see the module. Safe to share between threads."""

    watching: Final = True
    """It wants to know of all commits of this process."""

    def __init__(
        self,
        core: Core,
        feeds: Feeds,
        settings: NearCache,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._core = core
        self._reads = Reads(core)
        self._decode = core.values.codec.decode
        self._feeds = feeds
        self._settings = settings
        self._spawn = spawn
        self._now = now
        self._hits = self._misses = self._fills = self._invalidations = 0
        self.forget()
        on_fork(self)

    def forget(self) -> None:
        """Begin with nothing: at construction, and in a forked child, which hears nothing."""
        self.lock = threading.RLock()
        self._store = Store(self._settings.max_entries, self._settings.max_bytes)
        self._scopes: dict[str | Scope, CachedScope] = {}
        self._by_hash: dict[bytes, CachedScope] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._store)} values>"

    # --- for users

    def stats(self) -> NearCacheStats:
        """Return the counters, and how much is held."""
        store = self._store
        return NearCacheStats(
            self._hits,
            self._misses,
            self._fills,
            self._invalidations,
            store.evictions,
            len(store),
            store.bytes,
            len(self._by_hash),
        )

    def clear(self) -> None:
        """Drop all values; what is read again is kept again."""
        with self.lock:
            for cached in self._by_hash.values():
                cached.change_all()

    # --- reading

    def look(self, scope: str | Scope, key: str) -> Any:
        """Return the value of a key, `ABSENT`, or `MISS`."""
        try:
            cached = self._scopes[scope]
            entry = cached.entries[key]
            if cached.suspect:
                return MISS
            now = self._now()
            if now >= entry.until:
                return MISS
            expires_ms = entry.expires_ms
            if expires_ms and self._core.clock.compare(expires_ms) is not Liveness.ALIVE:
                return MISS
            cached.used_at = now
            self._store.touch(entry)
        except (KeyError, TypeError):
            return MISS
        self._hits += 1
        packed = entry.packed
        return entry.value if packed is None else self._decode(packed)

    def given(self, value: Any, default: Any, as_type: type | None) -> Any:
        """Return what the caller gets for a value, or for `ABSENT`."""
        if value is ABSENT:
            return default
        return value if as_type is None else from_builtin(as_type, value)

    def read(self, scope: str | Scope, key: str) -> Steps[Any] | None:
        """Return what reads a key and keeps its value; None if its scope is not to be kept."""
        scope_key = self._core.scope_key(scope)
        field = field_of(scope_key, key)
        cached = self._enter(scope, scope_key)
        return None if cached is None else self._read(cached, scope_key, key, field)

    def _read(self, cached: CachedScope, scope: ScopeKey, key: str, field: bytes) -> Steps[Any]:
        found = yield from self._fetch(cached, scope, {key: field})
        return found[key].value if found else ABSENT

    def read_many(self, scope: str | Scope, keys: Iterable[str]) -> Steps[dict[str, Any]]:
        """Return the values of those of some keys that have one, from memory where they are."""
        scope_key = self._core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        cached = self._enter(scope, scope_key)
        found = {key: self.look(scope, key) for key in fields}
        wanted = {key: fields[key] for key, value in found.items() if value is MISS}
        if wanted:
            if cached is not None:
                read = yield from self._fetch(cached, scope_key, wanted)
            else:
                with self.lock:
                    self._misses += len(wanted)
                read = yield from self._reads.find_many(scope_key, wanted)
            for key in wanted:
                found[key] = read[key].value if key in read else ABSENT
        return {key: value for key, value in found.items() if value is not ABSENT}

    def _fetch(
        self, cached: CachedScope, scope: ScopeKey, fields: dict[str, bytes]
    ) -> Steps[dict[str, Found]]:
        """Read keys, with the revision that their scope has then, and keep what may be kept."""
        names = [field.decode() for field in fields.values()]
        with self.lock:
            self._misses += len(names)
            begun = cached.begin(names)
        until = self._now() + self._settings.max_staleness
        try:
            request = pack(b"HMGET", scope.hash, *fields.values(), META_FIELD)
            *raws, meta = yield Command(request, "HMGET")
            found = yield from self._judge(scope, fields, raws)
            at = unpack_meta(meta, scope.scope.text).revision or BEGINNING
            replies = map(Reply, names, raws, map(found.get, fields))
            self._keep(cached, begun, replies, at, until)
        finally:
            with self.lock:
                cached.end(begun)
        return found

    def _judge(
        self, scope: ScopeKey, fields: dict[str, bytes], raws: list[bytes | None]
    ) -> Steps[dict[str, Found]]:
        if len(fields) > 1:
            return (yield from self._reads.judge_many(scope, fields, raws))
        ((key, field),) = fields.items()
        found = yield from self._reads.judge(scope, key, field, raws[0])
        return {} if found is None else {key: found}

    def _keep(
        self,
        cached: CachedScope,
        begun: dict[str, OnTheWay],
        replies: Iterable[Reply],
        at: Revision,
        until: float,
    ) -> None:
        """Hold what was read; where it may not be held, at least nothing older is."""
        with self.lock:
            current = self._by_hash.get(cached.key.hash)
            if current is None:
                return  # it made room for another meanwhile
            for key, raw, found in replies:
                if found is None and raw is not None:
                    current.change(key)  # it went between two looks: nobody can tell when
                    continue
                as_of = at if found is None else max(at, found.stored.revision)
                entry = self._entry(current, key, found, as_of, until)
                if entry is None or not current.admits(key, begun.get(key), as_of):
                    current.change(key, as_of)
                    continue
                current.known(key, as_of)
                self._fills += 1
                self._store.put(entry)

    def _entry(
        self, cached: CachedScope, key: str, found: Found | None, as_of: Revision, until: float
    ) -> Entry | None:
        if found is None:
            return Entry(cached.entries, key, ABSENT, as_of, until)
        stored, value = found
        if stored.state_class == StateClass.SENSITIVE:
            return None  # what is encrypted at rest is not left lying in memory
        packed = None
        if type(value) not in IMMUTABLE:
            packed = self._core.values.codec.encode(value)
            value = None
        entry = Entry(
            cached.entries,
            key,
            value,
            as_of,
            until,
            packed=packed,
            expires_ms=stored.expires_ms,
        )
        return entry if entry.size <= self._settings.max_value_bytes else None

    # --- scopes

    def _enter(self, scope: str | Scope, key: ScopeKey) -> CachedScope | None:
        """Return a scope that is kept, subscribed to if it is not yet; None if it is not kept."""
        cached = self._scopes.get(scope)
        if cached is None:
            text = key.scope.text
            if not any(fnmatch.fnmatchcase(text, one) for one in self._settings.scopes):
                return None
            with self.lock:
                cached = self._by_hash.get(key.hash)
                if cached is None:
                    cached = self._by_hash[key.hash] = CachedScope(self, key)
                    self._make_room(cached)
                self._scopes[scope] = cached
        now = cached.used_at = self._now()
        if not cached.hearing and not cached.joining and now - cached.asked_at >= _AGAIN_S:
            cached.joining, cached.asked_at = True, now
            self._spawn(self._join(cached))
        return cached

    async def warm(self, scope: str | Scope) -> None:
        """Return once reads of a scope are kept; raises what keeps them from being."""
        cached = self._enter(scope, self._core.scope_key(scope))
        while cached is not None and not cached.hearing:
            try:
                return await self._hear(cached)
            except ClosedError:
                if self._by_hash.get(cached.key.hash) is not cached:
                    return None  # it made room for another meanwhile
                if self._feeds.closed:
                    raise
                # Who joined with it left for both: once more, to hear or to know why not.
        return None

    async def _hear(self, cached: CachedScope) -> None:
        try:
            await self._feeds.join(cached.key, cached)
        except BaseException:
            cached.lost()  # whoever else joined with it has left too
            raise
        self._joined(cached)

    async def _join(self, cached: CachedScope) -> None:
        try:
            await self._hear(cached)
        except ClosedError:
            pass  # or it made room for another meanwhile
        except SpellError as error:
            logger.warning("near cache: no messages about %r: %s", cached.key.scope.text, error)
        finally:
            cached.joining = False

    def _joined(self, cached: CachedScope) -> None:
        with self.lock:
            if self._by_hash.get(cached.key.hash) is cached:
                cached.hearing = True
                return
        self._feeds.drop(cached.key, cached)  # made room for another meanwhile

    def _make_room(self, new: CachedScope) -> None:
        while len(self._by_hash) > self._settings.max_scopes:
            oldest = min((c for c in self._by_hash.values() if c is not new), key=_last_use)
            oldest.hearing = False
            oldest.reads.clear()
            for entry in list(oldest.entries.values()):
                self._store.drop(entry)
                self._store.evictions += 1
            self.dismiss(oldest)
            self._spawn(self._leave(oldest))

    async def _leave(self, cached: CachedScope) -> None:
        self._feeds.drop(cached.key, cached)

    def dismiss(self, cached: CachedScope) -> None:
        """Hold a scope no longer."""
        with self.lock:
            if self._by_hash.get(cached.key.hash) is cached:
                del self._by_hash[cached.key.hash]
            for scope in [scope for scope, one in self._scopes.items() if one is cached]:
                del self._scopes[scope]

    # --- changes

    def invalidate(self, entry: Entry) -> None:
        """Drop a value that was changed, or that may have been."""
        if self._store.drop(entry):
            self._invalidations += 1

    def wrote(self, commit: Commit) -> None:
        """Drop what a commit of this process changes: before it is sent, and when it is over."""
        with self.lock:
            places = [self._by_hash.get(scope.hash) for scope in commit.scopes]
            if not any(places):
                return
            for head, scope, key, _ in commit.changes:
                op, name = head[0], key.decode()
                for place, cached in enumerate(places):
                    # A move changes the scope that it reads from too.
                    if cached is None or (place != scope and op != Op.COPY):
                        continue
                    if op in (Op.CLEAR, Op.RESTORED):
                        cached.change_all()
                    else:
                        cached.change(name)


def _last_use(cached: CachedScope) -> float:
    return cached.used_at
