"""Watching a scope over HTTP: every change once, in order, over lost connections and restarts."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import quote, unquote

from msgspec import Meta, Struct

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.revision import BEGINNING, Revision
from llmspell_dist.scope import Scope
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Needs, Registry
from llmspell_dist.sidecar.routes.shapes import change_document
from llmspell_dist.sidecar.streams import BEAT, EVENT_STREAM, Streams, block, send_events
from llmspell_dist.state.model import Change
from llmspell_dist.watch.errors import WatchTrimmedError

if TYPE_CHECKING:
    from llmspell_dist.sidecar.reply import Reply
    from llmspell_dist.watch.watch import Watch

__all__ = ["routes"]

routes = Registry("watch", "Every change of a scope as it happens, by server-sent events.")

_FROM_SNAPSHOT: Final = frozenset(("reset", "snapshot"))


class _Watch(Struct, frozen=True, forbid_unknown_fields=True):
    prefix: Annotated[str | None, Meta(description="Only keys that begin so.")] = None
    since: Annotated[
        str | None,
        Meta(
            description="An `id` of this stream, or a revision: what came after it. `0-0`: from "
            "the first change on. Default: from now. `Last-Event-ID` goes before it."
        ),
    ] = None
    operation: Annotated[
        str | None,
        Meta(
            description="The operation id of the commit at `since`: then a history in which "
            "another commit has that revision is noticed too."
        ),
    ] = None
    on_trimmed: Annotated[
        Literal["raise", "snapshot"],
        Meta(
            description="If the log no longer reaches back so far: `raise` ends the stream with "
            "`event: problem`; `snapshot` begins anew with a change `reset` and what is there."
        ),
    ] = "raise"


@routes.route(
    "GET",
    "/v1/watch/{scope}",
    Needs(Verb.READ, "{scope}"),
    query=_Watch,
    errors=(WatchTrimmedError,),
    headers=("Last-Event-ID",),
    streams=EVENT_STREAM,
)
async def watch_scope(call: Call) -> Reply | None:
    """Watch a scope: a server-sent event for each change, none left out and none twice.

    `data` is the change, as the history has it. `id` is the revision up to which everything has
    come; given back as ``Last-Event-ID`` (browsers do that by themselves) the stream goes on behind
    it. A commit of several changes has one revision: an `id` before the last of them also says
    which one it was. The first block has an `id` without data: where the watch begins. A problem
    ends the stream with ``event: problem``; ``event: end`` says that the sidecar stops.
    """
    scope, query = Scope.parse(call.parameters["scope"]).text, call.query
    last = call.header(b"last-event-id")
    operation = query.operation if last in {None, query.since} else None
    since = parse_place(last or query.since, scope, operation)
    with call.services.one(Streams).place(call) as place:
        watch = call.spell.state.watch(
            scope, prefix=query.prefix, since=since, on_trimmed=query.on_trimmed
        )
        async with watch:
            told = _Told(watch)
            # Where it begins; for who comes back that is what it said itself.
            first = told.where() if since is None else b"id: %s\n" % (last or query.since).encode()
            await send_events(call, place, told.blocks(), first=first, beat=told.beat)
    return None


class _Told:
    """What a client has been told of a watch."""

    __slots__ = ("_page", "_place", "_watch")

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._place = watch.revision
        self._page: deque[tuple[Change | SpellError, Revision | None]] = deque()

    def where(self) -> bytes:
        """Return the line that says where the watch is."""
        return b"" if self._place is None else b"id: %s\n" % str(self._place).encode()

    def beat(self) -> bytes:
        """Return a sign of life: where the watch is, if changes went by that are not wanted."""
        if self._page or self._watch.revision in {None, self._place}:
            return BEAT
        self._place = self._watch.revision
        return b"%s:\n\n" % self.where()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the changes, those that are there at once in one piece."""
        page, watch = self._page, self._watch
        while True:
            try:
                await watch.next_page(page)
            except StopAsyncIteration:
                return
            piece: list[bytes] = []
            while page:
                change, after = page.popleft()
                if isinstance(change, SpellError):
                    if piece:
                        yield b"".join(piece)
                    raise change
                event_id = self._id_of(change, after)
                piece.append(block(change_document(change), event_id=event_id))
            yield b"".join(piece)

    def _id_of(self, change: Change, after: Revision | None) -> str | None:
        if change.op in _FROM_SNAPSHOT:
            if after == self._place:
                return None  # who loses the connection now begins the snapshot anew
        elif after != change.revision:
            return place_within(change)
        self._place = after
        return str(after)


def place_within(change: Change) -> str:
    """Return the id of a change that is not the last one of its commit."""
    return f"{change.revision}/{change.operation}/{change.op}/{quote(change.key, safe='')}"


def parse_place(text: str | None, scope: str, operation: str | None) -> Revision | Change | None:
    """Return where a watch is to go on; None is from now."""
    if text is None:
        return None
    told, slash, within = text.partition("/")
    try:
        revision = Revision.parse(told)
    except InvalidArgumentError:
        rule = "must be an id of this stream, or a revision"
        raise InvalidArgumentError("since", text, rule) from None
    if revision == BEGINNING:
        return revision
    if not slash:
        if operation is None:
            return revision
        return _seen(scope, revision, _checked(operation, "operation"))
    parts = within.split("/")
    if len(parts) != 3:
        raise InvalidArgumentError("since", text, "must be an id of this stream, or a revision")
    at, op, key = parts
    return _seen(scope, revision, _checked(at, "since"), op, unquote(key))


def _checked(operation: str, name: str) -> str:
    client, colon, number = operation.partition(":")
    fits = len(client) == 16 and colon and number.isascii() and number.isdigit()
    try:
        if fits and int(number) < 1 << 48 and len(bytes.fromhex(client)) == 8:
            return operation
    except ValueError:
        pass
    raise InvalidArgumentError(name, operation, "must hold an operation id as changes have it")


def _seen(scope: str, revision: Revision, operation: str, op: str = "", key: str = "") -> Change:
    """Return a change that was seen, as far as a watch asks for it."""
    if op in _FROM_SNAPSHOT:
        raise InvalidArgumentError("since", op, "must be a change that the log has")
    return Change(scope, key, op, revision, revision.time, has_value=False, operation=operation)
