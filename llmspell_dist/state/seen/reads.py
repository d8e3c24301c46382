"""Reads and the past, looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmspell_dist.redis.commands import Command
from llmspell_dist.state.core import checked_keys
from llmspell_dist.state.history import History
from llmspell_dist.state.interception import arguments_of
from llmspell_dist.state.model import ScopeStat
from llmspell_dist.state.reads import NOT_PLAIN, Reads
from llmspell_dist.state.seen.batches import item_calls, seen_get_many
from llmspell_dist.state.seen.seam import Seam, listing, looked_at
from llmspell_dist.typed import from_builtin

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.interception import Interceptor, StateCall
    from llmspell_dist.state.model import Change, Record, Snapshot
    from llmspell_dist.state.steps import Steps

__all__ = ["SeenHistory", "SeenReads"]


def _is_bool(answer: Any) -> str | None:
    return None if type(answer) is bool else "a bool"


def _is_count(answer: Any) -> str | None:
    return None if type(answer) is int and answer >= 0 else "an int from 0 on"


def _is_stat(answer: Any) -> str | None:
    return None if isinstance(answer, ScopeStat) else "a ScopeStat"


class SeenReads(Reads):
    """Reads, looked at."""

    def __init__(self, core: Core, interceptor: Interceptor) -> None:
        super().__init__(core)
        self.plain_reads = Reads(core)
        self.seam = Seam(core, interceptor, self.plain_reads)

    def seen_get(
        self, scope: str | Scope, key: str, default: Any, as_type: type | None
    ) -> Steps[Any]:
        """Return the value of a key."""
        if self.seam.interceptor.inside() > 0:
            return self._get(scope, key, default, as_type)
        given = {"scope": scope, "key": key, "default": default, "as_type": as_type}
        call = self.seam.call("get", False, self._get, given)
        call.cacheable, call.lasting = True, self._lasting
        return self.seam.interceptor.around(call)

    def _get(self, scope: str | Scope, key: str, default: Any, as_type: type | None) -> Steps[Any]:
        reads = self.plain_reads
        raw = yield Command(reads.get_request(scope, key), "HGET")
        if raw is None:
            return default
        if as_type is None:
            value = reads.plain(raw)
            if value is not NOT_PLAIN:
                return value
        return (yield from reads.get(scope, key, raw, default, as_type))

    def _lasting(self, data: dict[str, Any]) -> Steps[tuple[Any, bool]]:
        """As `get`, and whether the value has no expiry."""
        scope, key, default, as_type = arguments_of(data, ("scope", "key", "default", "as_type"))
        found = yield from self.plain_reads.find(scope, key)
        if found is None:
            return default, True
        value = found.value if as_type is None else from_builtin(as_type, found.value)
        return value, not found.stored.expires_ms

    def get_record(
        self, scope: str | Scope, key: str, as_type: type | None
    ) -> Steps[Record | None]:
        """Return the value of a key with all that is known about it."""
        plain = self.plain_reads.get_record
        if not self.seam.reads():
            return plain(scope, key, as_type)
        given = {"scope": scope, "key": key, "as_type": as_type}
        call = self.seam.call("get_record", False, plain, given)
        call.seen, call.put = _value_of, _with_value
        return self.seam.interceptor.around(call)

    def get_many(
        self, scope: str | Scope, keys: Iterable[str], as_type: type | None
    ) -> Steps[dict[str, Any]]:
        """Return the values of those of the keys that have one."""
        if not self.seam.reads():
            return self.plain_reads.get_many(scope, keys, as_type)
        return self._get_many(scope, keys, as_type)

    def _get_many(
        self, scope: str | Scope, keys: Iterable[str], as_type: type | None
    ) -> Steps[dict[str, Any]]:
        scope_key = self.core.scope_key(scope)
        wanted = list(checked_keys(scope_key, keys))
        calls = item_calls(
            self.core, "get_many", False, [(scope_key.scope.text, key, {}) for key in wanted]
        )
        for call in calls:
            call.cacheable, call.as_type = True, as_type

        def read(where: str, several: list[str]) -> Steps[dict[str, Any]]:
            return self.plain_reads.get_many(where, several, as_type)

        return seen_get_many(self.seam.interceptor, self.core, calls, wanted, read)

    def get_all(self, scope: str | Scope) -> Steps[dict[str, Any]]:
        """Everything in a scope."""
        plain = self.plain_reads.get_all
        if not self.seam.reads():
            return plain(scope)
        call = self.seam.call("get_all", False, plain, {"scope": scope})
        return listing(self.seam, call, lambda everything: everything.items(), dict)

    def snapshot(self, scope: str | Scope) -> Steps[Snapshot]:
        """Everything in a scope, and of which moment."""
        plain = self.plain_reads.snapshot
        if not self.seam.reads():
            return plain(scope)
        return self._snapshot(self.seam.call("snapshot", False, plain, {"scope": scope}))

    def _snapshot(self, call: StateCall) -> Steps[Snapshot]:
        taken: list[Snapshot] = []

        def items(snapshot: Snapshot) -> Iterable[tuple[str, Any]]:
            taken.append(snapshot)
            return snapshot.values.items()

        found = yield from listing(self.seam, call, items, dict)
        if not taken:  # it was not carried out
            return found  # type: ignore[no-any-return]
        return replace(taken[0], values=found)

    get_slice = looked_at(writes=False)(Reads.get_slice)
    exists = looked_at(writes=False, fits=_is_bool)(Reads.exists)
    count = looked_at(writes=False, fits=_is_count)(Reads.count)
    stat = looked_at(writes=False, fits=_is_stat)(Reads.stat)


class SeenHistory(History):
    """The past, looked at."""

    def __init__(self, core: Core, reads: SeenReads, interceptor: Interceptor) -> None:
        super().__init__(core, reads.plain_reads)
        self._plain = History(core, reads.plain_reads)
        self.seam = Seam(core, interceptor, self._plain)

    get_at = looked_at(writes=False)(History.get_at)

    def history(self, scope: str | Scope, key: str, limit: int) -> Steps[list[Change]]:
        """Return the last changes of a key, newest first."""
        plain = self._plain.history
        if not self.seam.reads():
            return plain(scope, key, limit)
        given = {"scope": scope, "key": key, "limit": limit}
        return self._history(self.seam.call("history", False, plain, given))

    def _history(self, call: StateCall) -> Steps[list[Change]]:
        interceptor = self.seam.interceptor
        instead = yield from interceptor.before(call)
        if instead is not None:
            return instead.value  # type: ignore[no-any-return]
        changes = yield from call.carry_out(call.data)
        where, key = arguments_of(call.data, ("scope", "key"))
        items = item_calls(self.core, "history", False, [(where, key, {}) for _ in changes])
        result = []
        for one, change in zip(items, changes, strict=True):
            one.seen, one.put = _value_of, _with_value
            if change.has_value:
                result.append((yield from interceptor.behind(one, change, None)))
            else:
                result.append(change)
        return result


def _value_of(holder: Any) -> Any:
    return None if holder is None else holder.value


def _with_value(holder: Any, value: Any) -> Any:
    return None if holder is None else replace(holder, value=value)
