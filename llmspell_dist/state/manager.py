"""The state manager: shared state by scope and key, asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from inspect import isgenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from llmspell_dist.ack import Ack
from llmspell_dist.backoff import Backoff
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import ClosedError, ConflictError, InvalidArgumentError, SpellError
from llmspell_dist.observation import HotTracing
from llmspell_dist.redis.commits import Commit, read_revision
from llmspell_dist.redis.ring import Operation
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.interception import NOTHING_SEEN, FollowedCommit, Interceptor
from llmspell_dist.state.model import Change, Page, Record, ScopeStat, Snapshot
from llmspell_dist.state.near import ABSENT, MISS, NearReads
from llmspell_dist.state.reads import NOT_PLAIN
from llmspell_dist.state.scopes import PAGE_KEYS
from llmspell_dist.state.seen.batches import SeenTransactionSteps
from llmspell_dist.state.seen.reads import SeenHistory, SeenReads
from llmspell_dist.state.seen.scopes import SeenScopes
from llmspell_dist.state.seen.writes import SeenPartial, SeenWrites
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.state.writes import ANY, _Any
from llmspell_dist.ttl import KEEP, TTL

if TYPE_CHECKING:
    from llmspell_dist.watch.service import Watches
    from llmspell_dist.watch.watch import OnTrimmed, Watch

__all__ = ["StateManager", "Transaction"]

T = TypeVar("T")
D = TypeVar("D")


class StateManager:
    """Shared state that no two workers overwrite by accident.

    Every method takes the scope first, as a `Scope` or as its text (``"agent:alice"``). Values are
    None, bool, int, float, str, bytes, list, dict, tuple, set, frozenset, aware datetime, date,
    UUID, Decimal, and dataclasses, msgspec Structs and pydantic models at the top; what goes in
    comes out equal. Every write is atomic, stands in the change log as one entry, and is carried
    out at most once whatever happens to the connection.

    Raised everywhere: `InvalidArgumentError` and its children before anything is sent, and
    `StoreUnavailableError` and its children when the server cannot be reached in time or refuses;
    `OutcomeUnknownError` when nobody can tell whether a write happened (see `retry`).
    """

    def __init__(
        self,
        driver: AsyncDriver,
        *,
        watches: Watches | None = None,
        near: NearReads | None = None,
        seen: Interceptor = NOTHING_SEEN,
    ) -> None:
        self._driver = driver
        self._watches = watches
        self._near = near
        self._seen = seen
        core = driver.core
        self._reads = SeenReads(core, seen)
        self._writes = SeenWrites(core, self._reads, seen)
        self._partial = SeenPartial(core, self._reads, seen)
        self._scopes = SeenScopes(core, self._reads, seen)
        self._history = SeenHistory(core, self._reads, seen)
        self._run = driver.run
        self._submit = driver.submit
        self._commit = driver.commit
        self._traced: HotTracing | None = None

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    # --- one key

    @overload
    async def get(
        self, scope: str | Scope, key: str, default: Any = None, *, as_type: None = None
    ) -> Any: ...
    @overload
    async def get(self, scope: str | Scope, key: str, *, as_type: type[T]) -> T | None: ...
    @overload
    async def get(self, scope: str | Scope, key: str, default: D, *, as_type: type[T]) -> T | D: ...
    async def get(
        self, scope: str | Scope, key: str, default: Any = None, *, as_type: type | None = None
    ) -> Any:
        """Return the value of a key, or `default` if it has none or it has expired.

        With `as_type` (a dataclass, msgspec Struct or pydantic model) the value comes as that.
        Raises `CorruptRecordError` for a record that cannot be read.
        """
        traced = self._traced
        if traced is not None and (traced.wants() if traced.context() else traced.root()):
            return await traced.get(scope, key, default, as_type=as_type)
        reads = self._reads
        if self._seen.reading:
            return await self._run(reads.seen_get(scope, key, default, as_type))
        near = self._near
        if near is not None:
            value = near.look(scope, key)
            if value is MISS and (steps := near.read(scope, key)) is not None:
                value = await self._run(steps)
            if value is not MISS:
                return near.given(value, default, as_type)
        raw = await self._submit(reads.get_request(scope, key))
        if raw is None:
            return default
        if as_type is None:
            value = reads.plain(raw)
            if value is not NOT_PLAIN:
                return value
        return await self._run(reads.get(scope, key, raw, default, as_type))

    async def get_record(
        self, scope: str | Scope, key: str, *, as_type: type | None = None
    ) -> Record | None:
        """Return the value of a key with revision, times, class and schema version, or None."""
        reads = self._reads
        if self._seen.reading:
            return await self._run(reads.get_record(scope, key, as_type))
        raw = await self._submit(reads.get_request(scope, key))
        return None if raw is None else await self._run(reads.record_of(scope, key, raw, as_type))

    async def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        schema_version: int = 1,
        ack: Ack | None = None,
    ) -> Revision:
        """Set a key and return the revision of the commit.

        `ttl`: seconds or a timedelta; None removes an expiry; by default an expiry that the key
        has is kept. `ack`: what to wait for; if the level is not reached in time,
        `AckNotReachedError` says so, and the write has happened all the same.
        """
        traced = self._traced
        if traced is not None and (traced.wants() if traced.context() else traced.root()):
            made: Revision = await traced.set(
                *(scope, key, value),
                ttl=ttl,
                state_class=state_class,
                schema_version=schema_version,
                ack=ack,
            )
            return made
        prepare = self._writes.seen_set if self._seen.writing else self._writes.prepare_set
        prepared = prepare(scope, key, value, ttl, state_class, schema_version, ack)
        if isinstance(prepared, Commit):
            outcome = await self._commit(prepared)
            return read_revision(outcome, prepared, self._driver.core.server)
        if not isinstance(prepared, FollowedCommit):
            return await self._run(prepared)
        given: Any
        try:
            outcome = await self._driver.followed(prepared)
            given = read_revision(outcome, prepared.commit, self._driver.core.server)
        except SpellError as error:
            given = prepared.failed(error)
        else:
            given = prepared.ended(given)
        if isgenerator(given):
            steps: Any = given
            given = await self._run(steps, prepared)
        revision: Revision = given
        return revision

    async def set_if_absent(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        schema_version: int = 1,
        ack: Ack | None = None,
    ) -> Revision | None:
        """Set a key that has no value; None if it has one. Of many callers exactly one wins."""
        return await self._run(
            self._writes.set_if_absent(scope, key, value, ttl, state_class, schema_version, ack)
        )

    async def compare_and_set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        *,
        expected: Revision | None,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        schema_version: int = 1,
        ack: Ack | None = None,
    ) -> Revision:
        """Set a key only if nobody changed it since: it is at `expected`, or (None) still absent.

        Otherwise nothing is changed and `ConflictError` says which revision it is at. Revisions
        never repeat, so a key that was deleted and set again is noticed too (no ABA).
        """
        return await self._run(
            self._writes.compare_and_set(
                scope, key, value, expected, ttl, state_class, schema_version, ack
            )
        )

    async def delete(
        self,
        scope: str | Scope,
        key: str,
        *,
        expected: Revision | _Any | None = ANY,
        ack: Ack | None = None,
    ) -> bool:
        """Remove a key; return whether it was there. With `expected` only at that revision."""
        return await self._run(self._writes.delete(scope, key, expected, ack))

    async def exists(self, scope: str | Scope, key: str) -> bool:
        """Return whether a key has a value that has not expired."""
        near = None if self._seen.reading else self._near
        if near is not None and (value := near.look(scope, key)) is not MISS:
            return value is not ABSENT
        return await self._run(self._reads.exists(scope, key))

    async def increment(
        self,
        scope: str | Scope,
        key: str,
        by: float = 1,
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        ack: Ack | None = None,
    ) -> int | float:
        """Add to a number on the server and return the sum; a missing key counts as 0.

        Integers are exact within 64 bits, beyond them `NumberOverflowError`; floats are doubles.
        A key that holds something else is a `WrongKindError`.
        """
        return await self._run(self._writes.increment(scope, key, by, ttl, state_class, ack))

    async def append(
        self,
        scope: str | Scope,
        key: str,
        *items: Any,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
    ) -> int:
        """Add elements to the end of a list and return its new length.

        Only the new elements travel: it costs the same at 10 and at 100,000. A missing key begins
        an empty list; a list that was `set` is converted once; anything else is a
        `WrongKindError`.
        """
        return await self._run(self._partial.append(scope, key, items, ttl, state_class))

    async def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        *,
        remove: Iterable[Any] = (),
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
    ) -> int:
        """Set some fields of a dict, remove others, and return how many it has then.

        Shallow: a field is replaced as a whole. Only the fields named travel. A missing key begins
        an empty dict; a dict that was `set` is converted once; anything else is a
        `WrongKindError`.
        """
        return await self._run(self._partial.merge(scope, key, mapping, remove, ttl, state_class))

    async def get_slice(
        self, scope: str | Scope, key: str, start: int = 0, stop: int | None = None
    ) -> list[Any]:
        """Return some elements of a list, as ``value[start:stop]``, without reading the others."""
        return await self._run(self._reads.get_slice(scope, key, start, stop))

    async def update(
        self,
        scope: str | Scope,
        key: str,
        function: Callable[[Any], Any],
        *,
        default: Any = None,
        attempts: int = 16,
        ttl: TTL = KEEP,
        ack: Ack | None = None,
    ) -> Any:
        """Replace a value by what `function` makes of it, and return that; no update is lost.

        Optimistic: if another was faster, the new value is read and `function` called again, after
        a jittered pause, at most `attempts` times; then `UpdateConflictError`. So it may run more
        than once. `default` is what it gets for a missing key. Class and schema version are kept.
        """
        return await self._run(
            self._writes.update(scope, key, function, default, attempts, ttl, ack)
        )

    async def expire(self, scope: str | Scope, key: str, ttl: TTL) -> bool:
        """Let a key end after `ttl`; return whether it is there."""
        return await self._run(self._writes.expire(scope, key, ttl))

    async def persist(self, scope: str | Scope, key: str) -> bool:
        """Let a key stay; return whether it had an expiry."""
        return await self._run(self._writes.persist(scope, key))

    # --- many keys

    @overload
    async def get_many(
        self, scope: str | Scope, keys: Iterable[str], *, as_type: None = None
    ) -> dict[str, Any]: ...
    @overload
    async def get_many(
        self, scope: str | Scope, keys: Iterable[str], *, as_type: type[T]
    ) -> dict[str, T]: ...
    async def get_many(
        self, scope: str | Scope, keys: Iterable[str], *, as_type: type | None = None
    ) -> dict[str, Any]:
        """Return the values of those of up to 1,000 keys that have one, in one round trip."""
        if self._near is not None and as_type is None and not self._seen.reading:
            return await self._run(self._near.read_many(scope, keys))
        return await self._run(self._reads.get_many(scope, keys, as_type))

    async def set_many(
        self,
        scope: str | Scope,
        mapping: Mapping[str, Any],
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        schema_version: int = 1,
        ack: Ack | None = None,
    ) -> Revision:
        """Set up to 1,000 keys, all or none, as one commit with one revision."""
        return await self._run(
            self._writes.set_many(scope, mapping, ttl, state_class, schema_version, ack)
        )

    async def delete_many(
        self, scope: str | Scope, keys: Iterable[str], *, ack: Ack | None = None
    ) -> int:
        """Remove up to 1,000 keys as one commit; return how many were there."""
        return await self._run(self._writes.delete_many(scope, keys, ack))

    async def get_all(self, scope: str | Scope) -> dict[str, Any]:
        """Return everything in a scope as of one moment.

        At most 1,000 keys and 1 MiB; a larger scope is a `LimitError`: use `items` for it.
        """
        return await self._run(self._reads.get_all(scope))

    # --- listing

    async def keys_page(
        self,
        scope: str | Scope,
        *,
        cursor: str | None = None,
        limit: int = PAGE_KEYS,
        prefix: str | None = None,
        match: str | None = None,
    ) -> Page[str]:
        """Return some keys, and the cursor of the next page (None: that was the last).

        About `limit` keys are looked at, so a page of a filtered list can be short or empty. Keys
        that are there all the time come at least once; the order is none.
        """
        return await self._run(self._scopes.keys_page(scope, cursor, limit, prefix, match))

    async def items_page(
        self,
        scope: str | Scope,
        *,
        cursor: str | None = None,
        limit: int = PAGE_KEYS,
        prefix: str | None = None,
        match: str | None = None,
    ) -> Page[tuple[str, Any]]:
        """Return some keys with their values, and the cursor of the next page."""
        return await self._run(self._scopes.items_page(scope, cursor, limit, prefix, match))

    async def keys(
        self, scope: str | Scope, *, prefix: str | None = None, match: str | None = None
    ) -> AsyncIterator[str]:
        """Iterate over the keys of a scope, in constant memory.

        `prefix` is taken literally, `match` is a glob (``*``, ``?``, ``[a-z]``). This is no
        snapshot: a key that is set or deleted meanwhile may come or not, and one may come twice.
        """
        cursor = None
        while True:
            page = await self.keys_page(scope, cursor=cursor, prefix=prefix, match=match)
            for key in page.items:
                yield key
            cursor = page.cursor
            if cursor is None:
                return

    async def items(
        self, scope: str | Scope, *, prefix: str | None = None, match: str | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """Iterate over the keys and values of a scope, in constant memory; no snapshot (`keys`)."""
        cursor = None
        while True:
            page = await self.items_page(scope, cursor=cursor, prefix=prefix, match=match)
            for item in page.items:
                yield item
            cursor = page.cursor
            if cursor is None:
                return

    async def count(self, scope: str | Scope) -> int:
        """Return how many keys a scope has, in constant time."""
        return await self._run(self._reads.count(scope))

    async def stat(self, scope: str | Scope) -> ScopeStat:
        """Return how much lies in a scope, and its last revision."""
        return await self._run(self._reads.stat(scope))

    async def scopes(
        self, *, kind: ScopeKind | str | None = None, prefix: str | None = None
    ) -> AsyncIterator[Scope]:
        """Iterate over the scopes that have keys, in constant memory; no snapshot (`keys`).

        `kind` is one of the nine; `prefix` one of the printed scope (``"agent:team-"``).
        """
        cursor = None
        while True:
            page = await self.scopes_page(cursor=cursor, kind=kind, prefix=prefix)
            for scope in page.items:
                yield scope
            cursor = page.cursor
            if cursor is None:
                return

    async def scopes_page(
        self,
        *,
        cursor: str | None = None,
        limit: int = PAGE_KEYS,
        kind: ScopeKind | str | None = None,
        prefix: str | None = None,
    ) -> Page[Scope]:
        """Return some scopes that have keys, and the cursor of the next page."""
        return await self._run(self._scopes.every_page(cursor, limit, kind, prefix))

    # --- whole scopes

    async def clear(self, scope: str | Scope) -> int:
        """Remove every key of a scope in one step, however many; return how many there were."""
        return await self._run(self._scopes.clear(scope))

    async def copy_scope(self, source: str | Scope, target: str | Scope) -> int:
        """Copy every key of a scope to another, over what is there; return how many.

        Up to 400 keys it is one commit as of one moment. A larger scope is copied in batches, each
        atomic: call it again after an interruption. Both must lie in one shard, else
        `CrossShardError`.
        """
        return await self._run(self._scopes.transfer(source, target, False))

    async def move_scope(self, source: str | Scope, target: str | Scope) -> int:
        """Move every key of a scope to another, over what is there; return how many.

        As `copy_scope`; in a large move every key is in exactly one of the two at any time.
        """
        return await self._run(self._scopes.transfer(source, target, True))

    # --- the past

    async def history(self, scope: str | Scope, key: str, *, limit: int = 100) -> list[Change]:
        """Return the last changes of a key, newest first: who changed what, when.

        It ends where the log was trimmed.
        """
        return await self._run(self._history.history(scope, key, limit))

    async def get_at(
        self, scope: str | Scope, key: str, at: Revision | datetime, default: Any = None
    ) -> Any:
        """Return the value that a key had at a revision or (server) time.

        `HistoryUnavailableError` if the log no longer reaches back that far, or the class keeps
        values out of it.
        """
        return await self._run(self._history.get_at(scope, key, at, default))

    # --- transactions

    def transaction(self, *, ack: Ack | None = None) -> Transaction:
        """Begin a transaction: ``async with state.transaction() as tx``.

        At the end of the block everything is committed at once, or `ConflictError` says what had
        changed since it was read and nothing is. An exception in the block discards it.
        """
        steps = SeenTransactionSteps(
            self._driver.core, self._reads, self._writes, self._partial, self._seen
        )
        steps.ack = ack
        return self._begun(steps)

    def _begun(self, steps: TransactionSteps) -> Transaction:
        return Transaction(self._driver, steps)

    async def run_transaction(
        self,
        function: Callable[[Transaction], Awaitable[T]],
        *,
        attempts: int = 16,
        ack: Ack | None = None,
    ) -> T:
        """Run `function(tx)` and commit, again from the start if what it read had changed.

        After `attempts` the last `ConflictError` is raised. The function may run more than once.
        """
        if type(attempts) is not int or attempts < 1:
            raise InvalidArgumentError("attempts", attempts, "must be an int of at least 1")
        backoff = Backoff(first_s=0.002, max_s=0.25)
        while True:
            try:
                async with self.transaction(ack=ack) as transaction:
                    result = await function(transaction)
            except ConflictError:
                if backoff.failures + 1 >= attempts:
                    raise
                await self._driver.pause(backoff.next_s())
            else:
                return result

    async def retry(self, operation: Operation) -> Revision | None:
        """Settle an unknown outcome: carry the operation out now, unless it was before.

        `operation` is that of an `OutcomeUnknownError`. Returns the revision of its commit.
        """
        if not isinstance(operation, Operation):
            rule = "must be the operation of an OutcomeUnknownError"
            raise InvalidArgumentError("operation", operation, rule)
        return await self._driver.settle(operation)

    # --- watching

    def watch(
        self,
        scope: str | Scope,
        *,
        prefix: str | None = None,
        since: Revision | Change | None = None,
        on_trimmed: OnTrimmed = "raise",
    ) -> Watch:
        """Watch a scope: ``async for change in state.watch("agent:alice")``.

        Every change of every key (that begins with `prefix`) comes once, in the order of the
        commits, over lost connections, restarts of the server and slow consumers. ``async with``
        returns once the server has confirmed the subscription. `since`: go on after a revision or
        change that was seen before; ``Revision(0, 0)``: from the first change; None: from now.

        Raised while iterating: `WatchTrimmedError` if the log no longer reaches back, unless
        `on_trimmed` is ``"snapshot"``: then a change with the op ``reset`` comes, one ``snapshot``
        for each key that is there, and then what happened since; `HistoryDivergedError` if the
        server has lost commits that were seen, as in a failover. The same ``reset`` and snapshot
        come, whatever `on_trimmed` says, when a restore has put the scope back as it once was.
        """
        return self._watching().open(scope, prefix, since, on_trimmed)

    async def wait_for(
        self,
        scope: str | Scope,
        key: str,
        predicate: Callable[[Any], Any],
        *,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Wait until a key has a value that `predicate` accepts, and return that value.

        It is asked first about the value that is there, then about each new one; None stands for a
        key that has no value. What the log no longer holds after a lost connection is passed over:
        the value that is there by then is asked about. `timeout`: seconds or a timedelta, then
        `WaitTimeoutError`, which is a `TimeoutError` too. `HistoryDivergedError` if the server lost
        writes meanwhile.
        """
        return await self._watching().wait_for(scope, key, predicate, timeout)

    async def snapshot(self, scope: str | Scope) -> Snapshot:
        """Return everything in a scope as of one moment, and the revision of that moment.

        A watch `since` that revision brings what happens after it. At most 1,000 keys and 1 MiB;
        a larger scope is a `LimitError`.
        """
        return await self._run(self._reads.snapshot(scope))

    def _watching(self) -> Watches:
        if self._watches is None:
            raise ClosedError("this shared state belongs to no client, and cannot watch")
        return self._watches


class Transaction:
    """Reads that must still hold and writes that happen together: `StateManager.transaction`."""

    def __init__(self, driver: AsyncDriver, steps: TransactionSteps) -> None:
        self._driver = driver
        self._steps = steps

    @property
    def revision(self) -> Revision | None:
        """The revision of the commit, once it happened; None if nothing was written."""
        return self._steps.revision

    def __repr__(self) -> str:
        state = "ended" if self._steps.closed else "open"
        return f"<{type(self).__name__}, {state}, on {self._driver.core.server}>"

    @overload
    async def get(
        self, scope: str | Scope, key: str, default: Any = None, *, as_type: None = None
    ) -> Any: ...
    @overload
    async def get(self, scope: str | Scope, key: str, *, as_type: type[T]) -> T | None: ...
    @overload
    async def get(self, scope: str | Scope, key: str, default: D, *, as_type: type[T]) -> T | D: ...
    async def get(
        self, scope: str | Scope, key: str, default: Any = None, *, as_type: type | None = None
    ) -> Any:
        """Return the value of a key, with this transaction's own changes; it must not change."""
        return await self._driver.run(self._steps.get(scope, key, default, as_type))

    async def get_many(self, scope: str | Scope, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of the keys that have one; none of them must change."""
        return await self._driver.run(self._steps.get_many(scope, keys))

    def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
        schema_version: int = 1,
    ) -> None:
        """Set a key at the commit; a value that cannot be stored raises here."""
        self._steps.set(scope, key, value, ttl, state_class, schema_version)

    def set_if_absent(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        *,
        ttl: TTL = KEEP,
        state_class: StateClass | None = None,
    ) -> None:
        """Set a key at the commit, which fails if the key has a value by then."""
        self._steps.set_if_absent(scope, key, value, ttl, state_class)

    def delete(self, scope: str | Scope, key: str) -> None:
        """Remove a key at the commit."""
        self._steps.delete(scope, key)

    def increment(self, scope: str | Scope, key: str, by: float = 1, *, ttl: TTL = KEEP) -> None:
        """Add to a number at the commit, without reading it: it cannot conflict."""
        self._steps.increment(scope, key, by, ttl)

    def append(self, scope: str | Scope, key: str, *items: Any, ttl: TTL = KEEP) -> None:
        """Add elements to a list at the commit, without reading it."""
        self._steps.append(scope, key, items, ttl)

    def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        *,
        remove: Iterable[Any] = (),
        ttl: TTL = KEEP,
    ) -> None:
        """Set and remove fields of a dict at the commit, without reading it."""
        self._steps.merge(scope, key, mapping, remove, ttl)

    def expire(self, scope: str | Scope, key: str, ttl: TTL) -> None:
        """Let a key end after `ttl` from the commit on; None lets it stay."""
        self._steps.expire(scope, key, ttl)

    def expect(self, scope: str | Scope, key: str, revision: Revision | None) -> None:
        """Let the commit fail unless a key is still at `revision`, or (None) still absent.

        For what was read outside of the transaction, even by another process.
        """
        self._steps.expect(scope, key, revision)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self._driver.run(self._steps.commit())
        else:
            self._steps.closed = True
