"""The commands of ``llmspell-dist``, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import llmspell_dist
from llmspell_dist.cli import (
    backup_commands,
    doctor_command,
    event_commands,
    hook_commands,
    lease_commands,
    list_commands,
    server_commands,
    sidecar_command,
    stat_command,
    state_commands,
    timeline_command,
    watch_command,
)
from llmspell_dist.cli.exits import EXIT_CODES, Exit
from llmspell_dist.cli.settings import Json, Namespace, Quiet, Settings, TokenFile, Url

__all__ = ["app"]

# An empty line between them, or they would be set as one paragraph.
_CODES = "\n\n".join(f"{code.value:>5}  {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="llmspell-dist",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Exit codes:\n\n{_CODES}",
)


def _version(value: bool) -> None:
    if value:
        print(f"llmspell-dist {llmspell_dist.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def everything(
    context: typer.Context,
    *,
    url: Url = None,
    namespace: Namespace = None,
    as_json: Json = False,
    quiet: Quiet = False,
    token_file: TokenFile = None,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Look at and change the state that LLM agent processes share through Redis or Valkey."""
    del version
    context.obj = Settings(url, namespace, as_json, quiet, token_file)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(Exit.USAGE)


state_commands.register(app)
list_commands.register(app)
watch_command.register(app)
stat_command.register(app)
lease_commands.register(app)
timeline_command.register(app)
hook_commands.register(app)
event_commands.register(app)
backup_commands.register(app)
doctor_command.register(app)
server_commands.register(app)
sidecar_command.register(app)
