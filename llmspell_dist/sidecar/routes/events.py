"""Events: published one by one or many, as ours or as CloudEvents, and heard as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from llmspell_dist.events import Event, PublishError
from llmspell_dist.events.cloudevents import from_cloudevent, to_cloudevent
from llmspell_dist.jsonable import to_json
from llmspell_dist.patterns import Pattern, check_type
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import VALUE, Registry
from llmspell_dist.sidecar.errors import BodyError
from llmspell_dist.sidecar.reply import Reply
from llmspell_dist.sidecar.routes.event_shapes import (
    EventBody,
    EventDocument,
    event_document,
    event_of,
)
from llmspell_dist.sidecar.routes.shapes import Count
from llmspell_dist.sidecar.streams import EVENT_STREAM, Streams, block, raw_block, send_events

if TYPE_CHECKING:
    from llmspell_dist.events.live import LiveSubscription

__all__ = ["Missed", "PatternText", "may_hear", "routes"]

routes = Registry("events", "What happened, said once, for whoever wants to know.")

BUFFER: Final = 1000
_JSON_KINDS: Final = frozenset((int, float, str, bool, type(None)))
_AT_ONCE: Final = 100
_PATTERN: Final = "An exact type, `*` for all, `state.*` for all below, `state.*.changed`."

PatternText = Annotated[str, Meta(description=_PATTERN)]


class _Publish(Struct, frozen=True, forbid_unknown_fields=True):
    timeout: Annotated[
        float,
        Meta(ge=0, le=300, description="Seconds to wait for room in a queue that lets wait."),
    ] = 30.0


class EventsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Events to publish, in their order."""

    events: Annotated[list[EventBody], Meta(max_length=10_000)]


class _Live(Struct, frozen=True, forbid_unknown_fields=True):
    pattern: PatternText = "*"
    buffer: Annotated[
        int, Meta(ge=1, le=100_000, description="So many events wait for a slow client.")
    ] = BUFFER
    overflow: Annotated[
        Literal["drop_oldest", "drop_newest", "reject"],
        Meta(description="What happens over that; `reject` ends the stream."),
    ] = "drop_oldest"
    form: Annotated[
        Literal["event", "cloudevent"], Meta(description="What `data` is; JSON either way.")
    ] = "event"


@routes.route(
    "POST",
    "/v1/events",
    asks=(Verb.WRITE,),
    query=_Publish,
    body=EventBody,
    returns=EventDocument,
    errors=(PublishError,),
    headers=("Idempotency-Key",),
)
async def publish_event(call: Call) -> Reply:
    """Publish an event: every durable subscription that means it has it then.

    It goes into all of their queues or into none. Needs `write` on ``event:<type>``.
    """
    body: EventBody = call.body
    may_say(call, body.type)
    return Reply(event_document(await _published(call, event_of(body))))


@routes.route(
    "POST",
    "/v1/events/batch",
    asks=(Verb.WRITE,),
    query=_Publish,
    body=EventsBody,
    returns=Count,
    errors=(PublishError,),
    headers=("Idempotency-Key",),
)
async def publish_events(call: Call) -> Reply:
    """Publish events in their order; each is stored whole or not at all.

    The first one that is refused ends it; those before it stay published. The right is needed for
    all of their types, before the first one is.
    """
    body: EventsBody = call.body
    for event_type in {one.type for one in body.events}:
        may_say(call, event_type)
    events = [event_of(one) for one in body.events]
    count = await call.spell.events.publish_many(events, timeout=call.query.timeout)
    return Reply(Count(count))


@routes.route(
    "POST",
    "/v1/cloudevents",
    asks=(Verb.WRITE,),
    query=_Publish,
    body=VALUE,
    returns=EventDocument,
    errors=(PublishError,),
    headers=("Idempotency-Key",),
)
async def publish_cloudevent(call: Call) -> Reply:
    """Publish a CloudEvent 1.0 in structured mode (``application/cloudevents+json``)."""
    try:
        event = from_cloudevent(_as_it_came(call.body))
    except RecursionError:
        raise BodyError("JSON", "it nests too deep") from None
    may_say(call, event.type)
    return Reply(event_document(await _published(call, event)))


def _as_it_came(value: Any) -> Any:
    """Return JSON as it was sent: what looks like a tag of ours in a CloudEvent's data is none."""
    kind = type(value)
    if kind is dict and all(type(key) is str for key in value):
        return {key: _as_it_came(part) for key, part in value.items()}
    if kind is list:
        return [_as_it_came(part) for part in value]
    return value if kind in _JSON_KINDS else to_json(value)


async def _published(call: Call, event: Event) -> Event:
    return await call.spell.events.publish_event(event, timeout=call.query.timeout)


@routes.route("GET", "/v1/events", asks=(Verb.READ,), query=_Live, streams=EVENT_STREAM)
async def hear_events(call: Call) -> Reply | None:
    """Hear events as they are published: at most once, from now on.

    A server-sent event each, after ``event: begun``. What a slow client or a lost connection to
    the server left out is counted in ``event: missed``. Needs `read` on ``event:<pattern>``.
    """
    query: _Live = call.query
    right = may_hear(call, query.pattern)
    with call.services.one(Streams).place(call, [right]) as place:
        subscription = call.spell.events.subscribe(
            query.pattern, buffer=query.buffer, overflow=query.overflow
        )
        async with subscription:
            blocks = live_blocks(subscription, query.form)
            await send_events(call, place, blocks, first=block({}, event="begun"))
    return None


async def live_blocks(subscription: LiveSubscription, form: str) -> AsyncIterator[bytes]:
    """Yield events as blocks of a stream, those that are there at once in one piece."""
    missed = Missed(subscription)
    async for event in subscription:
        piece, next_one = [], event
        lost = missed.since()
        if lost is not None:
            piece.append(block(lost, event="missed"))
        while True:
            if form == "cloudevent":
                piece.append(raw_block(msgspec.json.encode(to_cloudevent(next_one))))
            else:
                piece.append(block(event_document(next_one)))
            following = subscription.take_one() if len(piece) < _AT_ONCE else None
            if following is None:
                break
            next_one = following
        yield b"".join(piece)


class Missed:
    """What a live subscription left out since somebody asked last."""

    def __init__(self, subscription: LiveSubscription) -> None:
        self._subscription = subscription
        self._told = (0, 0)

    def since(self) -> dict[str, Any] | None:
        """Return the counters; None if nothing was left out."""
        stats = self._subscription.stats()
        now = (stats.dropped, stats.gaps)
        if now == self._told:
            return None
        self._told = now
        return {"dropped": stats.dropped, "gaps": stats.gaps}


def may_say(call: Call, event_type: str) -> None:
    """Refuse unless whoever asks may publish events of a type."""
    check_type(event_type)
    call.require(Verb.WRITE, f"event:{event_type}")


def may_hear(call: Call, pattern: str) -> tuple[Verb, str]:
    """Refuse unless whoever asks may hear a pattern; return the right."""
    right = Verb.READ, f"event:{Pattern(pattern).text}"
    call.require(*right)
    return right
