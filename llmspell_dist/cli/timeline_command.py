"""``timeline``: what happened in a correlation, as a tree of causes and effects."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import printable
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.timelines import entry_row, tree_of
from llmspell_dist.correlation import TimelineConfig
from llmspell_dist.correlation.documents import timeline_document
from llmspell_dist.correlation.model import MAX_ENTRIES

__all__ = ["register"]

_DEPTH: Final = 10
"""As many levels as a terminal of 80 columns has room for."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "timeline")(timeline)


async def timeline(
    settings: Settings,
    correlation_id: Annotated[str, typer.Argument(metavar="ID", help="The correlation id.")],
    *,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", min=1, help="At most so many levels of a tree.")
    ] = _DEPTH,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MAX_ENTRIES, help="The first so many.")
    ] = MAX_ENTRIES,
    auto_link: Annotated[
        bool, typer.Option("--auto-link", help="Guess causes from types and times.")
    ] = False,
) -> Exit:
    """Draw what happened in a correlation: events, commits, hook runs and leases by their causes.

    Exit code 1 if nothing is kept of it, which stderr says. On a pipe one line per entry: position,
    time, kind, depth, causes, type, id, source, what it is about. Values are not shown.
    """
    config = TimelineConfig(max_entries=limit, auto_link=auto_link)
    async with settings.connect() as spell:
        found = await spell.correlation.timeline(correlation_id, config=config)
    output = settings.output
    if settings.as_json:
        output.document(timeline_document(found))
    elif not found.entries:
        if not output.quiet:
            said = f"nothing is kept of correlation {correlation_id}"
            print(printable(said), file=sys.stderr)
    elif not output.terminal:
        output.table((), map(entry_row, found))
    else:
        from rich.console import Console  # noqa: PLC0415 - only for a terminal

        Console().print(tree_of(found, depth))
    return Exit.OK if found.entries else Exit.NO
