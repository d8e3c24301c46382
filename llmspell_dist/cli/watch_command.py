"""``watch``: the changes of a scope as they come, one line each."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmspell_dist.cli.arguments import parse_since
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.list_commands import Limit, Prefix
from llmspell_dist.cli.output import printable
from llmspell_dist.cli.records import change_document, change_row
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.state_commands import ScopeArgument, ShowSensitive

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "watch")(watch)


async def watch(
    settings: Settings,
    scope: ScopeArgument,
    *,
    prefix: Prefix = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="REV", help="After this revision; 0-0: from the first."),
    ] = None,
    snapshot: Annotated[
        bool,
        typer.Option("--snapshot", help="What is there, if the log does not reach back."),
    ] = False,
    limit: Limit = None,
    show_sensitive: ShowSensitive = False,
) -> Exit:
    """Print the changes of a scope as they come, until Ctrl-C.

    With --json one document a line.
    """
    output = settings.output
    after = parse_since(since)
    left = limit
    async with (
        settings.connect() as spell,
        spell.state.watch(
            scope, prefix=prefix, since=after, on_trimmed="snapshot" if snapshot else "raise"
        ) as changes,
    ):
        async for change in changes:
            document = change_document(change, show_sensitive=show_sensitive)
            if output.as_json:
                print(output.dumps({"scope": change.scope, "key": change.key, **document}))
            else:
                revision, time, op, *rest = change_row(document, output)
                print("\t".join(map(printable, (revision, time, op, change.key or "-", *rest))))
            sys.stdout.flush()  # whoever reads a pipe waits for this line
            if left is not None:
                left -= 1
                if not left:
                    break
    return Exit.OK
