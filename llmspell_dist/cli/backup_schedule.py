"""``backup schedule``: make backups at certain moments, as one of a fleet that shares the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli.backup_archive import complaints
from llmspell_dist.cli.backup_keeping import span
from llmspell_dist.cli.backup_options import (
    NICE,
    Include,
    Keys,
    Nice,
    Plaintext,
    To,
    opened,
    tell,
    until_stopped,
)
from llmspell_dist.cli.backup_views import iso
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import renamed, wrong
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.backup.schedules import ScheduleStatus

__all__ = ["register"]

_TYPED: Final = {
    "when": "--cron",
    "expression": "--cron",
    "between": "--between",
    "retention": "--policy",
}


def register(group: typer.Typer) -> None:
    """Add the command."""
    command(group, "schedule")(schedule)


async def schedule(
    settings: Settings,
    *,
    cron: Annotated[
        str, typer.Option("--cron", metavar="CRON", help="When, in UTC: '0 * * * *' is every hour.")
    ],
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="Processes with the same name share the work."),
    ] = "main",
    full_every: Annotated[
        str,
        typer.Option(
            "--full-every", metavar="N|TIME", help="A full one every N backups, or every 7d."
        ),
    ] = "7",
    between: Annotated[
        str,
        typer.Option("--between", metavar="TYPE", help="Else: incremental or differential."),
    ] = "incremental",
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="TEXT", help="What stays after each; default: all."),
    ] = None,
    include: Include = None,
    once: Annotated[bool, typer.Option("--once", help="Make what is due now, and end.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only say how far it has come.")] = False,
    nice: Nice = NICE,
    to: To = None,
    keys: Keys = None,
    plaintext: Plaintext = False,
) -> Exit:
    """Make backups by a cron expression until SIGTERM or Ctrl-C.

    Run it wherever you like, several times too: each backup is made by one of them, and another one
    takes over when that dies. With --status exit code 1 if none has run it yet.
    """
    if once and status:
        raise wrong("--once", "must not be given with --status")
    wanted = _schedule(
        name=name,
        when=cron,
        full_every=int(full_every) if full_every.isdecimal() else span("--full-every", full_every),
        between=between,
        retention=policy,
        include=tuple(include or ()),
    )
    async with opened(settings, to, keys, nice=nice, plaintext=plaintext) as store:
        one = store.on_schedule(wanted)
        if not (status or once):
            with complaints():
                async with until_stopped() as stop:
                    await one.run(stop)
        found = await (one.once() if once else one.status())
    if status and not found.begun:
        tell(settings, f"no process has run schedule {wanted.name} yet")
    if settings.as_json:
        settings.output.document(_document(found))
    else:
        settings.output.fields(_document(found).items())
    return Exit.NO if status and not found.begun else Exit.OK


def _schedule(**fields: Any) -> Any:
    from llmspell_dist.backup.schedule_model import BackupSchedule  # noqa: PLC0415

    try:
        return BackupSchedule(**fields)
    except InvalidArgumentError as error:
        option = _TYPED.get(error.argument, f"--{error.argument.replace('_', '-')}")
        raise renamed(error, option) from None


def _document(found: ScheduleStatus) -> dict[str, Any]:
    progress = found.progress
    return {
        "name": found.schedule.name,
        "schedule": str(found.schedule),
        "begun": found.begun,
        "next": iso(found.next),
        "runs": progress.runs,
        "missed": progress.missed,
        "attempts": progress.attempts,
        "last_due": iso(progress.last_due),
        "last_ended": iso(progress.last_ended),
        "last_backup": progress.last_backup or None,
        "last_type": progress.last_type or None,
        "last_error": progress.last_error or None,
    }
