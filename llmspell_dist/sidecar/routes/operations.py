"""Operations: what takes longer than a request is answered with one, to be asked about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.endpoint import EVERYTHING, Needs, Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.operations import Operation, OperationDocument, Operations, Work
from llmspell_dist.sidecar.reply import Reply
from llmspell_dist.sidecar.streams import EVENT_STREAM, Streams, block, send_events

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call

__all__ = ["ADMIN", "accepted", "routes"]

routes = Registry("operations", "What takes longer than a request: asked about, followed, ended.")
ADMIN: Final = Needs(Verb.ADMIN, EVERYTHING)
_OPERATION: Final = "/v1/operations/{id}"


def accepted(call: Call, kind: str, work: Work) -> Reply:
    """Begin an operation and say where to ask about it."""
    operation = call.services.one(Operations).begin(kind, work)
    where = f"/v1/operations/{operation.id}".encode()
    return Reply(operation.document, status=202, headers=[(b"location", where)])


class OperationPage(Struct, frozen=True):
    """Operations of this sidecar, the newest first."""

    operations: list[OperationDocument]


@routes.route("GET", "/v1/operations", ADMIN, returns=OperationPage)
async def list_operations(call: Call) -> Reply:
    """List the operations of this sidecar; those that ended are kept for an hour."""
    found = call.services.one(Operations).all()
    return Reply(OperationPage([one.document for one in found]))


@routes.route("GET", _OPERATION, ADMIN, returns=OperationDocument, errors=(NotFoundError,))
async def show_operation(call: Call) -> Reply:
    """Tell how far an operation is, and how it ended."""
    return Reply(_meant(call).document)


@routes.route("DELETE", _OPERATION, ADMIN, returns=OperationDocument, errors=(NotFoundError,))
async def cancel_operation(call: Call) -> Reply:
    """End an operation; one that has ended stays as it is."""
    operation = _meant(call)
    await call.services.one(Operations).cancel(operation)
    return Reply(operation.document)


@routes.route("GET", f"{_OPERATION}/events", ADMIN, streams=EVENT_STREAM, errors=(NotFoundError,))
async def follow_operation(call: Call) -> None:
    """Follow an operation: ``event: progress`` at each change, ``event: done`` with its end."""
    operation = _meant(call)
    with call.services.one(Streams).place(call) as place:
        await send_events(call, place, _told(operation))


def _meant(call: Call) -> Operation:
    return call.services.one(Operations).get(call.parameters["id"])


async def _told(operation: Operation) -> AsyncIterator[bytes]:
    async for document in operation.changes():
        event = "progress" if document.status == "running" else "done"
        yield block(document, event=event)
