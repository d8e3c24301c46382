"""``server start|stop|status``: the embedded server of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command, command_group
from llmspell_dist.cli.wording import wrong
from llmspell_dist.config import default_url, parse_url

if TYPE_CHECKING:
    from llmspell_dist.redis.embedded import ServerStatus

__all__ = ["register"]

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="FOLDER",
        help="Data folder (default: that of --url or LLMSPELL_URL embedded:///…, else the user's).",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = command_group(
        app, "server", "Run a real server on this machine, with its data in a folder."
    )
    command(group, "start")(start)
    command(group, "stop")(stop)
    command(group, "status")(status)


def _folder(settings: Settings, folder: Path | None) -> Path | None:
    if folder is not None:
        return folder
    target = parse_url(settings.url or default_url())
    if target.scheme == "embedded":
        return Path(target.path) if target.path else None
    if settings.url is not None:
        raise wrong("--url", "must be embedded://, for it names the data folder; or give --folder")
    return None


def _document(found: ServerStatus) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "running": found.running,
        "answers": found.answers,
        "pid": found.pid,
        "name": found.name,
        "version": found.version,
        "binary": None if found.binary is None else str(found.binary),
        "uptime_s": found.uptime_s,
        "url": f"embedded://{found.folder}",
        "socket": None if found.socket is None else str(found.socket),
    }


def start(
    settings: Settings,
    *,
    folder: Folder = None,
    binary: Annotated[
        str | None,
        typer.Option("--binary", metavar="FILE", help="redis-server or valkey-server to run."),
    ] = None,
) -> Exit:
    """Start the server, unless it runs already; it outlives this command."""
    from llmspell_dist.redis import embedded  # noqa: PLC0415

    where = _folder(settings, folder)
    before = embedded.status(where).running
    found = embedded.ensure_running(where, binary=binary)
    if settings.as_json:
        settings.output.document(_document(found) | {"started": not before})
        return Exit.OK
    what = "runs already" if before else "started"
    settings.output.say(f"{found.name} {found.version} {what}, process {found.pid}")
    settings.output.say(f"export LLMSPELL_URL=embedded://{found.folder}")
    return Exit.OK


def stop(settings: Settings, *, folder: Folder = None) -> Exit:
    """Stop the server, with everything on disk; also fine if it does not run."""
    from llmspell_dist.redis import embedded  # noqa: PLC0415

    where = _folder(settings, folder)
    stopped = embedded.stop(where)
    if settings.as_json:
        path = str(embedded.status(where).folder)
        settings.output.document({"folder": path, "stopped": stopped})
    else:
        settings.output.say("stopped" if stopped else "it was not running")
    return Exit.OK


def status(settings: Settings, *, folder: Folder = None) -> Exit:
    """Print what is known about the server; exit code 1 if it does not run."""
    from llmspell_dist.redis import embedded  # noqa: PLC0415

    found = embedded.status(_folder(settings, folder))
    if settings.as_json:
        settings.output.document(_document(found))
    else:
        settings.output.fields(_document(found).items())
    return Exit.OK if found.running else Exit.NO
