"""``backup diff|restore|rollback``: get back what was; nothing is changed until --confirm."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from llmspell_dist.cli.backup_options import (
    At,
    AtOrId,
    Confirm,
    Key,
    Keys,
    Plaintext,
    Scopes,
    Timeline,
    To,
    at_or_id,
    moment,
    opened,
    tell,
)
from llmspell_dist.cli.backup_views import (
    DIFFERENCE_COLUMNS,
    difference_document,
    difference_rows,
    difference_text,
    iso,
    restored_document,
    restored_fields,
    said_moment,
)
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.progress import shown
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import wrong

__all__ = ["register"]

_ALL: Final = 1_000_000
"""Of one scope, so that the one key that is meant is among them."""

Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Name at most so many.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Break leases that are held; their holders write no more."),
]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    command(group, "diff")(diff)
    command(group, "restore")(restore)
    command(group, "rollback")(rollback)


async def diff(
    settings: Settings,
    *,
    at: At = "latest",
    scopes: Scopes = None,
    key: Key = None,
    timeline: Timeline = None,
    limit: Limit = 1000,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Say what a restore in place would change; exit code 1 if anything.

    The moment is restored into a scratch server (extra embedded, or one from PATH).
    """
    point, only = moment(at), _one_scope("--key", key, scopes)
    async with opened(settings, to, keys) as store:
        found = await _difference(settings, store, point, scopes, only, timeline, limit)
    _print_difference(settings, found, at)
    return Exit.NO if _changes(found) else Exit.OK


async def restore(
    settings: Settings,
    backup_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of a backup: as --at ID.")
    ] = None,
    *,
    at: AtOrId = None,
    scopes: Scopes = None,
    key: Key = None,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="SCOPE", help="Put the one scope into another one."),
    ] = None,
    namespace_into: Annotated[
        str | None,
        typer.Option("--namespace-into", metavar="NAME", help="Into another namespace."),
    ] = None,
    ttl: Annotated[
        str,
        typer.Option(
            "--ttl", metavar="HOW", help="Keys expire when they would have: absolute; or remaining."
        ),
    ] = "absolute",
    force: Force = False,
    no_rollback: Annotated[
        bool, typer.Option("--no-rollback", help="Do not back up what is replaced.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="WHAT",
            help="Also events, hooks or correlations, as of the full backup; can be repeated.",
        ),
    ] = None,
    timeline: Timeline = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would change; exit code 0.")
    ] = False,
    confirm: Confirm = False,
    limit: Limit = 1000,
    to: To = None,
    keys: Keys = None,
    plaintext: Plaintext = False,
) -> Exit:
    """Put scopes back as they were at a moment: what came later goes.

    Without --confirm it only says what would change; exit code 1 if anything. What is replaced
    is backed up first: `backup rollback` puts it back. With it exit code 1 means that no scope was
    selected.
    """
    if dry_run and confirm:
        raise wrong("--dry-run", "must not be given with --confirm")
    at = at_or_id(at, backup_id)
    point, only = moment(at), _one_scope("--key", key, scopes)
    _one_scope("--into", into, scopes)
    async with opened(settings, to, keys, plaintext=plaintext) as store:
        if confirm:
            with shown(settings) as progress:
                report = await store.restore(
                    point,
                    scopes=scopes or (),
                    key=only,
                    into=into,
                    namespace=namespace_into,
                    ttl=ttl,
                    force=force,
                    rollback=not no_rollback,
                    timeline=timeline,
                    include=include or (),
                    progress=progress,
                )
            nothing = scopes and not (key or report.scopes or report.emptied)
            unknown = scopes if nothing else None
            return _restored(settings, report, unknown=unknown, namespace=namespace_into)
        elsewhere = into or namespace_into
        if elsewhere:
            planned = await store.plan(point, scopes=scopes or (), timeline=timeline)
            return _would_go(settings, planned, scopes, elsewhere, asked=dry_run)
        found = await _difference(settings, store, point, scopes, only, timeline, limit)
    return _dry(settings, found, at=at, asked=dry_run, more=bool(include))


async def rollback(
    settings: Settings,
    backup_id: Annotated[
        str, typer.Argument(metavar="ID", help="What a restore named as its way back.")
    ],
    *,
    force: Force = False,
    confirm: Confirm = False,
    limit: Limit = 1000,
    to: To = None,
    keys: Keys = None,
    plaintext: Plaintext = False,
) -> Exit:
    """Put back what a restore has replaced, as it was at the very commit before it.

    Without --confirm it only says what would change, with exit code 1 if anything.
    """
    from llmspell_dist.backup.way_back import check_way_back  # noqa: PLC0415

    async with opened(settings, to, keys, plaintext=plaintext) as store:
        if confirm:
            with shown(settings) as progress:
                report = await store.rollback(backup_id, force=force, progress=progress)
            return _restored(settings, report)
        check_way_back((await store.info(backup_id)).manifest)
        found = await _difference(settings, store, backup_id, None, None, None, limit)
    return _dry(settings, found)


# --- what would change ----------------------------------------------------------------------------


def _one_scope(option: str, given: str | None, scopes: list[str] | None) -> str | None:
    if given is not None and len(scopes or ()) != 1:
        raise wrong(option, "needs exactly one --scope")
    return given


async def _difference(  # noqa: PLR0917 - what `diff` takes
    settings: Settings,
    store: Any,
    point: Any,
    scopes: list[str] | None,
    key: str | None,
    timeline: str | None,
    limit: int,
) -> dict[str, Any]:
    """Return what a restore would change, as a document; with a key, of that one."""
    with shown(settings) as progress:
        found = await store.diff(
            point,
            scopes=scopes or (),
            timeline=timeline,
            limit=limit if key is None else min(_ALL, getattr(store, "most_named", _ALL)),
            progress=progress,
        )
    document = difference_document(found)
    if key is not None:
        if document["truncated"]:
            raise wrong(
                "--key", "cannot be told apart: more keys of the scope differ than are named"
            )
        named = [one for one in document["keys"] if one["key"] == key]
        counts = {what: [one["what"] for one in named].count(what) for what in _WHATS}
        document |= counts | {"keys": named, "truncated": False}
    return document


_WHATS: Final = ("added", "changed", "removed")


def _changes(document: dict[str, Any]) -> int:
    return sum(int(document[what]) for what in _WHATS)


def _print_difference(settings: Settings, document: dict[str, Any], at: str, **more: Any) -> None:
    if settings.as_json:
        settings.output.document(document | more)
        return
    settings.output.table(DIFFERENCE_COLUMNS, difference_rows(document))
    is_now = at == "latest" and not _changes(document)
    tell(settings, difference_text(document) + ("; latest is now" if is_now else ""))


def _would_go(
    settings: Settings, planned: Any, scopes: list[str] | None, elsewhere: str, *, asked: bool
) -> Exit:
    """Say what would be restored into another place, which is not looked at."""
    moment_, sources = iso(planned.moment), list(planned.sources)
    if settings.as_json:
        settings.output.document({"moment": moment_, "sources": sources, "confirmed": False})
    what = f"{', '.join(scopes or ['everything'])} as of {said_moment(moment_)}"
    tell(settings, f"{what} would go into {elsewhere}, from {', '.join(sources)}")
    return _ended(settings, asked=asked)


def _dry(
    settings: Settings,
    document: dict[str, Any],
    *,
    at: str = "",
    asked: bool = False,
    more: bool = False,
) -> Exit:
    """Say what would be restored in place; `more`: something beside state, too."""
    _print_difference(settings, document, at, confirmed=False)
    if not (_changes(document) or more):
        return Exit.OK
    return _ended(settings, asked=asked)


def _ended(settings: Settings, *, asked: bool) -> Exit:
    if asked:
        return Exit.OK
    tell(settings, "nothing was changed: --confirm does it")
    return Exit.NO


def _restored(
    settings: Settings,
    report: Any,
    *,
    unknown: list[str] | None = None,
    namespace: str | None = None,
) -> Exit:
    """Print what was done; exit code 1 if what was selected neither was there nor is."""
    if unknown:
        tell(settings, f"nothing was selected: {', '.join(unknown)} neither was there nor is now")
    if settings.as_json:
        settings.output.document(restored_document(report) | {"confirmed": True})
    elif not settings.quiet:
        settings.output.fields(restored_fields(report, namespace))
    return Exit.NO if unknown else Exit.OK
