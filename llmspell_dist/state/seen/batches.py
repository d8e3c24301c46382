"""Batches and transactions, looked at: key by key, so that no batch gets round a hook.

One refusal refuses the whole batch. What the hooks left of it goes as one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.changes import Op
from llmspell_dist.errors import ConflictError, InvalidArgumentError, SpellError
from llmspell_dist.ids import new_id
from llmspell_dist.state.core import checked_keys, field_of
from llmspell_dist.state.interception import StateCall, arguments_of, followed
from llmspell_dist.state.named import named_operation
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.state.writes import check_mapping

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.classes import StateClass
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core, Expiry
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.transactions import _Pending, _Place
    from llmspell_dist.state.writes import Writes

__all__ = [
    "SeenTransactionSteps",
    "item_calls",
    "seen_delete_many",
    "seen_get_many",
    "seen_set_many",
]


_SET: Final = ("value", "ttl", "state_class", "schema_version")
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "set": _SET,
    "set_if_absent": _SET,
    "set_many": _SET,
    "append": ("value", "ttl"),
    "merge": ("value", "remove", "ttl"),
    "increment": ("value", "ttl"),
    "expire": ("ttl",),
    "delete": (),
    "delete_many": (),
}
"""What a change of a batch has beside its scope and key."""


def item_calls(
    core: Core,
    batch: str,
    writes: bool,
    items: Sequence[tuple[str, str, dict[str, Any]]],
    names: Sequence[str] | None = None,
) -> list[StateCall]:
    """Return the calls of a batch's keys (scope, key, more data); they are carried out as one."""
    batch_id, size = new_id(), str(len(items))
    calls = []
    for position, (scope, key, more) in enumerate(items):
        call = StateCall(
            batch if names is None else names[position],
            writes,
            {"scope": scope, "key": key, **more},
            _as_one,
            partial(named_operation, core),
            metadata={
                "batch": batch,
                "batch_id": batch_id,
                "batch_size": size,
                "batch_position": str(position),
            },
            redoable=False,
        )
        calls.append(call)
    return calls


def _as_one(data: dict[str, Any]) -> Steps[Any]:
    raise AssertionError("a key of a batch is carried out with the others", data)


def seen_get_many(
    interceptor: Interceptor,
    core: Core,
    calls: list[StateCall],
    keys: list[str],
    read: Callable[[str, list[str]], Steps[dict[str, Any]]],
) -> Steps[dict[str, Any]]:
    """Return the values of those of the keys that have one, each as its hooks leave it."""
    given: dict[str, Any] = {}
    places: dict[str, tuple[str, str]] = {}
    wanted: dict[str, list[str]] = {}
    for key, call in zip(keys, calls, strict=True):
        instead = yield from interceptor.before(call)
        if instead is not None:
            given[key] = instead.value
            continue
        scope, what = arguments_of(call.data, ("scope", "key"))
        where = core.scope_key(scope).scope.text
        places[key] = where, what
        wanted.setdefault(where, []).append(what)
    found: dict[tuple[str, str], Any] = {}
    for where, several in wanted.items():
        values = yield from read(where, several)
        found.update({(where, key): value for key, value in values.items()})
    result = {}
    for key, call in zip(keys, calls, strict=True):
        if key in given:
            result[key] = given[key]
        elif places[key] in found:
            result[key] = yield from interceptor.behind(call, found[places[key]], None)
    return result


def seen_set_many(
    interceptor: Interceptor,
    plain: Writes,
    scope: str | Scope,
    mapping: Mapping[str, Any],
    ttl: Expiry,
    state_class: StateClass | None,
    schema_version: int,
    ack: Ack | None,
) -> Steps[Any]:
    """Set several keys as one commit, each as its hooks leave it."""
    core = plain.core
    check_mapping(mapping)
    scope_key = core.scope_key(scope)
    name = scope_key.scope.text
    more = {"ttl": ttl, "state_class": state_class, "schema_version": schema_version}
    items = []
    for key, value in mapping.items():
        field_of(scope_key, key)
        items.append((name, key, {"value": value, **more}))
    batch = _Batch(interceptor, core, plain, ack, "set_many")
    done, results = yield from batch.carry_out(item_calls(core, "set_many", True, items))
    if not done:
        return results[-1]
    # The caller gets one result for all keys: that of the last which hooks behind it changed.
    return batch.changed[-1] if batch.changed else batch.revision


def seen_delete_many(
    interceptor: Interceptor,
    plain: Writes,
    scope: str | Scope,
    keys: Iterable[str],
    ack: Ack | None,
) -> Steps[int]:
    """Remove several keys as one commit; how many were there, or are said to have been by hooks.

    What a hook behind a key says it came to counts if it is True or False.
    """
    scope_key = plain.core.scope_key(scope)
    items: list[tuple[str, str, dict[str, Any]]] = [
        (scope_key.scope.text, key, {}) for key in checked_keys(scope_key, keys)
    ]
    if not items:
        return 0
    batch = _Batch(interceptor, plain.core, plain, ack, "delete_many")
    _, results = yield from batch.carry_out(item_calls(plain.core, "delete_many", True, items))
    return sum(1 for result in results if result is True)


class SeenTransactionSteps(TransactionSteps):
    """A transaction whose reads are seen when they are made, and its writes at the commit."""

    def __init__(
        self,
        core: Core,
        reads: Reads,
        writes: Writes,
        partial: Partial,
        interceptor: Interceptor,
    ) -> None:
        super().__init__(core, reads, writes, partial)
        self.interceptor = interceptor
        self.batch = "transaction"
        self.changed: list[Any] = []
        """What hooks behind its keys made of their results."""

    def get(self, scope: str | Scope, key: str, default: Any, as_type: type | None) -> Steps[Any]:
        """Return the value of a key as this transaction sees it."""
        plain = super().get
        if not (self.interceptor.reading and self.interceptor.inside() <= 0):
            return plain(scope, key, default, as_type)
        place = self._place(scope, key)
        data = {"scope": place[0].scope.text, "key": key, "default": default, "as_type": as_type}
        names = tuple(data)

        def carry_out(given: dict[str, Any]) -> Steps[Any]:
            return plain(*arguments_of(given, names))

        perform = partial(named_operation, self.core)
        call = StateCall("get", False, data, carry_out, perform)
        call.metadata = {"batch": self.batch}
        return self.interceptor.around(call)

    def get_many(self, scope: str | Scope, keys: Iterable[str]) -> Steps[dict[str, Any]]:
        """Return the values of those of the keys that have one."""
        plain = super().get_many
        if not (self.interceptor.reading and self.interceptor.inside() <= 0):
            return plain(scope, keys)
        self._check_open()
        scope_key = self.core.scope_key(scope)
        wanted = list(checked_keys(scope_key, keys))
        calls = item_calls(
            self.core, "get_many", False, [(scope_key.scope.text, key, {}) for key in wanted]
        )
        return seen_get_many(self.interceptor, self.core, calls, wanted, plain)

    def commit(self) -> Steps[Revision | None]:
        """Carry everything out as the hooks leave it, or raise and change nothing."""
        if not (self._pending and self.interceptor.writing and self.interceptor.inside() <= 0):
            return super().commit()
        return self._seen_commit()

    def _seen_commit(self) -> Steps[Revision | None]:
        self._check_open()
        places = list(self._pending)
        names, items = [], []
        for place in places:
            name, more = self._described(place, self._pending[place])
            names.append(name)
            items.append((place[0].scope.text, place[1], more))
        calls = item_calls(self.core, self.batch, True, items, names)
        yield from self.carry_out(calls)
        return self.revision

    def carry_out(self, calls: list[StateCall]) -> Steps[tuple[bool, list[Any]]]:
        """Commit these calls as one; whether anything was, and what their callers get."""
        try:
            absent, self._absent = self._absent, set()
            self._pending = {}
            results: list[Any] = [None] * len(calls)
            going: list[int] = []
            for at, call in enumerate(calls):
                instead = yield from self.interceptor.before(call)
                if instead is None:
                    going.append(at)
                    self._put(call, absent)
                else:
                    results[at] = instead.value
        except BaseException:
            self.closed = True
            raise
        failed: SpellError | None = None
        try:
            yield from self._followed(super().commit(), calls)
        except SpellError as error:
            failed = error
            if isinstance(error, ConflictError):
                yield from self.interceptor.conflict(calls[going[0] if going else 0], error)
        # Of deletes alone the server says of each whether it was there.
        there = self.results if self.batch == "delete_many" else []
        refused: SpellError | None = None
        for position, at in enumerate(going):
            given = there[position] == b"1" if position < len(there) else self.revision
            try:
                result = yield from self.interceptor.behind(calls[at], given, failed)
            except SpellError as error:  # it has happened: what stands behind the others runs too
                refused = refused or error
                continue
            if result is not given:
                self.changed.append(result)
            counts = type(result) is bool or self.batch != "delete_many"
            results[at] = result if counts else given
        if refused is not None:
            raise refused
        if failed is not None:
            raise failed
        return bool(going), results

    def _followed(self, steps: Steps[Any], calls: list[StateCall]) -> Steps[Any]:
        return followed(steps, calls) if calls else steps

    def _described(self, place: _Place, pending: _Pending) -> tuple[str, dict[str, Any]]:
        """Return what a change that waits is called, and its arguments."""
        if pending.op == Op.SET:
            more = {
                "value": self._decoded(place, pending),
                "ttl": pending.ttl,
                "state_class": pending.state_class,
                "schema_version": pending.schema_version,
            }
            return "set_if_absent" if place in self._absent else "set", more
        if pending.op == Op.DELETE:
            return "delete", {}
        if pending.op == Op.TTL:
            return "expire", {"ttl": pending.ttl}
        if pending.op == Op.INCREMENT:
            return "increment", {"value": pending.value, "ttl": pending.ttl}
        if pending.op == Op.APPEND:
            return "append", {"value": list(pending.value), "ttl": pending.ttl}
        more = {"value": pending.value, "remove": pending.removed, "ttl": pending.ttl}
        return "merge", more

    def _put(self, call: StateCall, absent: set[_Place]) -> None:
        """Let a change wait for the commit again, as the hooks left it."""
        data = call.data
        scope, key = arguments_of(data, ("scope", "key"))
        place = self._place(scope, key)
        if place in self._pending:
            rule = "must not be a key that the batch changes already: a hook sent it there"
            raise InvalidArgumentError("key", key, rule)
        names = _NAMES[call.name]
        given = arguments_of(data, names)
        if names is _SET:
            self.set(scope, key, *given)
            if place in absent or call.name == "set_if_absent":
                self._absent.add(place)
        elif call.name == "append":
            if not isinstance(given[0], list | tuple):
                rule = "must be a list of what to append"
                raise InvalidArgumentError("value", given[0], rule)
            self.append(scope, key, tuple(given[0]), given[1])
        elif call.name == "merge":
            self.merge(scope, key, *given)
        elif call.name == "increment":
            self.increment(scope, key, *given)
        elif call.name == "expire":
            self.expire(scope, key, *given)
        else:
            self.delete(scope, key)


class _Batch(SeenTransactionSteps):
    """A batch is a transaction that reads nothing."""

    def __init__(
        self, interceptor: Interceptor, core: Core, plain: Writes, ack: Ack | None, name: str
    ) -> None:
        super().__init__(core, plain.reads, plain, Partial(core, plain.reads), interceptor)
        if ack is not None:
            core.ack_for(core.rules.resolve(core.scope_key("global").scope, "x"), ack)
        self.ack = ack
        self.batch = name
