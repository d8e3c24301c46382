"""A lease that lasts as long as a connection: for clients that cannot renew, such as a shell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from llmspell_dist.errors import (
    DeadlockError,
    LeaseAlreadyHeldError,
    LeaseUnavailableError,
    SpellError,
)
from llmspell_dist.leases.terms import DEFAULT_TTL_S
from llmspell_dist.sidecar.attending import attended
from llmspell_dist.sidecar.contexts import context_of
from llmspell_dist.sidecar.leasing import Leasing, Taken, handle_of
from llmspell_dist.sidecar.routes.lease_shapes import TTL, Wait
from llmspell_dist.sidecar.routes.leases import LEASE, WRITE, grant_document, routes
from llmspell_dist.sidecar.streams import EVENT_STREAM, Streams, block, send_events

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.sidecar.call import Call

__all__ = ["routes"]


class _Hold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    ttl: TTL = DEFAULT_TTL_S
    wait: Wait = 0.0
    mode: str = "exclusive"
    owner: str | None = None
    label: str | None = None


@routes.route(
    "GET",
    f"{LEASE}/hold",
    WRITE,
    query=_Hold,
    streams=EVENT_STREAM,
    errors=(LeaseUnavailableError, LeaseAlreadyHeldError, DeadlockError),
)
async def hold_lease(call: Call) -> None:
    """Hold a lease for as long as the client listens; the sidecar renews it.

    ``event: held`` has what acquiring it gives, with the `handle` for what is written under it.
    ``event: lost`` says why it is held no more. When the connection ends, the next in line has it.
    """
    with call.services.one(Streams).place(call) as place, context_of(call):
        lease = await attended(call, _acquired(call), _given_back, goes_on=True)
        try:
            await send_events(call, place, _told(call, lease))
        finally:
            await asyncio.shield(_given_back(lease))


async def _acquired(call: Call) -> Lease:
    query: _Hold = call.query
    owner = query.owner or call.services.one(Leasing).new_owner()
    return await call.spell.leases.acquire(
        call.parameters["scope"],
        name=call.parameters["name"],
        ttl=query.ttl,
        wait=query.wait,
        mode=query.mode,
        owner=owner,
        label=query.label,
        on_lost="event",
    )


async def _given_back(lease: Lease) -> None:
    with suppress(SpellError):  # it ends by itself
        await lease.close()


async def _told(call: Call, lease: Lease) -> AsyncIterator[bytes]:
    taken = Taken(handle_of(lease), lease.expires_in_s)
    yield block(grant_document(call.services.one(Leasing), taken), event="held")
    await lease.lost.wait()
    yield block({"reason": lease.lost.reason}, event="lost")
