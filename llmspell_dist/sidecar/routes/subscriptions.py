"""Durable events: a queue per name, at least once, answered for by receipt.

A receipt is good at every sidecar of the namespace. What is not answered for within `claim_idle`
seconds comes again, to whoever asks next, also if the sidecar that handed it out is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from llmspell_dist.events import SubscriptionExistsError, SubscriptionNotFoundError
from llmspell_dist.events.terms import DurableTerms
from llmspell_dist.patterns import Pattern
from llmspell_dist.sidecar.attending import attended
from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.deliveries import Deliveries, Handed
from llmspell_dist.sidecar.endpoint import Needs, Registry
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply
from llmspell_dist.sidecar.routes.event_shapes import (
    DeadLetterDocument,
    DeliveryDocument,
    SubscriptionDocument,
    delivery_document,
    letter_document,
    subscription_document,
)
from llmspell_dist.sidecar.routes.events import PatternText, may_hear
from llmspell_dist.sidecar.routes.shapes import Count
from llmspell_dist.sidecar.streams import EVENT_STREAM, Streams, block, send_events

if TYPE_CHECKING:
    from llmspell_dist.events import SubscriptionInfo
    from llmspell_dist.events.pulling import Delivery
    from llmspell_dist.events.steps import Definition

__all__ = ["Terms", "routes", "terms_of"]

routes = Registry("subscriptions", "Durable events: queues whose consumers answer for each event.")

_NAME: Final = "/v1/subscriptions/{name}"
_MOST_RECEIPTS: Final = 1000
_ANY: Final = "event:*"

Overflow = Literal["block", "drop_oldest", "drop_newest", "reject"]
Receipts = Annotated[list[str], Meta(max_length=_MOST_RECEIPTS)]
MaxDeliveries = Annotated[
    int, Meta(ge=1, le=1_000_000, description="After so many an event goes to the dead letters.")
]
ClaimIdle = Annotated[
    float,
    Meta(ge=0.05, le=86_400, description="Seconds without an answer after which it comes again."),
]


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """How events of a queue are handed out."""

    max_deliveries: MaxDeliveries = 5
    claim_idle: ClaimIdle = 30.0
    max_unacked: Annotated[
        int, Meta(ge=1, le=10_000, description="So many are out without an answer, at most.")
    ] = 100


def terms_of(query: Any) -> DurableTerms:
    """Return the terms as the library has them."""
    return DurableTerms(
        max_deliveries=query.max_deliveries,
        claim_idle=query.claim_idle,
        max_unacked=query.max_unacked,
    )


class SubscriptionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What a durable subscription means, and what happens when nobody keeps up."""

    pattern: PatternText
    capacity: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    overflow: Overflow | None = None


class SubscriptionDefinition(Struct, frozen=True):
    """A durable subscription as it is kept."""

    name: str
    pattern: str
    capacity: int
    overflow: str


class SubscriptionList(Struct, frozen=True):
    """Every durable subscription, by name."""

    subscriptions: list[SubscriptionDocument]


class FetchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How many events are wanted, and how long to wait for the first."""

    most: Annotated[int, Meta(ge=1, le=1000)] = 1
    wait: Annotated[float, Meta(ge=0, le=30)] = 0.0
    max_deliveries: MaxDeliveries = 5
    claim_idle: ClaimIdle = 30.0
    consumer: Annotated[
        str | None, Meta(description="Who waits, to be able to leave by this name.")
    ] = None


class LeaveBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Who leaves."""

    consumer: str


class DeliveryList(Struct, frozen=True):
    """Events that were handed out; none if none came in time."""

    deliveries: list[DeliveryDocument]


class ReceiptsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Deliveries that are answered for."""

    receipts: Receipts


class ReleaseBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Deliveries that are given back; `handled` if somebody has tried, so that they count."""

    receipts: Receipts
    handled: bool = False


class NackBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Deliveries that could not be handled, and why."""

    receipts: Receipts
    error: Annotated[str, Meta(max_length=2000)] = ""
    delay: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    retry_delay: Annotated[float, Meta(ge=0, le=86_400)] = 0.5
    max_deliveries: MaxDeliveries = 5


class LostReceipts(Struct, frozen=True):
    """Receipts that no longer count: answered for, or handed out again since."""

    lost: list[str]


class DeadLetterList(Struct, frozen=True):
    """Events that could not be handled, oldest first."""

    letters: list[DeadLetterDocument]


class LettersBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters are meant."""

    ids: Annotated[list[str], Meta(max_length=10_000)]


class _Dead(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    after: Annotated[str | None, Meta(description="The id of the last one that is known.")] = None


class _Letters(Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[list[str], Meta(min_length=1)]


async def known(call: Call, verb: Verb) -> str:
    """Return the name of the route's subscription, once its pattern is known to be the caller's.

    Whether there is one is only told to those who may ask about all.
    """
    name = call.parameters["name"]
    await _defined(call, name, verb)
    return name


async def _defined(call: Call, name: str, verb: Verb) -> Definition:
    """Return what a subscription means; who may not know gets one answer, if it is there or not."""
    found = await call.services.one(Deliveries).puller.definition(name)
    if found is None or not call.principal.may(verb, f"event:{found.pattern}"):
        call.require(verb, _ANY)
        raise SubscriptionNotFoundError(name)
    return found


async def _opened(call: Call, name: str, pattern: str, **more: Any) -> Definition:
    """Make a subscription, or find it; what another one of its name means is told as elsewhere."""
    try:
        return await call.services.one(Deliveries).puller.open(name, pattern, **more)
    except SubscriptionExistsError as error:
        if not call.principal.may(Verb.READ, f"event:{error.existing}"):
            raise ForbiddenError(Verb.READ, _ANY) from None
        raise


# --- the queues -----------------------------------------------------------------------------------


@routes.route("GET", "/v1/subscriptions", Needs(Verb.LIST, "event:*"), returns=SubscriptionList)
async def list_subscriptions(call: Call) -> Reply:
    """List every durable subscription with what waits in it."""
    found = await call.spell.events.subscriptions()
    return Reply(SubscriptionList([subscription_document(one) for one in found]))


@routes.route(
    "GET",
    _NAME,
    asks=(Verb.LIST,),
    returns=SubscriptionDocument,
    errors=(SubscriptionNotFoundError,),
)
async def get_subscription(call: Call) -> Reply:
    """Look at a durable subscription: what waits, what is out, what is dead."""
    name = await known(call, Verb.LIST)
    found = await call.spell.events.subscriptions()
    queue: SubscriptionInfo | None = next((one for one in found if one.name == name), None)
    if queue is None:
        raise SubscriptionNotFoundError(name)
    return Reply(subscription_document(queue))


@routes.route(
    "PUT",
    _NAME,
    asks=(Verb.READ,),
    body=SubscriptionBody,
    returns=SubscriptionDefinition,
    errors=(SubscriptionExistsError,),
)
async def make_subscription(call: Call) -> Reply:
    """Make a durable subscription, or find it: from now on it gets what its pattern means.

    It is kept until it is removed. `capacity` and `overflow` change it if given. Needs `read` on
    ``event:<pattern>``. A name that has a pattern of others is refused, without what they hear.
    """
    body: SubscriptionBody = call.body
    name = call.parameters["name"]
    may_hear(call, body.pattern)
    found = await _opened(call, name, body.pattern, capacity=body.capacity, overflow=body.overflow)
    definition = SubscriptionDefinition(name, found.pattern, found.capacity, found.overflow)
    return Reply(definition)


@routes.route("DELETE", _NAME, asks=(Verb.DELETE,), errors=(SubscriptionNotFoundError,))
async def remove_subscription(call: Call) -> Reply:
    """End a durable subscription, with its queue and its dead letters."""
    name = await known(call, Verb.DELETE)
    if not await call.spell.events.remove(name):
        raise SubscriptionNotFoundError(name)
    return NO_CONTENT


# --- handing out ----------------------------------------------------------------------------------


@routes.route(
    "POST",
    f"{_NAME}/fetch",
    asks=(Verb.READ,),
    body=FetchBody,
    returns=DeliveryList,
    errors=(SubscriptionNotFoundError,),
)
async def fetch_events(call: Call) -> Reply:
    """Take events out of the queue to handle them; each is to be answered for by its receipt.

    With `wait` it waits so many seconds for the first one.
    """
    body: FetchBody = call.body
    name = await known(call, Verb.READ)
    terms = DurableTerms(max_deliveries=body.max_deliveries, claim_idle=body.claim_idle)
    deliveries = call.services.one(Deliveries)
    puller = deliveries.puller

    async def undo(found: list[Delivery]) -> None:
        await puller.release(name, [one.receipt for one in found])

    with deliveries.waiting(name, body.consumer) as waiting:
        pulled = puller.pull(name, most=body.most, wait_s=body.wait, terms=terms, waiting=waiting)
        found = await attended(call, pulled, undo) if body.wait else await pulled
    return Reply(DeliveryList([delivery_document(one) for one in found]))


class _Hear(Terms, frozen=True, forbid_unknown_fields=True):
    pattern: Annotated[
        str | None, Meta(description="Makes the subscription if there is none of that name.")
    ] = None


@routes.route(
    "GET",
    f"{_NAME}/events",
    asks=(Verb.READ,),
    query=_Hear,
    errors=(SubscriptionNotFoundError, SubscriptionExistsError),
    streams=EVENT_STREAM,
)
async def hear_subscription(call: Call) -> Reply | None:
    """Hear a queue's events as server-sent events; each is to be answered for by its receipt.

    `data` is a delivery. While the stream lasts what is out stays the client's; at its end, what
    was not answered for goes to others at once.
    """
    query: _Hear = call.query
    right = await begin(call, call.parameters["name"], query.pattern)
    deliveries = call.services.one(Deliveries)
    with call.services.one(Streams).place(call, [right]) as place:
        async with deliveries.handing(call.parameters["name"], terms_of(query)) as handed:
            await send_events(call, place, _blocks(handed))
    return None


async def begin(call: Call, name: str, pattern: str | None) -> tuple[Verb, str]:
    """Make the subscription if a pattern says what it means, else find it; return the right."""
    if pattern is None:
        found = await _defined(call, name, Verb.READ)
        return Verb.READ, f"event:{found.pattern}"
    right = may_hear(call, Pattern(pattern).text)
    await _opened(call, name, pattern)
    return right


async def _blocks(handed: Handed) -> AsyncIterator[bytes]:
    async for portion in handed.portions():
        yield b"".join(block(delivery_document(one)) for one in portion)


# --- the answers ----------------------------------------------------------------------------------


@routes.route(
    "POST",
    f"{_NAME}/ack",
    asks=(Verb.READ,),
    body=ReceiptsBody,
    returns=Count,
    errors=(SubscriptionNotFoundError,),
)
async def ack_events(call: Call) -> Reply:
    """Say that events were handled: they leave the queue. Said twice it counts once.

    A receipt of an earlier delivery counts nothing: whoever has the event now answers for it.
    """
    name, deliveries = await known(call, Verb.READ), call.services.one(Deliveries)
    count = await deliveries.puller.ack(name, call.body.receipts)
    deliveries.settled(name, call.body.receipts)
    return Reply(Count(count))


@routes.route(
    "POST",
    f"{_NAME}/nack",
    asks=(Verb.READ,),
    body=NackBody,
    returns=LostReceipts,
    errors=(SubscriptionNotFoundError,),
)
async def nack_events(call: Call) -> Reply:
    """Say that events could not be handled: they come again, or go to the dead letters.

    After `delay` seconds, by default after one that grows with each delivery; at the latest after
    `claim_idle`.
    """
    body: NackBody = call.body
    name, deliveries = await known(call, Verb.READ), call.services.one(Deliveries)
    terms = DurableTerms(max_deliveries=body.max_deliveries, retry_delay=body.retry_delay)
    lost = await deliveries.puller.nack(
        name, body.receipts, error=body.error, delay_s=body.delay, terms=terms
    )
    deliveries.settled(name, body.receipts)
    return Reply(LostReceipts(lost))


@routes.route(
    "POST",
    f"{_NAME}/renew",
    asks=(Verb.READ,),
    body=ReceiptsBody,
    returns=LostReceipts,
    errors=(SubscriptionNotFoundError,),
)
async def renew_events(call: Call) -> Reply:
    """Say that events are worked on still: the claim time begins anew."""
    name = await known(call, Verb.READ)
    lost = await call.services.one(Deliveries).puller.renew(name, call.body.receipts)
    return Reply(LostReceipts(lost))


@routes.route(
    "POST",
    f"{_NAME}/release",
    asks=(Verb.READ,),
    body=ReleaseBody,
    errors=(SubscriptionNotFoundError,),
)
async def release_events(call: Call) -> Reply:
    """Give events back: others take them at once."""
    body: ReleaseBody = call.body
    name, deliveries = await known(call, Verb.READ), call.services.one(Deliveries)
    await deliveries.puller.release(name, body.receipts, handled=body.handled)
    deliveries.settled(name, call.body.receipts)
    return NO_CONTENT


@routes.route(
    "POST",
    f"{_NAME}/leave",
    asks=(Verb.READ,),
    body=LeaveBody,
    errors=(SubscriptionNotFoundError,),
)
async def leave_subscription(call: Call) -> Reply:
    """Say that a consumer takes no more: a fetch of its that waits at this sidecar ends at once."""
    name = await known(call, Verb.READ)
    call.services.one(Deliveries).leave(name, call.body.consumer)
    return NO_CONTENT


# --- the dead letters -----------------------------------------------------------------------------


@routes.route(
    "GET",
    f"{_NAME}/dead",
    asks=(Verb.READ,),
    query=_Dead,
    returns=DeadLetterList,
    errors=(SubscriptionNotFoundError,),
)
async def list_dead_letters(call: Call) -> Reply:
    """List events that could not be handled, oldest first."""
    name, query = await known(call, Verb.READ), call.query
    found = await call.spell.events.dead_letters(name, limit=query.limit, after=query.after)
    return Reply(DeadLetterList([letter_document(one) for one in found]))


@routes.route(
    "POST",
    f"{_NAME}/dead/replay",
    asks=(Verb.WRITE,),
    body=LettersBody,
    returns=Count,
    errors=(SubscriptionNotFoundError,),
)
async def replay_dead_letters(call: Call) -> Reply:
    """Put dead letters back into their queue, as new events at its end."""
    name = await known(call, Verb.WRITE)
    return Reply(Count(await call.spell.events.replay(name, call.body.ids)))


@routes.route(
    "DELETE",
    f"{_NAME}/dead",
    asks=(Verb.DELETE,),
    query=_Letters,
    returns=Count,
    errors=(SubscriptionNotFoundError,),
)
async def delete_dead_letters(call: Call) -> Reply:
    """Delete dead letters."""
    name = await known(call, Verb.DELETE)
    return Reply(Count(await call.spell.events.delete_dead(name, call.query.id)))
