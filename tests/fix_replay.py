"""What the tests of replayed and of fleet hooks share: executions, contexts and a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from llmspell_dist.hooks.context import ComponentId, HookContext, OperationContext
from llmspell_dist.hooks.inputs import RecordedInput
from llmspell_dist.hooks.kept import RecordedFailure
from llmspell_dist.hooks.recording import Execution, keep_context
from llmspell_dist.hooks.results import CONTINUE, HookResult

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POINT = "BeforeStateWrite"


class Watch:
    """A clock that a test sets."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, **by: float) -> None:
        """Let time pass."""
        self.now += timedelta(**by)


def told(data: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
    """Return what a hook was told, as history keeps it."""
    given = {"x": 1} if data is None else data
    operation = OperationContext("set", "op-1", {"other": 1})
    context = HookContext(
        POINT, ComponentId("agent", "a"), given, operation=operation, timestamp=START, **how
    )
    return keep_context(context)


def execution(
    number: int = 1,
    *,
    hook: str = "h",
    result: HookResult | None = CONTINUE,
    error: RecordedFailure | None = None,
    inputs: tuple[RecordedInput, ...] = (),
    data: dict[str, Any] | None = None,
    **more: Any,
) -> Execution:
    """Return an execution as it comes from the history."""
    fields: dict[str, Any] = {
        "id": f"run-{number}",
        "hook": hook,
        "version": "1.0.0",
        "point": POINT,
        "correlation_id": "c-1",
        "causation_id": None,
        "started_at": START + timedelta(seconds=number),
        "duration_us": 10 * number,
        "outcome": "error" if error is not None else (result or CONTINUE).name,
        "context": told(data),
        "result": None if error is not None else result,
        "error": error,
        "inputs": inputs,
    }
    return Execution(**{**fields, **more})
