"""``ls`` and ``scopes``: what there is, as a stream in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, TypeVar

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import Output
from llmspell_dist.cli.records import record_document, shorten_cell
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.state_commands import ScopeArgument, ShowSensitive
from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import CipherNotConfiguredError, CorruptRecordError
from llmspell_dist.state.manager import StateManager

__all__ = ["register"]

T = TypeVar("T")

_COLUMNS: Final = ("KEY", "CLASS", "REVISION", "EXPIRES", "VALUE")
Prefix = Annotated[
    str | None, typer.Option("--prefix", metavar="TEXT", help="Only what begins with this.")
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "ls")(ls)
    command(app, "scopes")(scopes)


async def _first(items: AsyncIterator[T], limit: int | None) -> AsyncIterator[T]:
    left = limit
    async for item in items:
        yield item
        if left is not None:
            left -= 1
            if not left:
                return


class _Reader:
    """Reads the records of a scope page by page; one that cannot be read does not stop it."""

    def __init__(self, state: StateManager, scope: str, show_sensitive: bool) -> None:
        self.state = state
        self.scope = scope
        self.show_sensitive = show_sensitive
        self.unreadable = 0

    async def documents(
        self, prefix: str | None, match: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        cursor = None
        while True:
            page = await self.state.keys_page(self.scope, cursor=cursor, prefix=prefix, match=match)
            for document in await asyncio.gather(*map(self._document, page.items)):
                if document["found"]:
                    yield document
            cursor = page.cursor
            if cursor is None:
                return

    async def _document(self, key: str) -> dict[str, Any]:
        try:
            found = await self.state.get_record(self.scope, key)
        except (CorruptRecordError, CipherNotConfiguredError) as error:
            self.unreadable += 1
            described = {"code": error.code, "message": str(error)}
            return {"scope": self.scope, "key": key, "found": True, "error": described}
        redacted = found is not None and found.state_class.behaviour.redact
        hidden = redacted and not self.show_sensitive
        return record_document(self.scope, key, found, hidden=hidden)


def _row(document: dict[str, Any], output: Output) -> tuple[str, ...]:
    if "error" in document:
        return (document["key"], "-", "-", "-", f"({document['error']['code']})")
    value = "(hidden)" if document["hidden"] else output.dumps(document["value"])
    cells = (document["class"], document["revision"], document["expires"] or "-")
    return (document["key"], *cells, shorten_cell(value, output))


async def ls(
    settings: Settings,
    scope: ScopeArgument,
    *,
    prefix: Prefix = None,
    match: Annotated[
        str | None, typer.Option("--match", metavar="GLOB", help="Only keys that match: * ? [a-z].")
    ] = None,
    limit: Limit = None,
    values: Annotated[
        bool, typer.Option("--values", help="With values, classes and revisions.")
    ] = False,
    show_sensitive: ShowSensitive = False,
) -> Exit:
    """List the keys of a scope, in no order.

    No snapshot: what changes meanwhile may come or not.
    """
    if prefix is not None and match is not None:
        raise wrong("--match", "cannot be combined with --prefix")
    output = settings.output
    async with settings.connect() as spell:
        reader = _Reader(spell.state, scope, show_sensitive)
        if values:
            found = _first(reader.documents(prefix, match), limit)
            if settings.as_json:
                await output.stream({"scope": scope}, "items", found, lambda: reader.unreadable)
            else:
                rows = (_row(document, output) async for document in found)
                await output.rows(_COLUMNS, rows)
        else:
            keys = _first(spell.state.keys(scope, prefix=prefix, match=match), limit)
            if settings.as_json:
                await output.stream({"scope": scope}, "keys", keys, lambda: 0)
            else:
                await output.rows(("KEY",), ((key,) async for key in keys))
    return Exit.DATA if reader.unreadable else Exit.OK


async def scopes(
    settings: Settings,
    *,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="global user session agent tool workflow …"),
    ] = None,
    prefix: Prefix = None,
    limit: Limit = None,
) -> Exit:
    """List the scopes that have keys, in no order."""
    if prefix == "":
        raise wrong("--prefix", "must not be empty")
    output = settings.output
    async with settings.connect() as spell:
        found = _first(spell.state.scopes(kind=kind, prefix=prefix), limit)
        if settings.as_json:
            texts = (str(scope) async for scope in found)
            await output.stream({"namespace": spell.namespace}, "scopes", texts, lambda: 0)
        else:
            rows = ((str(scope), scope.kind.value) async for scope in found)
            await output.rows(("SCOPE", "KIND"), rows)
    return Exit.OK
