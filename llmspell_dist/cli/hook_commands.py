"""``hooks …``: what replayable hooks did, whether they would do it again, and what is planned."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command, command_group
from llmspell_dist.cli.wording import wrong
from llmspell_dist.hooks.kept import Unrecorded
from llmspell_dist.hooks.recording import result_parts
from llmspell_dist.jsonable import to_json
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.hooks.recording import Execution
    from llmspell_dist.hooks.replay_model import Replayed
    from llmspell_dist.hooks.schedules import ScheduleStatus

__all__ = ["register"]

SCHEDULES = ("name", "next", "runs", "identical", "first difference")

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a recorded run.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = command_group(app, "hooks", "Look at what replayable hooks did, and replay it.")
    command(group, "history")(history)
    command(group, "show")(show)
    command(group, "replay")(replay)
    command(group, "schedules")(schedules)


async def history(
    settings: Settings,
    *,
    hook: Annotated[str | None, typer.Option("--hook", metavar="NAME", help="Of a hook.")] = None,
    point: Annotated[
        str | None, typer.Option("--point", metavar="POINT", help="At a hook point.")
    ] = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="ID", help="Of a correlation.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that raised.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="At most so many.")
    ] = 100,
) -> Exit:
    """List recorded runs of hooks, the newest first."""
    asked = {"hook": hook, "point": point, "correlation_id": correlation}
    if settings.through_sidecar:
        runs = await _told_by_sidecar(settings, limit, failed=failed, **asked)
    else:
        async with settings.connect() as spell:
            found = await spell.hooks.history.query(
                **asked, failed=True if failed else None, limit=limit, newest_first=True
            )
        runs = [Head.of(one) for one in found]
    if settings.as_json:
        settings.output.document({"executions": [one.document for one in runs]})
    elif settings.output.terminal:
        settings.output.lines(line for one in runs for line in lines(one))
    else:
        settings.output.table((), map(row, runs))
    return Exit.OK


async def _told_by_sidecar(
    settings: Settings, limit: int, *, failed: bool, **asked: str | None
) -> list[Head]:
    from llmspell_dist.remote.operators import Operators  # noqa: PLC0415

    async with settings.connect() as spell:
        told = await Operators(spell).hook_runs(limit, failed="true" if failed else None, **asked)
    return [Head.told(one) for one in told]


async def show(settings: Settings, execution_id: Id) -> Exit:
    """Print one recorded run: what the hook was told, took and answered."""
    async with settings.connect() as spell:
        if settings.through_sidecar:
            from llmspell_dist.remote.operators import Operators  # noqa: PLC0415

            document = told_document(await Operators(spell).hook_run(execution_id))
        else:
            document = execution_document(await spell.hooks.history.get(execution_id))
    if settings.as_json:
        settings.output.document(document)
    else:
        settings.output.value(document)
    return Exit.OK


async def replay(
    settings: Settings,
    execution_id: Id,
    *,
    function: Annotated[
        str,
        typer.Option("--hook", metavar="MODULE:FUNCTION", help="The hook's code, as it is now."),
    ],
    mode: Annotated[
        str, typer.Option("--mode", metavar="MODE", help="exact, modified or simulate.")
    ] = "simulate",
) -> Exit:
    """Run a recorded hook again and say what it did otherwise; exit code 1 if anything.

    The code is imported from this folder. By default it is simulated: what it writes is refused.
    """
    hook = loaded(function)
    async with settings.connect() as spell:
        replayed = await spell.replay.run(execution_id, mode=mode, hook=hook)
    if settings.as_json:
        settings.output.document(replayed_document(replayed))
    else:
        first = replayed.first_difference
        said = "identical" if first is None else f"first difference: {first}"
        settings.output.say(f"{replayed.execution.replay_id}: {said}")
        for scope in replayed.refused_writes:
            settings.output.say(f"would have written to {scope}")
    return Exit.OK if replayed.identical else Exit.NO


async def schedules(settings: Settings) -> Exit:
    """List what is to be replayed when, how often it ran, and what the last run said."""
    async with settings.connect() as spell:
        found = await spell.replay.schedules.list()
    if settings.as_json:
        settings.output.document({"schedules": [schedule_document(one) for one in found]})
    else:
        settings.output.table(SCHEDULES, map(schedule_row, found))
    return Exit.OK


def loaded(function: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names, the module imported from here."""
    module, colon, name = function.partition(":")
    if not (module and colon and name):
        raise wrong("--hook", "must look like package.module:function")
    here = os.getcwd()  # noqa: PTH109 - as text, which sys.path has
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise wrong("--hook", f"cannot be imported ({error})") from None
    except Exception as error:  # noqa: BLE001 - whatever a module of the user raises
        said = f"{type(error).__name__}: {error}"
        rule = "what a program does when it is run belongs under if __name__ == '__main__'"
        raise wrong("--hook", f"cannot be imported ({said}); {rule}") from None
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise wrong("--hook", f"cannot be imported ({error})") from None
    found = getattr(found, "execute", found)
    if not callable(found):
        raise wrong("--hook", "must name a function, or an object with execute(ctx)")
    call: Callable[..., Any] = found
    return call


# --- as rows and documents ------------------------------------------------------------------------


class Head(NamedTuple):
    """What is known of a run without what it saw and said."""

    id: str
    hook: str
    version: str
    point: str
    started: datetime
    duration_us: int
    outcome: str
    correlation_id: str | None
    causation_id: str | None
    error: str | None
    readable: bool

    @classmethod
    def of(cls, one: Execution) -> Head:
        """Return that of a run of the library."""
        return cls(
            *(one.id, one.hook, one.version, one.point, one.started_at, one.duration_us),
            *(one.outcome, one.correlation_id, one.causation_id),
            None if one.error is None else one.error.type,
            one.context is not None,
        )

    @classmethod
    def told(cls, one: Mapping[str, Any]) -> Head:
        """Return that of a run as a sidecar tells it."""
        error = one["error"]
        told = {name: one[name] for name in cls._fields if name in one}
        told |= {"error": error and error["type"], "readable": one["context"] is not None}
        return cls(**told)

    @property
    def replay_id(self) -> str:
        """Hook and version, ``name:version``."""
        return f"{self.hook}:{self.version}"

    @property
    def document(self) -> dict[str, Any]:
        """It as JSON."""
        return self._asdict() | {"started": self.started.isoformat()}


def row(one: Head) -> tuple[str, ...]:
    """Return a run as a line."""
    return (
        one.started.isoformat(timespec="milliseconds"),
        one.replay_id,
        one.point,
        one.outcome,
        f"{one.duration_us / 1000:.3f}ms",
        one.correlation_id or "-",
        one.id,
    )


def lines(one: Head) -> list[str]:
    """Return a run as it fits a narrow terminal: ids are whole, to be copied."""
    started = f"{one.started:%Y-%m-%dT%H:%M:%S}Z"
    first = f"{one.id}  {started}  {one.outcome}  {one.duration_us / 1000:.1f}ms"
    said = [first, f"    {one.replay_id} at {one.point}"]
    if one.correlation_id is not None:
        said.append(f"    of {one.correlation_id}")
    return said


def schedule_row(one: ScheduleStatus) -> tuple[str, ...]:
    """Return a schedule as a line."""
    said = one.progress
    return (
        one.name,
        "-" if one.next is None else f"{one.next:%Y-%m-%dT%H:%M:%SZ}",
        str(said.runs),
        f"{said.last_identical}/{said.last_total}",
        said.last_difference or "-",
    )


def schedule_document(one: ScheduleStatus) -> dict[str, Any]:
    """Return a schedule and how far it has come."""
    said = one.progress
    return {
        "name": one.name,
        "enabled": one.replay.enabled,
        "next": None if one.next is None else one.next.isoformat(),
        "runs": said.runs,
        "left_out": said.left_out,
        "last": {
            "due": None if said.last_due is None else said.last_due.isoformat(),
            "total": said.last_total,
            "identical": said.last_identical,
            "failed": said.last_failed,
            "first_difference": said.last_difference,
        },
    }


def execution_document(one: Execution) -> dict[str, Any]:
    """Return all of a run."""
    error = one.error
    return {
        **Head.of(one).document,
        "context": shown(one.context),
        "result": None if one.result is None else shown(result_parts(one.result)),
        "error": None if error is None else {"type": error.type, "message": error.message},
        "inputs": [
            {
                "kind": taken.kind,
                "name": taken.name,
                "arguments": shown(taken.arguments),
                "value": shown(taken.value),
                "error": None if taken.error is None else taken.error.type,
            }
            for taken in one.inputs
        ],
        "gaps": one.gaps,
    }


def told_document(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a run as a sidecar tells it, whose data are plain."""
    return {
        **Head.told(one).document,
        **{name: to_json(one[name]) for name in ("context", "result", "error", "inputs", "gaps")},
    }


def replayed_document(one: Replayed) -> dict[str, Any]:
    """Return what became of a replay."""
    comparison = one.comparison
    return {
        "id": one.execution.id,
        "mode": str(one.mode),
        "identical": one.identical,
        "first_difference": one.first_difference,
        "result": None if one.result is None else shown(result_parts(one.result)),
        "error": None if one.error is None else one.error.type,
        "type": None if comparison is None or comparison.type is None else str(comparison.type),
        "differences": [] if comparison is None else [str(one) for one in comparison.differences],
        "refused_writes": list(one.refused_writes),
        "gaps": list(one.gaps),
    }


def shown(value: Any) -> Any:
    """Return recorded data as JSON; what could not be recorded as text that says so."""
    return to_json(_plain(value))


def _plain(value: Any) -> Any:
    if type(value) is Unrecorded or value is KEEP:
        return repr(value)
    if type(value) is dict:
        return {name: _plain(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return [_plain(part) for part in value]
    return value
