"""What the commands of ``backup`` have in common: where backups are kept, which moment is meant."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli.arguments import parse_moment
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import printable
from llmspell_dist.cli.priority import giving_way
from llmspell_dist.cli.settings import Settings
from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.backup.targets import Target

__all__ = [
    "KEYS_VARIABLE",
    "At",
    "AtOrId",
    "BackupId",
    "Confirm",
    "Include",
    "Key",
    "Keys",
    "Plaintext",
    "Scopes",
    "Timeline",
    "To",
    "at_or_id",
    "moment",
    "opened",
    "parse_tags",
    "tell",
    "the_id",
    "until_stopped",
]

URL_VARIABLE: Final = "LLMSPELL_BACKUP_URL"
KEYS_VARIABLE: Final = "LLMSPELL_BACKUP_KEYS"
OLDER_VARIABLE: Final = "LLMSPELL_BACKUP_OLDER_KEYS"
"""Key providers that were used before, with spaces between them."""
_ID: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}", re.ASCII)
_CLOCK: Final = re.compile(r"\d{1,2}:\d\d", re.ASCII)
_LATEST: Final = "latest"
_HAS_ITS_OWN: Final = "must not be given with the --url of a sidecar: it has its own"
_PANEL: Final = "Options of every backup command"

To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="Where backups are kept: s3://bucket/prefix, file:///folder "
        f"(default: {URL_VARIABLE}).",
        rich_help_panel=_PANEL,
    ),
]
Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        metavar="URL",
        help="What encrypts them: file:///folder, env:VARIABLE, aws-kms:KEY "
        f"(default: {KEYS_VARIABLE}, else nothing).",
        rich_help_panel=_PANEL,
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="Only this, or a glob: 'agent:*'; '!tool:*' leaves out; can be repeated.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="WHAT", help="Also events, hooks or correlations; can be repeated."
    ),
]
_AT: Final = typer.Option(
    "--at", metavar="MOMENT", help="A time, a revision, the id of a backup, or latest."
)
At = Annotated[str, _AT]
AtOrId = Annotated[str | None, _AT]
"""Of a command that takes the id of a backup without an option, too."""
Key = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="Only this key of the one scope.")
]
Timeline = Annotated[
    str | None,
    typer.Option("--timeline", metavar="ID", help="Which past, after a failover that lost writes."),
]
Plaintext = Annotated[
    bool,
    typer.Option(
        "--plaintext",
        help="Store unencrypted without --keys, also where the newest backup is encrypted.",
        rich_help_panel=_PANEL,
    ),
]
NICE: Final = 10
"""How far what runs in the background lets others go first, unless it is told otherwise."""
Nice = Annotated[
    int,
    typer.Option(
        "--nice",
        metavar="N",
        min=0,
        max=19,
        help="Let other programs of this machine go first by so much; 0: not at all.",
    ),
]
Confirm = Annotated[
    bool, typer.Option("--confirm", help="Do it; without it only say what would be done.")
]
BackupId = Annotated[
    str, typer.Argument(metavar="[ID]", help="Of a backup; default: the latest one.")
]


@asynccontextmanager
async def opened(
    settings: Settings,
    to: str | None,
    keys: str | None,
    *,
    older_keys: Sequence[str] | None = None,
    nice: int = 0,
    reads: bool = False,
    **more: Any,
) -> AsyncIterator[Any]:
    """Open the client and the place, and close both; yields the backups.

    Bad input is refused before the server is asked. A sidecar has its own place: nothing that
    names another is passed over, as what is restored would come from elsewhere than was meant.
    `reads`: the command makes nothing, so a place where nothing is may be a typing error: that is
    said, and of a folder that is not there refused.
    SIGTERM ends the block as Ctrl-C does: what it has begun is cleared up first.
    """
    with giving_way(nice):
        async with (
            _ended_by_sigterm(),
            _opened(settings, to, keys, older_keys, more, reads=reads) as store,
        ):
            yield store


@asynccontextmanager
async def _ended_by_sigterm() -> AsyncIterator[None]:
    """Cancel the block at the first SIGTERM, and then end with the exit code of that."""
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def end() -> None:
        if task is not None and not told.is_set():  # a second one must not end the clearing up
            told.set()
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if not told.is_set():
            raise
        raise typer.Exit(int(Exit.TERMINATED)) from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@asynccontextmanager
async def _opened(
    settings: Settings,
    to: str | None,
    keys: str | None,
    older_keys: Sequence[str] | None,
    more: Mapping[str, Any],
    *,
    reads: bool,
) -> AsyncIterator[Any]:
    if settings.through_sidecar:
        _refuse_place(to, keys, older_keys)
        if more.get("plaintext"):
            raise wrong("--plaintext", _HAS_ITS_OWN)
        async with settings.connect(patient=True) as spell, spell.backups.to(**more) as store:
            yield store
        return
    url = _given(to, URL_VARIABLE)
    if not url:
        raise wrong("--to", f"or {URL_VARIABLE} must say where backups are kept")
    provider = _given(keys, KEYS_VARIABLE) or None
    # Imported here: no other command needs it.
    from llmspell_dist.backup.keys import keys_from_url  # noqa: PLC0415
    from llmspell_dist.backup.targets import open_target  # noqa: PLC0415

    try:
        target = open_target(url)
        wrapping = None if provider is None else keys_from_url(provider)
        named = older_keys or os.environ.get(OLDER_VARIABLE, "").split()
        older = [keys_from_url(one) for one in named]
    except InvalidArgumentError as error:
        option, variable, given = (
            ("--keys", KEYS_VARIABLE, keys)
            if error.argument == "keys"
            else ("--to", URL_VARIABLE, to)
        )
        raise wrong(option if given is not None else variable, error.rule) from None
    try:
        async with (
            settings.connect(patient=True) as spell,
            spell.backups.to(target, keys=wrapping, older_keys=older, **more) as store,
        ):
            if reads:
                await _look(settings, target, spell.namespace, given=to)
            yield store
    finally:
        await asyncio.to_thread(target.close)


async def _look(settings: Settings, target: Target, namespace: str, *, given: str | None) -> None:
    """Say so if there is nothing of a namespace in a place; refuse a folder that is not there."""
    from llmspell_dist.backup.names import Layout  # noqa: PLC0415
    from llmspell_dist.backup.targets.folder import FolderTarget  # noqa: PLC0415

    def found() -> bool:
        return next(iter(target.list(Layout(namespace).prefix)), None) is not None

    if isinstance(target, FolderTarget) and not target.folder.exists():
        rule = f"must be where backups are: there is no {target.label}; create and archive make it"
        raise wrong(URL_VARIABLE if given is None else "--to", rule)
    if not await asyncio.to_thread(found):
        tell(settings, f"nothing of namespace {namespace} is in {target.label}")


def _refuse_place(to: str | None, keys: str | None, older_keys: Sequence[str] | None) -> None:
    for option, variable, given in (
        ("--to", URL_VARIABLE, to),
        ("--keys", KEYS_VARIABLE, keys),
        ("--older-keys", OLDER_VARIABLE, older_keys),
    ):
        if given or (given is None and os.environ.get(variable)):
            named = option if given else variable
            raise wrong(named, _HAS_ITS_OWN)


def _given(option: str | None, variable: str) -> str:
    return os.environ.get(variable, "") if option is None else option


def moment(text: str) -> str | Revision | datetime:
    """Return what ``--at`` says; a time without a zone is of this machine, `14:05` of today."""
    if text == _LATEST or _ID.fullmatch(text):
        return text
    if _CLOCK.fullmatch(text):
        text = f"{datetime.now().astimezone():%Y-%m-%d} {text.zfill(5)}"
    try:
        return parse_moment(text)
    except InvalidArgumentError as error:
        if not error.rule.startswith("must be a revision"):
            raise
        rule = "must be a time (2026-11-26T14:05), a revision (1732374145123-0), a backup or latest"
        raise InvalidArgumentError("--at", text, rule) from None


def at_or_id(at: str | None, backup_id: str | None) -> str:
    """Return which moment is meant: by ``--at``, or by the id of a backup alone."""
    if backup_id is None:
        return _LATEST if at is None else at
    if at is not None:
        raise wrong("--at", "must not be given with ID: either says which moment is meant")
    if backup_id != _LATEST and not _ID.fullmatch(backup_id):
        raise InvalidArgumentError("ID", backup_id, "must be the id of a backup, or latest")
    return backup_id


async def the_id(store: Any, text: str) -> str:
    """Return the id that is meant; ``latest``: of the newest backup that is no selection."""
    if text != _LATEST:
        return text
    found = [one for one in await store.list() if not one.manifest.filtered]
    if not found:
        from llmspell_dist.backup.errors import BackupNotFoundError  # noqa: PLC0415

        raise BackupNotFoundError(store.label, "")
    return str(found[-1].id)


def parse_tags(given: Sequence[str] | None) -> dict[str, str]:
    """Return what ``--tag NAME=VALUE`` says."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgumentError("--tag", text, "must look like NAME=VALUE")
        found[name] = value
    return found


def tell(settings: Settings, text: str) -> None:
    """Say it on the standard error, beside the answer: a pipe gets rows only."""
    if not (settings.quiet or settings.as_json):
        print(printable(text), file=sys.stderr)


@asynccontextmanager
async def until_stopped() -> AsyncIterator[asyncio.Event]:
    """Yield what SIGTERM or Ctrl-C sets, so that work can end in order; a second one interrupts."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def ask() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for one in signals:
        loop.add_signal_handler(one, ask)
    try:
        yield stop
    finally:
        for one in signals:
            loop.remove_signal_handler(one)
