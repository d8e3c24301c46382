"""``backup create|list|info|keygen|rewrap|export|import``: make backups, and look at them.

What gets state back, removes and proves stands in modules beside this one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from llmspell_dist.cli import (
    backup_archive,
    backup_keeping,
    backup_proving,
    backup_restoring,
    backup_schedule,
)
from llmspell_dist.cli.backup_options import (
    KEYS_VARIABLE,
    NICE,
    BackupId,
    Include,
    Keys,
    Nice,
    Plaintext,
    Scopes,
    To,
    opened,
    parse_tags,
    tell,
    the_id,
)
from llmspell_dist.cli.backup_views import (
    BACKUP_COLUMNS,
    backup_document,
    backup_fields,
    backup_row,
)
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.progress import shown
from llmspell_dist.cli.settings import Settings, command, command_group
from llmspell_dist.cli.wording import counted, renamed, wrong
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["register"]

File = Annotated[Path, typer.Argument(metavar="FILE", help="One file with the whole backup.")]
Tag = Annotated[
    list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="Can be repeated.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = command_group(app, "backup", "Backups to S3 or a folder: make, prove, restore them.")
    command(group, "create")(create)
    command(group, "list")(list_)
    command(group, "info")(info)
    backup_proving.register(group)
    backup_restoring.register(group)
    backup_keeping.register(group)
    backup_archive.register(group)
    backup_schedule.register(group)
    command(group, "export")(export)
    command(group, "import")(import_)
    command(group, "keygen")(keygen)
    command(group, "rewrap")(rewrap)


async def create(
    settings: Settings,
    *,
    kind: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="full, incremental or differential.")
    ] = "full",
    scopes: Scopes = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="CLASS", help="Only this state class; can be repeated."),
    ] = None,
    include: Include = None,
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="ID", help="Go on from this one, not the newest."),
    ] = None,
    tag: Tag = None,
    importance: Annotated[
        str,
        typer.Option("--importance", metavar="LEVEL", help="low, standard, important, critical."),
    ] = "standard",
    compression: Annotated[
        str,
        typer.Option("--compression", metavar="HOW", help="zstd, zstd:LEVEL, gzip, lz4 or none."),
    ] = "zstd",
    keep_log: Annotated[
        bool,
        typer.Option("--keep-log", help="Keep the log from here on, for an incremental one."),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Store everything again, also what is there already.")
    ] = False,
    nice: Nice = NICE,
    to: To = None,
    keys: Keys = None,
    plaintext: Plaintext = False,
) -> Exit:
    """Make a backup and print its id: the state as of one moment, while writers go on."""
    tags = parse_tags(tag)
    async with opened(
        settings, to, keys, nice=nice, compression=compression, plaintext=plaintext
    ) as store:
        with shown(settings) as progress:
            made = await store.create(
                type=kind,
                scopes=scopes or (),
                classes=classes or (),
                include=include or (),
                parent=parent,
                tags=tags,
                importance=importance,
                keep_log=keep_log,
                reuse=not anew,
                progress=progress,
            )
    if (scopes or classes) and made.empty:
        wanted = ", ".join([*(scopes or ()), *(classes or ())])
        tell(settings, f"the backup is empty: nothing is there of {wanted}")
    if settings.as_json:
        settings.output.document(backup_document(made))
    elif settings.output.terminal and not settings.quiet:
        settings.output.fields(backup_fields(made))
    else:
        print(made.id)
    return Exit.OK


async def list_(
    settings: Settings,
    *,
    kind: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only this type.")
    ] = None,
    tag: Tag = None,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """List the backups, oldest first; those that are whole, that is."""
    wanted = parse_tags(tag)
    async with opened(settings, to, keys, reads=True) as store:
        found = [
            one
            for one in await store.list()
            if kind in (None, str(one.type)) and wanted.items() <= one.manifest.tags.items()
        ]
        label = store.label
    output = settings.output
    if settings.as_json:
        documents = [backup_document(one) for one in found]
        output.document({"target": label, "backups": documents})
        return Exit.OK
    output.table(BACKUP_COLUMNS, (backup_row(one, terminal=output.terminal) for one in found))
    if output.terminal and not found:
        output.say(f"there is no backup in {label}")
    return Exit.OK


async def info(
    settings: Settings,
    backup_id: BackupId = "latest",
    *,
    inexact: Annotated[
        bool,
        typer.Option("--inexact", help="Name the keys whose value at the moment was not known."),
    ] = False,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Print all that is known of a backup."""
    async with opened(settings, to, keys) as store:
        found = await store.info(await the_id(store, backup_id))
        named = await store.inexact(found.id) if inexact else ()
    if settings.as_json:
        more = {
            "inexact_keys": [
                {"scope": one.scope, "key": one.key, "revision": str(one.revision)} for one in named
            ]
        }
        settings.output.document(backup_document(found) | (more if inexact else {}))
        return Exit.OK
    settings.output.fields(backup_fields(found))
    rows = [("inexact", one.scope, one.key or "-", str(one.revision)) for one in named]
    settings.output.table(("", "SCOPE", "KEY", "REVISION"), rows)
    return Exit.OK


# --- files ----------------------------------------------------------------------------------------


async def export(
    settings: Settings, backup_id: str, file: File, *, to: To = None, keys: Keys = None
) -> Exit:
    """Write a backup, with all that it needs, into one file; an encrypted one stays encrypted."""
    if file.exists():
        raise wrong("FILE", f"must not be there yet, and {file} is")
    async with opened(settings, to, keys) as store:
        chosen = await the_id(store, backup_id)
        written = await store.export(chosen, file)
    if settings.as_json:
        settings.output.document({"id": chosen, "file": str(file), "bytes": written})
    else:
        settings.output.say(f"{chosen} is in {file}, {written:,} bytes")
    return Exit.OK


async def import_(settings: Settings, file: File, *, to: To = None, keys: Keys = None) -> Exit:
    """Put an exported backup into the place of backups; what is there stays as it is."""
    if not file.is_file():
        raise wrong("FILE", f"must be a file, which {file} is not")
    async with opened(settings, to, keys) as store:
        try:
            found = await store.import_(file)
        except InvalidArgumentError as error:
            raise renamed(error, "FILE") from None
    if settings.as_json:
        settings.output.document(backup_document(found))
    else:
        settings.output.say(found.id)
    return Exit.OK


# --- keys -----------------------------------------------------------------------------------------


def keygen(
    settings: Settings,
    *,
    version: Annotated[
        str | None, typer.Option("--version", metavar="NAME", help="Default: v1, v2, …")
    ] = None,
    keys: Keys = None,
) -> Exit:
    """Make a new version of the key-encryption key in a folder; the key is not printed.

    Whoever loses all versions loses the backups: keep a copy, and not beside them.
    """
    from llmspell_dist.security.keyring import FileKeys  # noqa: PLC0415

    given = urlsplit(os.environ.get(KEYS_VARIABLE, "") if keys is None else keys)
    if given.scheme != "file" or not given.path.strip("/"):
        raise wrong("--keys", "must be file:///folder: only there keys are made")
    folder = unquote(given.path)
    made = FileKeys(folder).generate(version)
    if settings.as_json:
        settings.output.document({"folder": folder, "version": made})
    else:
        settings.output.say(f"{made} is in {folder}; keep a copy, and not beside the backups")
    return Exit.OK


async def rewrap(
    settings: Settings,
    *,
    older_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--older-keys", metavar="URL", help="What wrapped them before; can be repeated."
        ),
    ] = None,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Wrap every backup's key by the newest version; afterwards older versions may go.

    No data is read or written.
    """
    async with opened(settings, to, keys, older_keys=older_keys, reads=True) as store:
        done = await store.rewrap()
    if settings.as_json:
        settings.output.document({"rewrapped": list(done)})
    else:
        settings.output.say(f"{counted(len(done), 'key')} wrapped anew")
    return Exit.OK
