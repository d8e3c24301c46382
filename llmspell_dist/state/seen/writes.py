"""Writes, appends and merges, looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.seen.batches import seen_delete_many, seen_set_many
from llmspell_dist.state.seen.seam import Seam, looked_at
from llmspell_dist.state.seen.update import seen_update
from llmspell_dist.state.writes import Writes

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import Commit
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core, Expiry
    from llmspell_dist.state.interception import FollowedCommit, Interceptor
    from llmspell_dist.state.seen.reads import SeenReads
    from llmspell_dist.state.steps import Steps

__all__ = ["SeenPartial", "SeenWrites"]


class SeenWrites(Writes):
    """Writes, looked at."""

    def __init__(self, core: Core, reads: SeenReads, interceptor: Interceptor) -> None:
        super().__init__(core, reads.plain_reads)
        self.plain_writes = Writes(core, reads.plain_reads)
        self.seam = Seam(core, interceptor, self.plain_writes)

    set_if_absent = looked_at(writes=True)(Writes.set_if_absent)
    compare_and_set = looked_at(writes=True)(Writes.compare_and_set)
    delete = looked_at(writes=True)(Writes.delete)
    increment = looked_at(writes=True, by="value")(Writes.increment)
    expire = looked_at(writes=True)(Writes.expire)
    persist = looked_at(writes=True)(Writes.persist)

    def seen_set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: Expiry,
        state_class: StateClass | None,
        schema_version: int,
        ack: Ack | None,
    ) -> Commit | FollowedCommit | Steps[Revision]:
        """Return what sets a key, as `prepare_set`."""
        plain, interceptor = self.plain_writes, self.seam.interceptor
        if interceptor.inside() > 0:
            return plain.prepare_set(scope, key, value, ttl, state_class, schema_version, ack)
        name = self.core.scope_key(scope).scope.text
        given = (name, key, value, ttl, state_class, schema_version, ack)
        return interceptor.around_set(given, plain)

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
        plain = self.plain_writes
        if not self.seam.writes():
            return plain.set_many(scope, mapping, ttl, state_class, schema_version, ack)
        return seen_set_many(
            *(self.seam.interceptor, plain, scope, mapping),
            *(ttl, state_class, schema_version, ack),
        )

    def delete_many(self, scope: str | Scope, keys: Iterable[str], ack: Ack | None) -> Steps[int]:
        """Remove up to 1,000 keys in one step; how many were there."""
        if not self.seam.writes():
            return self.plain_writes.delete_many(scope, keys, ack)
        return seen_delete_many(self.seam.interceptor, self.plain_writes, scope, keys, ack)

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
        plain = self.plain_writes
        if not (self.seam.reads() or self.seam.writes()):
            return plain.update(scope, key, function, default, attempts, ttl, ack, state_class)
        return seen_update(
            *(self.seam.interceptor, plain, scope, key, function),
            *(default, attempts, ttl, ack, state_class),
        )


class SeenPartial(Partial):
    """Appends and merges, looked at."""

    def __init__(self, core: Core, reads: SeenReads, interceptor: Interceptor) -> None:
        super().__init__(core, reads.plain_reads)
        self._plain = Partial(core, reads.plain_reads)
        self.seam = Seam(core, interceptor, self._plain)

    def append(
        self,
        scope: str | Scope,
        key: str,
        items: Sequence[Any],
        ttl: Expiry,
        state_class: StateClass | None,
    ) -> Steps[int]:
        """Add elements to a list; its new length."""
        plain = self._plain.append
        if not self.seam.writes():
            return plain(scope, key, items, ttl, state_class)

        def append(where: str, what: str, value: Any, *rest: Any) -> Steps[int]:
            if not isinstance(value, list | tuple):
                raise InvalidArgumentError("value", value, "must be a list of what to append")
            return plain(where, what, tuple(value), *rest)

        given: dict[str, Any] = {"scope": scope, "key": key, "value": list(items)}
        given |= {"ttl": ttl, "state_class": state_class}
        return self.seam.interceptor.around(self.seam.call("append", True, append, given))

    def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        remove: Iterable[Any],
        ttl: Expiry,
        state_class: StateClass | None,
    ) -> Steps[int]:
        """Set and remove fields of a map; how many it has then."""
        plain = self._plain.merge
        if not self.seam.writes():
            return plain(scope, key, mapping, remove, ttl, state_class)
        gone = remove if isinstance(remove, str | bytes) else tuple(remove)
        given: dict[str, Any] = {"scope": scope, "key": key, "value": mapping, "remove": gone}
        given |= {"ttl": ttl, "state_class": state_class}
        return self.seam.interceptor.around(self.seam.call("merge", True, plain, given))
