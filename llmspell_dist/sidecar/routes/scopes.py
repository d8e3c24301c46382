"""Whole scopes: batches of keys, pages with cursors, how much there is, clearing and copying."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.ack import Ack
from llmspell_dist.errors import ConflictError, CrossShardError, LimitError
from llmspell_dist.scope import Scope
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Needs, Registry
from llmspell_dist.sidecar.idempotency import SCOPE as OWN_SCOPE
from llmspell_dist.sidecar.reply import Reply, etag
from llmspell_dist.sidecar.routes.shapes import (
    Count,
    Keeping,
    RecordDocument,
    Revised,
    keeping,
    record_document,
)
from llmspell_dist.state.scopes import MAX_PAGE, PAGE_KEYS

__all__ = ["routes"]

routes = Registry("scopes", "Batches in a scope, lists in pages, whole scopes at once.")

READ: Final = Needs(Verb.READ, "{scope}")
WRITE: Final = Needs(Verb.WRITE, "{scope}")
DELETE: Final = Needs(Verb.DELETE, "{scope}")
LIST: Final = Needs(Verb.LIST, "{scope}")
_SCOPE: Final = "/v1/scopes/{scope}"
_WRITING: Final = ("LLMSpell-Lease", "Idempotency-Key")
_AT_ONCE: Final = 100

# --- lists ----------------------------------------------------------------------------------------

Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="About how many are looked at.")]
Cursor = Annotated[str | None, Meta(description="That of the page before; none: the first page.")]
Prefix = Annotated[str | None, Meta(description="Taken literally.")]


class _Scopes(Struct, frozen=True, forbid_unknown_fields=True):
    cursor: Cursor = None
    limit: Limit = PAGE_KEYS
    kind: Annotated[str | None, Meta(description="One of the nine kinds.")] = None
    prefix: Prefix = None


class ScopePage(Struct, frozen=True):
    """Some scopes, and where to go on; null after the last page."""

    scopes: list[str]
    cursor: str | None


@routes.route("GET", "/v1/scopes", asks=(Verb.LIST,), query=_Scopes, returns=ScopePage)
async def list_scopes(call: Call) -> Reply:
    """List the scopes that have keys, as far as the caller may list them, page by page.

    No snapshot: what is there all the time comes at least once. A page can be short, or empty.
    """
    query: _Scopes = call.query
    page = await call.state.scopes_page(
        cursor=query.cursor, limit=query.limit, kind=query.kind, prefix=query.prefix
    )
    may = call.principal.may
    texts = [scope.text for scope in page.items]
    shown = [text for text in texts if text != OWN_SCOPE and may(Verb.LIST, text)]
    return Reply(ScopePage(shown, page.cursor))


class _Page(Struct, frozen=True, forbid_unknown_fields=True):
    cursor: Cursor = None
    limit: Limit = PAGE_KEYS
    prefix: Prefix = None
    match: Annotated[str | None, Meta(description="A glob: *, ?, [a-z].")] = None

    def options(self) -> dict[str, Any]:
        """Return them as the arguments of the library's methods."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class KeyPage(Struct, frozen=True):
    """Some keys, and where to go on; null after the last page."""

    keys: list[str]
    cursor: str | None


class ItemPage(Struct, frozen=True):
    """Some keys with their values, and where to go on; null after the last page."""

    items: Annotated[list[list[Any]], Meta(description="Pairs of key and value.")]
    cursor: str | None


@routes.route("GET", f"{_SCOPE}/keys", LIST, query=_Page, returns=KeyPage)
async def list_keys(call: Call) -> Reply:
    """List the keys of a scope, page by page; no snapshot."""
    page = await call.state.keys_page(call.parameters["scope"], **call.query.options())
    return Reply(KeyPage(page.items, page.cursor))


@routes.route("GET", f"{_SCOPE}/items", READ, query=_Page, returns=ItemPage)
async def list_items(call: Call) -> Reply:
    """List the keys of a scope with their values, page by page; no snapshot."""
    page = await call.state.items_page(call.parameters["scope"], **call.query.options())
    return Reply(ItemPage([list(item) for item in page.items], page.cursor))


class SnapshotDocument(Struct, frozen=True):
    """Everything in a scope as of one moment."""

    scope: str
    revision: Annotated[str, Meta(description="Watch since it; 0-0: nothing was ever there.")]
    values: dict[str, Any]


class Values(Struct, frozen=True):
    """Values by key."""

    values: dict[str, Any]


@routes.route("GET", _SCOPE, READ, returns=SnapshotDocument, errors=(LimitError,))
async def get_snapshot(call: Call) -> Reply:
    """Get everything in a scope as of one moment: at most 1,000 keys and 1 MiB."""
    found = await call.state.snapshot(call.parameters["scope"])
    revision = str(found.revision)
    return Reply(
        SnapshotDocument(found.scope, revision, found.values), headers=[etag(found.revision)]
    )


@routes.route("GET", f"{_SCOPE}/values", READ, returns=Values, errors=(LimitError,))
async def get_all_values(call: Call) -> Reply:
    """Get the values of a scope as of one moment, without its revision."""
    return Reply(Values(await call.state.get_all(call.parameters["scope"])))


@routes.route("GET", f"{_SCOPE}/count", LIST, returns=Count)
async def count_keys(call: Call) -> Reply:
    """Count the keys of a scope, in constant time."""
    return Reply(Count(await call.state.count(call.parameters["scope"])))


class Stat(Struct, frozen=True):
    """How much lies in a scope."""

    scope: str
    keys: int
    bytes: int
    revision: str | None
    schema_version: int
    fence: Annotated[int, Meta(description="The highest fencing token of its writes.")]


@routes.route("GET", f"{_SCOPE}/stat", LIST, returns=Stat)
async def stat_scope(call: Call) -> Reply:
    """Tell how much lies in a scope, and its last revision."""
    found = await call.state.stat(call.parameters["scope"])
    revision = None if found.revision is None else str(found.revision)
    return Reply(
        Stat(found.scope, found.keys, found.bytes, revision, found.schema_version, found.fence)
    )


# --- batches --------------------------------------------------------------------------------------

Keys = Annotated[list[str], Meta(max_length=1000)]


class KeysWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys whose values are wanted."""

    keys: Keys
    records: Annotated[
        bool, Meta(description="With revision and all; then each is as of a moment of its own.")
    ] = False


class Batch(Struct, frozen=True):
    """What those of the keys have that have a value."""

    values: dict[str, Any] = {}
    records: dict[str, RecordDocument] = {}


@routes.route(
    "POST", f"{_SCOPE}/get-many", READ, body=KeysWanted, returns=Batch, errors=(LimitError,)
)
async def get_many_values(call: Call) -> Reply:
    """Get the values of up to 1,000 keys; those that have none are left out."""
    scope, body = call.parameters["scope"], call.body
    if not body.records:
        return Reply(Batch(values=await call.state.get_many(scope, body.keys)))
    found: dict[str, RecordDocument] = {}
    for start in range(0, len(body.keys), _AT_ONCE):
        some = body.keys[start : start + _AT_ONCE]
        records = await asyncio.gather(*(call.state.get_record(scope, key) for key in some))
        for key, record in zip(some, records, strict=True):
            if record is not None:
                found[key] = record_document(record)
    return Reply(Batch(records=found))


class SetMany(Keeping, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The values to set, and how they are to be kept."""

    values: dict[str, Any]
    schema_version: Annotated[int, Meta(ge=0, le=65_535)] = 1
    ack: str | None = None


@routes.route(
    "POST",
    f"{_SCOPE}/set-many",
    WRITE,
    body=SetMany,
    returns=Revised,
    errors=(LimitError,),
    headers=_WRITING,
)
async def set_many_values(call: Call) -> Reply:
    """Set up to 1,000 keys, all or none, as one commit."""
    body: SetMany = call.body
    revision = await call.state.set_many(
        call.parameters["scope"],
        body.values,
        schema_version=body.schema_version,
        ack=None if body.ack is None else Ack.parse(body.ack),
        **keeping(body),
    )
    return Reply(Revised(str(revision)), headers=[etag(revision)])


class KeysUnwanted(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys to remove."""

    keys: Keys
    ack: str | None = None


@routes.route(
    "POST", f"{_SCOPE}/delete-many", DELETE, body=KeysUnwanted, returns=Count, headers=_WRITING
)
async def delete_many_values(call: Call) -> Reply:
    """Remove up to 1,000 keys as one commit; how many were there."""
    body: KeysUnwanted = call.body
    ack = None if body.ack is None else Ack.parse(body.ack)
    count = await call.state.delete_many(call.parameters["scope"], body.keys, ack=ack)
    return Reply(Count(count))


# --- whole scopes ---------------------------------------------------------------------------------


@routes.route("POST", f"{_SCOPE}/clear", DELETE, returns=Count, headers=_WRITING)
async def clear_scope(call: Call) -> Reply:
    """Remove every key of a scope in one step; how many there were."""
    return Reply(Count(await call.state.clear(call.parameters["scope"])))


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """The scope that the keys go to."""

    target: str


_TRANSFER: Final[dict[str, Any]] = {
    "asks": (Verb.WRITE,),
    "body": Target,
    "returns": Count,
    "errors": (CrossShardError, ConflictError),
    "headers": _WRITING,
}


@routes.route("POST", f"{_SCOPE}/copy", READ, **_TRANSFER)
async def copy_scope(call: Call) -> Reply:
    """Copy every key of a scope to another, over what is there; how many."""
    target = _target(call)
    return Reply(Count(await call.state.copy_scope(call.parameters["scope"], target)))


@routes.route("POST", f"{_SCOPE}/move", READ, DELETE, **_TRANSFER)
async def move_scope(call: Call) -> Reply:
    """Move every key of a scope to another, over what is there; how many."""
    target = _target(call)
    return Reply(Count(await call.state.move_scope(call.parameters["scope"], target)))


def _target(call: Call) -> Scope:
    """Return the scope that is written to; whoever asks must be allowed to."""
    target = Scope.parse(call.body.target)
    call.require(Verb.WRITE, target.text)
    return target
