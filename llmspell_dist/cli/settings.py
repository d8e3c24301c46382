"""The options that every command takes, before or after its name, and how a command runs."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import Output
from llmspell_dist.client import connect
from llmspell_dist.config import Options, default_url, names_sidecar

__all__ = ["GLOBALS", "Settings", "command", "command_group"]

_PANEL: Final = "Options of every command"
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Server: redis:// rediss:// unix:// embedded://, or a sidecar: http:// https:// "
        "http+unix:// (default: LLMSPELL_URL, else redis://127.0.0.1:6379/0).",
        rich_help_panel=_PANEL,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Namespace (default: LLMSPELL_NAMESPACE, else llmspell).",
        rich_help_panel=_PANEL,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="What is shown to a sidecar stands in it (default: LLMSPELL_TOKEN, else the file "
        "LLMSPELL_TOKEN_FILE).",
        rich_help_panel=_PANEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document.", rich_help_panel=_PANEL),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no confirmations.", rich_help_panel=_PANEL),
]
GLOBALS: Final[dict[str, tuple[Any, Any]]] = {
    "url": (Url, None),
    "namespace": (Namespace, None),
    "as_json": (Json, False),
    "quiet": (Quiet, False),
    "token_file": (TokenFile, None),
}
"""Parameter name: annotation and default."""


PATIENCE_S: Final = 3.0
"""Somebody waits at the keyboard."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options of every command say."""

    url: str | None = None
    namespace: str | None = None
    as_json: bool = False
    quiet: bool = False
    token_file: Path | None = None

    def with_more(
        self,
        *,
        url: str | None,
        namespace: str | None,
        as_json: bool,
        quiet: bool,
        token_file: Path | None,
    ) -> Settings:
        """Return these settings with those given after the command's name, which go before."""
        return replace(
            self,
            url=self.url if url is None else url,
            namespace=self.namespace if namespace is None else namespace,
            as_json=self.as_json or as_json,
            quiet=self.quiet or quiet,
            token_file=self.token_file if token_file is None else token_file,
        )

    @property
    def output(self) -> Output:
        """Where the answer goes."""
        return Output(as_json=self.as_json, quiet=self.quiet)

    @property
    def options(self) -> Options:
        """The options of the client."""
        # The fleet's own clients keep house. This one does not know their retention, and would
        # shorten the log to the default one.
        return Options(namespace=self.namespace, housekeeping=False, retry_budget=PATIENCE_S)

    @property
    def through_sidecar(self) -> bool:
        """Whether the server is a sidecar."""
        url = default_url() if self.url is None else self.url
        return names_sidecar(url)

    def connect(self, *, patient: bool = False) -> Any:
        """Return the client, for ``async with``.

        `patient`: what it does takes long, so an outage is waited for as programs do.
        """
        options = self.options
        if patient:
            options = replace(options, retry_budget=Options().retry_budget)
        return connect(self.url, options=options, token=self.token_file)

    @contextmanager
    def in_turns(self) -> Iterator[tuple[Run, Any]]:
        """Give what runs a coroutine, and the open client, for one request after the other.

        Between them no event loop runs: a question on the terminal may stand there, and Ctrl-C
        ends it.
        """
        with asyncio.Runner() as runner:
            spell = runner.run(self._opened())
            try:
                yield runner.run, spell
            finally:
                runner.run(spell.close())

    async def _opened(self) -> Any:
        return await self.connect()


Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end and returns its result."""
Body = Callable[..., Exit | Coroutine[Any, Any, Exit]]


def command_group(app: typer.Typer, name: str, about: str) -> typer.Typer:
    """Add a group of commands; without one of them it shows its help, as a usage error."""
    group = typer.Typer(help=about)

    @group.callback(invoke_without_command=True)
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(Exit.USAGE)

    app.add_typer(group, name=name)
    return group


def command(
    app: typer.Typer, name: str, *, context_settings: dict[str, Any] | None = None
) -> Callable[[Body], Body]:
    """Make a function a command: it gets `Settings` first and returns its exit code.

    The options of every command are added to its own. A coroutine function runs in an event loop.
    """

    def register(body: Body) -> Body:
        hints = get_type_hints(body, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(body).parameters.values())[1:]
        ]
        everybodys = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in GLOBALS.items()
        ]
        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [context, *own, *everybodys]

        @functools.wraps(body)
        def run(context: typer.Context, **given: Any) -> None:
            before = context.find_root().obj or Settings()
            settings = before.with_more(**{key: given.pop(key) for key in GLOBALS})
            context.find_root().obj = settings
            try:
                result = body(settings, **given)
                code = result if isinstance(result, Exit) else asyncio.run(result)
            # Here, because typer would print something or choose another exit code.
            except BrokenPipeError:
                code = Exit.PIPE
            except KeyboardInterrupt:
                code = Exit.INTERRUPTED
            if code:
                raise typer.Exit(int(code))

        del run.__wrapped__  # its signature is not the body's
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, context_settings=context_settings)(run)
        return body

    return register
