"""The live view: what the state in Redis says right now, as a table or as plain lines."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, Self

import llmspell_dist
from examples.demo import plan
from examples.demo.plan import Task

__all__ = ["Progress", "View", "look", "view_for", "watch"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at the shared state."""

    messages: int
    of_messages: int
    calls: int
    claims: dict[str, int]
    taken_over: int
    workers: list[tuple[str, int, str]]
    """Name, budget, and what its seats do."""


class View(Protocol):
    """Somewhere to show progress; used as a context, so that a terminal is left tidy."""

    refresh_seconds: float

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def show(self, progress: Progress) -> None:
        """Show the newest look."""


async def look(state: llmspell_dist.StateManager, tasks: list[Task], workers: int) -> Progress:
    """Read progress from the state; nothing here asks the worker processes."""
    claims = await state.get_many(plan.BOARD, [plan.claim_key(task.id) for task in tasks])
    rows = []
    for worker in range(workers):
        everything = await state.get_many(
            plan.worker_scope(worker), [plan.BUDGET, *_status_keys(worker)]
        )
        seats = [everything[key] for key in _status_keys(worker) if key in everything]
        doing = ", ".join(f"{seat['task']} #{seat['turn']}" for seat in seats)
        rows.append((f"worker-{worker}", everything.get(plan.BUDGET, 0), doing))
    return Progress(
        messages=await state.get(plan.BOARD, plan.MESSAGES, 0),
        of_messages=sum(len(task.recording.turns) for task in tasks),
        calls=await state.get(plan.BOARD, plan.CALLS, 0),
        claims=Counter(claim["state"] for claim in claims.values()),
        taken_over=sum(claim["attempt"] > 1 for claim in claims.values()),
        workers=rows,
    )


async def watch(view: View, look_now: Callable[[], Awaitable[Progress]]) -> None:
    """Refresh the view until cancelled."""
    while True:
        view.show(await look_now())
        await asyncio.sleep(view.refresh_seconds)


def view_for(*, plain: bool) -> View:
    """Return a live table on a terminal that has rich, else plain lines."""
    if plain or not sys.stdout.isatty() or find_spec("rich") is None:
        return PlainView()
    return RichView()


def _status_keys(worker: int) -> list[str]:
    seats = [plan.seat_name(worker, seat) for seat in range(plan.SEATS)]
    return [f"{plan.STATUS} {seat}" for seat in seats]


def _summary(progress: Progress) -> str:
    claims = progress.claims
    return (
        f"{progress.messages:>6,} of {progress.of_messages:,} messages  "
        f"tasks: {claims.get('open', 0)} open, {claims.get('claimed', 0)} claimed, "
        f"{claims.get('done', 0)} done  {progress.taken_over} taken over  "
        f"budgets: {' + '.join(str(budget) for _, budget, _ in progress.workers)}"
    )


class PlainView:
    """A line per look, for logs and pipes; a look that shows nothing new prints nothing."""

    refresh_seconds = 0.5

    def __init__(self) -> None:
        """Start with nothing shown."""
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, progress: Progress) -> None:
        """Print the look if it differs from the one before."""
        line = _summary(progress)
        if line != self._last:
            print(line, flush=True)
            self._last = line


class RichView:
    """A table that redraws itself in place."""

    refresh_seconds = 0.1

    def __init__(self) -> None:
        """Prepare the table; the terminal is touched on entering."""
        from rich.live import Live  # noqa: PLC0415 - only on a terminal that has it

        self._live = Live(auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Redraw the table."""
        from rich.table import Table  # noqa: PLC0415 - as above

        table = Table(title=_summary(progress).strip(), title_justify="left")
        for column in ("process", "budget", "replays"):
            table.add_column(column, justify="right" if column == "budget" else "left")
        for name, budget, doing in progress.workers:
            table.add_row(name, f"{budget:,}", doing)
        self._live.update(table, refresh=True)
