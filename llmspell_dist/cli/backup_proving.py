"""``backup verify|drill|drills``: whether backups are whole, and bring back what was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli.backup_options import (
    NICE,
    At,
    Keys,
    Nice,
    To,
    moment,
    opened,
    tell,
    the_id,
)
from llmspell_dist.cli.backup_views import iso, said_moment
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.progress import shown
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import spoken

if TYPE_CHECKING:
    from llmspell_dist.backup.proving import DrillReport

__all__ = ["register"]

DRILL_COLUMNS: Final = (
    "ID",
    "AT",
    "MOMENT",
    "SCOPES",
    "RECORDS",
    "MISMATCHES",
    "UNCHECKED",
    "OK",
    "BACKUP",
)


def register(group: typer.Typer) -> None:
    """Add the commands."""
    command(group, "verify")(verify)
    command(group, "drill")(drill)
    command(group, "drills")(drills)


async def verify(
    settings: Settings,
    backup_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of a backup, or latest; default: all.")
    ] = None,
    *,
    level: Annotated[
        str,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="structure (is all there?), hashes (read all) or full (decrypt and unpack, too).",
        ),
    ] = "hashes",
    sample: Annotated[
        float,
        typer.Option(
            "--sample", metavar="PART", min=0.0, max=1.0, help="Read only this part of the objects."
        ),
    ] = 1.0,
    nice: Nice = NICE,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Check that backups are whole and the log has no gap; exit code 5 if anything is wrong.

    That there is nothing at all is wrong, too.
    """
    async with opened(settings, to, keys, nice=nice) as store:
        chosen = None if backup_id is None else await the_id(store, backup_id)
        with shown(settings) as progress:
            report = await store.verify(chosen, level=level, sample=sample, progress=progress)
        label = store.label
    output = settings.output
    if settings.as_json:
        output.document(report.as_data() | {"target": label})
    else:
        output.table((), [(one.about, one.name or "-", one.reason) for one in report.findings])
        tell(settings, str(report).partition("\n")[0])
    return Exit.OK if report.ok else Exit.DATA


# --- drills ---------------------------------------------------------------------------------------


async def drill(settings: Settings, *, at: At = "latest", to: To = None, keys: Keys = None) -> Exit:
    """Restore a moment into a scratch server and compare every key with what it was.

    Exit code 5 if a key is not as it was. The result is kept beside the backups.
    """
    point = moment(at)
    async with opened(settings, to, keys) as store:
        with shown(settings) as progress:
            report = await store.drill(point, progress=progress)
    output = settings.output
    if settings.as_json:
        output.document(_drill_document(report))
    else:
        if not settings.quiet:
            output.fields(_drill_fields(report))
        rows = [("mismatch", one.what, one.scope, one.key) for one in report.named]
        output.table(("", "WHAT", "SCOPE", "KEY"), rows)
    return Exit.OK if report.ok else Exit.DATA


async def drills(settings: Settings, *, to: To = None, keys: Keys = None) -> Exit:
    """List what drills have proved, oldest first; exit code 1 if nothing is proved."""
    async with opened(settings, to, keys) as store:
        found, proved = await store.drills(), await store.last_proof()
    output = settings.output
    if settings.as_json:
        documents = [_drill_document(one) for one in found]
        output.document({"last_proof": iso(proved), "drills": documents})
    else:
        output.table(DRILL_COLUMNS, map(_drill_row, found))
        if not found:
            tell(settings, "no backup was ever restored to try it: llmspell-dist backup drill")
    return Exit.NO if proved is None else Exit.OK


def _drill_document(report: DrillReport) -> dict[str, Any]:
    return {
        "id": report.id,
        "at": iso(report.at),
        "ok": report.ok,
        "backup": report.backup,
        "moment": iso(report.moment),
        "sources": list(report.sources),
        "scopes": report.scopes,
        "records": report.records,
        "mismatches": report.mismatches,
        "unchecked": report.unchecked,
        "inexact": report.inexact,
        "digest": report.digest,
        "seconds": report.seconds,
        "keys": [{"scope": one.scope, "key": one.key, "what": one.what} for one in report.named],
    }


def _drill_fields(report: DrillReport) -> list[tuple[str, object]]:
    return [
        ("restored as of", said_moment(iso(report.moment))),
        ("backup", report.backup),
        ("from", ", ".join(report.sources)),
        ("scopes", f"{report.scopes:,}"),
        ("records", f"{report.records:,}"),
        ("not as they were", f"{report.mismatches:,}"),
        ("could not be compared", f"{report.unchecked:,}"),
        ("took", spoken(report.seconds)),
        ("proved", "yes" if report.ok else "no"),
    ]


def _drill_row(report: DrillReport) -> tuple[str, ...]:
    return (
        report.id,
        iso(report.at) or "-",
        iso(report.moment) or "-",
        str(report.scopes),
        str(report.records),
        str(report.mismatches),
        str(report.unchecked),
        "yes" if report.ok else "no",
        report.backup,
    )
