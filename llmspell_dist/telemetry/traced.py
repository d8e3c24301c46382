"""State managers whose operations are spans: a class of their own, so that others pay nothing.

Of an operation that is not sampled all that happens is one question (`Head.wants`, written out
here) and a call of the plain method, whose coroutine the caller awaits itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar

from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.telemetry.sampling import current_context
from llmspell_dist.telemetry.spans import Spans

__all__ = ["HOT", "OPERATIONS", "traced_state"]

C = TypeVar("C", bound=type)

OPERATIONS: Final = (
    *("get_record", "set_if_absent", "compare_and_set", "delete", "exists"),
    *("increment", "append", "merge", "get_slice", "update", "expire", "persist"),
    *("get_many", "set_many", "delete_many", "get_all", "keys_page", "items_page", "scopes_page"),
    *("count", "stat", "clear", "copy_scope", "move_scope", "history", "get_at"),
    *("run_transaction", "retry", "wait_for", "snapshot"),
)
"""Methods of a state manager that are one span each, beside `get` and `set`."""
HOT: Final = ("get", "set")
"""These ask for themselves: see `HotTracing`."""
_KINDS: Final = frozenset(kind.value for kind in ScopeKind)
_STEP, _STEP_MARK = ScopeKind.STEP.value, "/step:"
_SCOPELESS: Final = frozenset(("run_transaction", "retry", "scopes_page"))
_BATCHES: Final = frozenset(("get_many", "set_many", "delete_many"))


def traced_state(kind: C, spans: Spans) -> C:
    """Return a state manager's class with spans around its operations and transactions."""
    body: dict[str, Any] = {name: _traced(getattr(kind, name), name, spans) for name in OPERATIONS}
    body["__init__"] = _asking(kind, spans)
    body["_begun"] = _begun(kind._begun, spans)  # type: ignore[attr-defined]  # noqa: SLF001
    body["__doc__"] = kind.__doc__
    made: Any = type(kind.__name__, (kind,), body)
    return made  # type: ignore[no-any-return]


def _asking(kind: Any, spans: Spans) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - of the class
        kind.__init__(self, *args, **kwargs)
        # What is recorded is carried out by a twin that does not ask again.
        self._traced = _Hot(kind(*args, **kwargs), spans)

    return __init__


class _Hot:
    """`HotTracing` of one state manager."""

    __slots__ = ("context", "get", "root", "set", "wants")

    def __init__(self, plain: Any, spans: Spans) -> None:
        self.context: Callable[[], Any] = current_context
        self.root: Callable[[], bool] = spans.head.root
        self.wants: Callable[[], bool] = spans.head.wants
        self.get: Callable[..., Any] = _bound(plain.get, "get", spans)
        self.set: Callable[..., Any] = _bound(plain.set, "set", spans)


def _bound(plain: Callable[..., Any], name: str, spans: Spans) -> Callable[..., Any]:
    title, seen = f"state.{name}", plain.__self__._seen  # type: ignore[attr-defined]  # noqa: SLF001
    reads = name == "get"

    def begun(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[object]:
        said = attributes_of(name, args, kwargs, record_scopes=spans.record_scopes)
        # A read without hooks asks nobody who could ask for the active span.
        return spans.operation(title, said, active=not reads or seen.reading)

    def call(*args: Any, **kwargs: Any) -> Any:
        with begun(args, kwargs):
            return plain(*args, **kwargs)

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        with begun(args, kwargs):
            return await plain(*args, **kwargs)

    return call_async if iscoroutinefunction(plain) else call


def _traced(plain: Callable[..., Any], name: str, spans: Spans) -> Callable[..., Any]:
    root, wants = spans.head.root, spans.head.wants
    context = current_context
    recorded = (_recorded_async if iscoroutinefunction(plain) else _recorded)(plain, name, spans)

    @wraps(plain)
    def operation(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not (wants() if context() else root()):
            return plain(self, *args, **kwargs)
        return recorded(self, *args, **kwargs)

    return operation


def _recorded_async(plain: Callable[..., Any], name: str, spans: Spans) -> Callable[..., Any]:
    title = f"state.{name}"

    async def operation(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        said = attributes_of(name, args, kwargs, record_scopes=spans.record_scopes)
        with spans.operation(title, said):
            return await plain(self, *args, **kwargs)

    return operation


def _recorded(plain: Callable[..., Any], name: str, spans: Spans) -> Callable[..., Any]:
    title = f"state.{name}"

    def operation(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        said = attributes_of(name, args, kwargs, record_scopes=spans.record_scopes)
        with spans.operation(title, said):
            return plain(self, *args, **kwargs)

    return operation


def attributes_of(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, record_scopes: bool
) -> dict[str, Any]:
    """Return what a span says of an operation: of its arguments only the kind of the scope."""
    said: dict[str, Any] = {"db.operation.name": name}
    if name in _SCOPELESS:
        return said
    given: Any = args[0] if args else kwargs.get("scope", kwargs.get("source"))
    text = given.text if isinstance(given, Scope) else str(given)
    kind = _STEP if _STEP_MARK in text else text.partition(":")[0]
    if kind not in _KINDS:
        return said  # it is no scope, and the operation says so itself
    said["llmspell.scope.kind"] = kind
    if record_scopes:
        said["llmspell.scope"] = text
        key = args[1] if len(args) > 1 else kwargs.get("key")
        if isinstance(key, str):
            said["llmspell.key"] = key
    if name in _BATCHES:
        many = args[1] if len(args) > 1 else kwargs.get("keys", kwargs.get("mapping"))
        if isinstance(many, Sized):
            said["db.operation.batch.size"] = len(many)
    return said


# --- transactions


def _begun(begin: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    """Return what makes a transaction whose end, the commit, is a span."""
    classes: dict[type, type] = {}

    def begun(self: Any, steps: TransactionSteps) -> Any:
        plain = begin(self, steps)
        kind = classes.get(type(plain))
        if kind is None:
            kind = classes[type(plain)] = _transaction_class(type(plain), spans)
        return kind(self._driver, steps)

    return begun


def _transaction_class(kind: Any, spans: Spans) -> type:
    def span_of(transaction: Any) -> Any:
        size = transaction._steps.size  # noqa: SLF001 - of the class below
        said = {"db.operation.name": "transaction", "db.operation.batch.size": size}
        return spans.span("state.transaction", "client", said)

    async def end_async(self: Any, *raised: Any) -> Any:
        if raised[0] is not None:
            return await kind.__aexit__(self, *raised)
        with span_of(self):
            return await kind.__aexit__(self, *raised)

    def end(self: Any, *raised: Any) -> Any:
        if raised[0] is not None:
            return kind.__exit__(self, *raised)
        with span_of(self):
            return kind.__exit__(self, *raised)

    body = {"__aexit__": end_async} if hasattr(kind, "__aexit__") else {"__exit__": end}
    return type(kind.__name__, (kind,), {**body, "__doc__": kind.__doc__})
