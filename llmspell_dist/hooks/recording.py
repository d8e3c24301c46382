"""A recorded execution of a hook, and its contexts and results as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from llmspell_dist.context import CommitContext, entered
from llmspell_dist.correlated import HookRun
from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
from llmspell_dist.hooks.inputs import RecordedInput
from llmspell_dist.hooks.kept import RecordedFailure, gaps, keep, keep_error
from llmspell_dist.hooks.results import CONTINUE, ForkOperation, HookResult

__all__ = [
    "Execution",
    "as_result",
    "keep_context",
    "rebuild_context",
    "result_of",
    "result_parts",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_RESULTS: Final = {cls.name: cls for cls in HookResult.__subclasses__()}


@dataclass(frozen=True, slots=True)
class Execution:
    """One recorded execution of a hook."""

    id: str
    hook: str
    version: str
    point: str
    correlation_id: str | None
    """None: nobody said what the operation belonged to."""
    causation_id: str | None
    started_at: datetime
    """Aware, UTC, by the clock of the process that ran it."""
    duration_us: int
    outcome: str
    """The name of the result: ``continue``, ``cancel``, …; ``error`` if it raised."""
    priority: int = 0
    """How much it is worth to be kept: see `HistoryPolicy`."""
    secret: bool = False
    """Whether its body is to be, or was, encrypted."""
    context: dict[str, Any] | None = None
    """What the hook was told, as data; None if it was left out or cannot be read."""
    result: HookResult | None = None
    error: RecordedFailure | None = None
    inputs: tuple[RecordedInput, ...] = ()
    correlated: bool = False
    """Whether it was said what the operation belongs to: only then it is in a timeline."""
    entry: str | None = None
    """Where it lies in the history; None before it is written."""

    @property
    def replay_id(self) -> str:
        """Hook and version, ``name:version``."""
        return f"{self.hook}:{self.version}"

    @property
    def duration(self) -> timedelta:
        """How long it ran."""
        return timedelta(microseconds=self.duration_us)

    @property
    def failed(self) -> bool:
        """Whether the hook raised."""
        return self.outcome == "error"

    @property
    def gaps(self) -> list[str]:
        """The paths of what could not be recorded, each with the reason."""
        if self.context is None:
            return ["context (left out)"]
        found = list(gaps(self.context, "context"))
        found += gaps(result_parts(self.result), "result")
        for place, one in enumerate(self.inputs, 1):
            found += gaps(one.arguments, f"inputs[{place}].arguments")
            found += gaps(one.value, f"inputs[{place}].value")
        return found

    @property
    def summary(self) -> HookRun:
        """What stands about it in the stream of its correlation."""
        return HookRun(
            id=self.id,
            point=self.point,
            hook=self.replay_id,
            result=self.outcome,
            duration_us=self.duration_us,
            time_us=(self.started_at - _EPOCH) // _MICROSECOND,
            causation_id=self.causation_id,
            # Its message may hold the data.
            error=None if self.error is None else self.error.type,
        )


# --- contexts and results as data -----------------------------------------------------------------


def keep_context(context: HookContext) -> dict[str, Any]:
    """Return a context as data, as it is now: later changes do not reach it."""
    operation = context.operation
    data = keep(context.data)
    parents: list[list[str]] = []
    parent = context.parent
    while parent is not None and len(parents) < 100:
        parents.append([parent.point, parent.id])
        parent = parent.parent
    return {
        "point": str(context.point),
        "component": [context.component.type, context.component.name, context.component.id],
        "data": data,
        "metadata": keep(context.metadata),
        "language": context.language,
        "operation": None
        if operation is None
        else {
            "type": operation.type,
            "id": operation.id,
            # Mostly the very same, which is not kept twice.
            "parameters": _unless(data, keep(operation.parameters)),
            "result": keep(operation.result),
            "error": None if operation.error is None else error_parts(keep_error(operation.error)),
        },
        "parents": parents,
        "timestamp": context.timestamp,
        "correlation_id": context.correlation_id,
        "causation_id": context.causation_id,
        "actor": context.actor,
    }


def _unless(same: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return None if parameters == same else parameters
    except Exception:  # noqa: BLE001 - a foreign value that cannot be compared
        return parameters


def rebuild_context(kept: dict[str, Any]) -> HookContext:
    """Return a context that tells a hook what was kept; nothing is shared with `kept`."""
    operation = kept["operation"]
    rebuilt = None
    if operation is not None:
        error = operation["error"]
        rebuilt = OperationContext(
            operation["type"],
            operation["id"],
            keep(kept["data"] if operation["parameters"] is None else operation["parameters"]),
            keep(operation["result"]),
            None if error is None else RecordedFailure(*error).error(),
        )
    component = ComponentId(*kept["component"])
    parent: HookContext | None = None
    for point, parent_id in reversed(kept["parents"]):
        parent = HookContext(point, component, parent=parent, timestamp=kept["timestamp"])
        parent._id = parent_id  # noqa: SLF001 - as it was, not a new one
    # Runs of before the actor was kept have none.
    who, belongs_to, cause = kept.get("actor"), kept["correlation_id"], kept["causation_id"]
    with entered(CommitContext(who, correlation_id=belongs_to, causation_id=cause)):
        context = HookContext(
            kept["point"],
            component,
            keep(kept["data"]),
            metadata=keep(kept["metadata"]),
            operation=rebuilt,
            parent=parent,
            language=kept["language"],
            timestamp=kept["timestamp"],
        )
    if rebuilt is not None:
        context.finished(kept["point"], rebuilt.result, rebuilt.error)
    return context


def as_result(answer: Any) -> HookResult:
    """Return what a hook answered as a result: None is `Continue`; what is none raises TypeError.

    The parts are copies that can be kept.
    """
    if answer is None:
        return CONTINUE
    if not isinstance(answer, HookResult) or type(answer).name not in _RESULTS:
        rule = f"a hook answers with a HookResult or None, not {type(answer).__qualname__}"
        raise TypeError(rule)
    return result_of(result_parts(answer))


def result_parts(result: HookResult | None) -> dict[str, Any]:
    """Return a result as data."""
    if result is None:
        return {}
    parts: dict[str, Any] = {"name": result.name}
    for one in fields(result):
        value = getattr(result, one.name)
        if one.name == "operations":
            value = [[o.id, o.operation_type, keep(dict(o.parameters))] for o in value]
        elif one.name == "data":
            value = keep(dict(value))
        else:
            value = keep(value)
        parts[one.name] = value
    return parts


def result_of(parts: dict[str, Any]) -> HookResult:
    """Return the result that `result_parts` was given."""
    named = dict(parts)
    cls = _RESULTS[named.pop("name")]
    if "operations" in named:
        named["operations"] = tuple(ForkOperation(*one) for one in named["operations"])
    return cls(**named)


def error_parts(error: RecordedFailure) -> list[Any]:
    """Return an error as data."""
    return [error.type, error.message, error.code, error.facts]


def input_parts(one: RecordedInput) -> list[Any]:
    """Return an input as data."""
    error = None if one.error is None else error_parts(one.error)
    return [one.kind, one.name, one.arguments, one.value, error, one.awaited]


def input_of(parts: list[Any]) -> RecordedInput:
    """Return the input that `input_parts` was given."""
    kind, name, arguments, value, error, awaited = parts
    return RecordedInput(
        kind, name, arguments, value, None if error is None else RecordedFailure(*error), awaited
    )
