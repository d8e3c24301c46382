"""What a hook is told: where it runs, for whom, and what is about to happen or has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import length_hint
from typing import TYPE_CHECKING, Any

from llmspell_dist.context import get_context
from llmspell_dist.hooks.inputs import LIVE, Inputs
from llmspell_dist.hooks.nesting import left_alone
from llmspell_dist.ids import new_id
from llmspell_dist.state.writes import ANY
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.errors import SpellError
    from llmspell_dist.hooks.results import Cache, Fork

__all__ = ["ComponentId", "HookContext", "OperationContext"]


@dataclass(frozen=True, slots=True)
class ComponentId:
    """Who the hook runs for."""

    type: str
    """agent, tool, workflow, system, or a name of your own."""
    name: str
    id: str = ""


@dataclass(slots=True)
class OperationContext:
    """The operation around the hook."""

    type: str
    """The method: ``set``, ``delete``, ``transaction``, …"""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    """After-hooks: what it gave."""
    error: BaseException | None = None
    """After-hooks: why it failed."""


class HookContext:
    """What a hook is told. Hooks may change `data` and `metadata`; both go from hook to hook.

    `actor`, `correlation_id` and `causation_id` are those in force where the operation was called,
    as its commit carries them. Made for every operation that a hook sees, so whatever costs
    anything is made when it is asked for.
    """

    # Defaults of what most contexts never have; only what differs is stored.
    language = "python"
    parent: HookContext | None = None
    forks: list[tuple[str, Fork]] | None = None
    """What hooks wanted to be carried out beside the operation, and who they were."""
    answer: Cache | None = None
    modified_by: str | None = None
    """The last hook that answered `Modified`."""
    error: BaseException | None = None
    """After-hooks: why the operation failed."""
    _data: dict[str, Any] | None = None
    _given: tuple[tuple[str, ...], tuple[Any, ...]] | None = None
    """The names and values that the data is made of when somebody looks."""
    _correlation_id: str | None = None
    _own_actor: str | None = None
    """Who acts if nothing was said: the client."""
    _id: str | None = None
    _inputs: Inputs = LIVE
    _metadata: dict[str, str] | None = None
    _result: Any = None
    _timestamp: datetime | None = None
    failure: SpellError | None = None
    """Behind a write: the first error of a hook, raised when all of them have run."""
    turn: Iterator[Any] | None = None
    """Whose turn it is: what the chain has not called yet."""
    _noted: tuple[Iterator[Any], int, dict[str, Any], dict[str, Any]] | None = None
    """Whose turn it was when a hook looked first, how many were to come, the data, what it was."""
    _apart: tuple[HookContext, dict[str, Any]] | None = None
    _left: dict[str, Any] | None = None
    """What hooks go on to work with that were left alone at their limit."""

    def __init__(
        self,
        point: str,
        component: ComponentId,
        data: dict[str, Any] | None = None,
        *,
        metadata: dict[str, str] | None = None,
        operation: OperationContext | str | None = None,
        parent: HookContext | None = None,
        language: str = "python",
        correlation_id: str | None = None,
        actor: str | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        self.point = point
        self.component = component
        self._data = {} if data is None else data
        self._operation = operation
        self._said = get_context()
        self._metadata = metadata
        self.parent = parent
        self.language = language
        self._correlation_id = correlation_id
        self._own_actor = actor
        self._timestamp = timestamp

    @classmethod
    def of_operation(
        cls,
        point: str,
        component: ComponentId,
        data: dict[str, Any],
        operation: str,
        actor: str | None = None,
    ) -> HookContext:
        """Return the context of an operation that is called now; for the hot path."""
        context = cls.__new__(cls)
        context.point = point
        context.component = component
        context._data = data  # noqa: SLF001
        context._operation = operation  # noqa: SLF001 - its own kind
        context._own_actor = actor  # noqa: SLF001
        context._said = get_context()  # noqa: SLF001
        return context

    @classmethod
    def of_arguments(
        cls,
        point: str,
        component: ComponentId,
        given: tuple[tuple[str, ...], tuple[Any, ...]],
        operation: str,
        actor: str | None = None,
    ) -> HookContext:
        """Return the context of an operation with these arguments, its data not made yet."""
        context = cls.__new__(cls)
        context.point = point
        context.component = component
        context._given = given  # noqa: SLF001 - its own kind
        context._operation = operation  # noqa: SLF001
        context._own_actor = actor  # noqa: SLF001
        context._said = get_context()  # noqa: SLF001
        return context

    @property
    def data(self) -> dict[str, Any]:
        """What is about to happen, or has: by the name of the method's argument."""
        if self._left is not None and left_alone.get():
            return self._left
        data = self._data
        if data is None:
            names, values = self._given or ((), ())
            data = self._data = dict(zip(names, values, strict=True))
        if self.turn is not None:
            self._note(data)
        return data

    @data.setter
    def data(self, data: dict[str, Any]) -> None:
        if self._left is not None and left_alone.get():
            self._left = data
            return
        if self.turn is not None:
            self._note(self.data)
        self._data = data

    # --- what a hook that fails has changed is undone

    def _note(self, data: dict[str, Any]) -> None:
        """Note what the data is, when the hook whose turn it is looks for the first time."""
        turn, noted = self.turn, self._noted
        if turn is not None:
            left = length_hint(turn)
            if noted is None or noted[0] is not turn or noted[1] != left:
                self._noted = turn, left, data, data.copy()

    def undo(self) -> None:
        """Undo what the hook whose turn it is has assigned in the data."""
        noted, self._apart = self._noted, None
        if noted is None:
            return
        turn, left, data, was = noted
        if turn is not self.turn or left != length_hint(turn):
            return  # it has not even looked
        data.clear()
        data.update(was)
        self._data = data

    def leave(self) -> None:
        """Undo, and leave the data to a hook that goes on beyond its limit; go on with a copy."""
        self.undo()
        self._left, self._noted = self.data, None
        self._data = {name: _copied(value) for name, value in self._left.items()}

    @property
    def is_apart(self) -> bool:
        """Whether the hook whose turn it is has a copy of its own."""
        return self._apart is not None

    def apart(self) -> HookContext:
        """Return a copy for a hook in a thread, which may go on beyond its limit."""
        copied = self.snapshot()
        copied.inputs = self.inputs
        self._apart = copied, dict(copied.data)
        return copied

    def rejoin(self) -> None:
        """Take over what a hook has changed in its copy, in time."""
        if self._apart is None:
            return
        (copied, handed), self._apart = self._apart, None
        data = self.data
        for name in data.keys() - copied.data.keys():
            del data[name]
        for name, value in copied.data.items():
            untouched = name in handed and value is handed[name]
            if not (untouched and name in data and _same(value, data[name])):
                data[name] = value
        if copied.metadata != self.metadata:
            self.metadata.clear()
            self.metadata.update(copied.metadata)

    @property
    def metadata(self) -> dict[str, str]:
        """What hooks tell one another; of a batch: its name, id, size and this key's position."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: dict[str, str]) -> None:
        self._metadata = metadata

    @property
    def id(self) -> str:
        """The id of this run, made when it is asked for."""
        if self._id is None:
            self._id = new_id()
        return self._id

    @property
    def correlation_id(self) -> str | None:
        """What the operation belongs to, if that was said."""
        if self._correlation_id is not None or self._said is None:
            return self._correlation_id
        return self._said.correlation_id

    @property
    def causation_id(self) -> str | None:
        """What caused the operation, if that was said."""
        return None if self._said is None else self._said.causation_id

    @property
    def actor(self) -> str | None:
        """Who called the operation: what was said, else the client; as it stands in the log."""
        said = self._said
        return self._own_actor if said is None or said.actor is None else said.actor

    @property
    def operation(self) -> OperationContext | None:
        """The operation around the hook."""
        operation = self._operation
        if type(operation) is str:
            operation = OperationContext(
                operation, self.id, dict(self.data), self._result, self.error
            )
            self._operation = operation
        return operation  # type: ignore[return-value]

    @property
    def operation_type(self) -> str | None:
        """The method that was called: ``set``, ``delete``, …; cheaper than `operation`."""
        operation = self._operation
        return operation.type if isinstance(operation, OperationContext) else operation

    def finished(self, point: str, result: Any, error: BaseException | None) -> None:
        """Go on to the point behind the operation, which gave this or failed."""
        self.point = point
        self._result = result
        self.error = error
        operation = self._operation
        if isinstance(operation, OperationContext):
            operation.result, operation.error = result, error

    def succeeded(
        self, point: str, given: tuple[tuple[str, ...], tuple[Any, ...]], result: Any
    ) -> None:
        """Go on to the point behind an operation that gave this; `given` is its data by now."""
        self.point = point
        self._result = result
        self._given = given
        operation = self._operation
        if isinstance(operation, OperationContext):
            operation.result = result

    def fork(self, hook: str, fork: Fork) -> None:
        """Note what a hook wants to be carried out beside the operation."""
        if self.forks is None:
            self.forks = []
        self.forks.append((hook, fork))

    @property
    def timestamp(self) -> datetime:
        """When: aware, UTC."""
        if self._timestamp is None:
            self._timestamp = datetime.now(UTC)
        return self._timestamp

    @property
    def is_error(self) -> bool:
        """Whether the operation failed."""
        return self.error is not None

    @property
    def error_message(self) -> str | None:
        """Why the operation failed, as text."""
        return None if self.error is None else str(self.error)

    # --- inputs: what is taken through these can be replayed

    @property
    def inputs(self) -> Inputs:
        """Where the four below take theirs from."""
        return self._inputs

    @inputs.setter
    def inputs(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def now(self) -> datetime:
        """Return the time, aware, UTC; in a replay the recorded one."""
        return self.inputs.now()

    def new_id(self) -> str:
        """Return a new id; in a replay the recorded one."""
        return self.inputs.new_id()

    def random(self) -> float:
        """Return a number from 0 up to 1, without 1; in a replay the recorded one."""
        return self.inputs.random()

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what `function` answers, to be awaited if it is a coroutine function's.

        For whatever comes from outside: another service, a file, shared state. In a replay the
        function is not called: the recorded answer comes back, or the recorded error is raised.
        """
        return self.inputs.call(name, function, args, kwargs)

    def child(self, point: str) -> HookContext:
        """Return a context for a hook point inside this one, of the same correlation."""
        inner = HookContext(
            point,
            self.component,
            dict(self.data),
            metadata=dict(self.metadata),
            operation=self.operation,
            parent=self,
            language=self.language,
            correlation_id=self.correlation_id,
            actor=self._own_actor,
        )
        inner.inputs = self.inputs
        return inner

    def snapshot(self) -> HookContext:
        """Return a copy that later changes do not reach, for whoever looks at it later.

        A value that cannot be copied is shared.
        """
        copied = HookContext(
            self.point,
            self.component,
            {name: _copied(value) for name, value in self.data.items()},
            metadata=dict(self.metadata),
            operation=copy(self._operation),
            parent=self.parent,
            language=self.language,
            correlation_id=self.correlation_id,
            actor=self._own_actor,
            timestamp=self.timestamp,
        )
        copied._id = self.id
        copied._said = self._said
        copied._result, copied.error = self._result, self.error
        return copied

    def __repr__(self) -> str:
        what = "" if self.operation_type is None else f" of {self.operation_type}"
        return f"<{type(self).__name__} {self.point}{what}>"


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:  # noqa: BLE001 - whatever a foreign object raises
        return False


def _copied(value: Any) -> Any:
    if value is KEEP or value is ANY:
        return value  # there is one of each
    try:
        return deepcopy(value)
    except Exception:  # noqa: BLE001 - whatever a foreign object raises
        return value
