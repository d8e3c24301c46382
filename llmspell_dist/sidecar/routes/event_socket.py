"""Events over a WebSocket: heard live, or handed out from a queue and answered for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.deliveries import Deliveries, Handed
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.errors import BodyError
from llmspell_dist.sidecar.routes.event_shapes import delivery_document, event_document
from llmspell_dist.sidecar.routes.events import BUFFER, Missed, PatternText, may_hear
from llmspell_dist.sidecar.routes.subscriptions import (
    NackBody,
    ReceiptsBody,
    Terms,
    begin,
    terms_of,
)
from llmspell_dist.sidecar.sockets import Socket
from llmspell_dist.sidecar.streams import Streams

if TYPE_CHECKING:
    from llmspell_dist.events.live import LiveSubscription
    from llmspell_dist.events.terms import DurableTerms

__all__ = ["routes"]

routes = Registry("event socket", "`/v1/events/ws`: events over a WebSocket, both ways.")


class _Open(Terms, frozen=True, forbid_unknown_fields=True):
    pattern: PatternText | None = None
    durable: Annotated[str | None, Meta(description="The name of a durable subscription.")] = None
    format: Literal["json", "msgpack"] = "json"
    buffer: Annotated[int, Meta(ge=1, le=100_000)] = BUFFER


@routes.route("GET", "/v1/events/ws", socket=True, asks=(Verb.READ,), query=_Open)
async def talk_of_events(call: Call) -> None:
    """Hear events; with `durable` each is to be answered for, by ``ack`` and ``nack`` frames."""
    query: _Open = call.query
    if query.durable is None:
        await _live(call, query)
    else:
        await _durable(call, query, query.durable)


async def _live(call: Call, query: _Open) -> None:
    pattern = "*" if query.pattern is None else query.pattern
    right = may_hear(call, pattern)
    with call.services.one(Streams).place(call, [right]) as place:
        async with call.spell.events.subscribe(pattern, buffer=query.buffer) as subscription:
            socket = Socket(call, place, packed=query.format == "msgpack")
            await socket.run(_heard(subscription), _nothing_to_say)


async def _heard(subscription: LiveSubscription) -> AsyncIterator[dict[str, Any]]:
    missed = Missed(subscription)
    async for event in subscription:
        lost = missed.since()
        if lost is not None:
            yield {"op": "missed", **lost}
        yield {"op": "event", "event": event_document(event)}


async def _nothing_to_say(said: dict[str, Any]) -> Any:
    raise InvalidArgumentError("op", said["op"], "must be one that a live subscription takes: none")


async def _durable(call: Call, query: _Open, name: str) -> None:
    right = await begin(call, name, query.pattern)
    terms, deliveries = terms_of(query), call.services.one(Deliveries)
    with call.services.one(Streams).place(call, [right]) as place:
        async with deliveries.handing(name, terms) as handed:
            socket = Socket(call, place, packed=query.format == "msgpack")
            answers = _Answers(deliveries, name, terms)
            await socket.run(_handed(handed), answers.hear)


async def _handed(handed: Handed) -> AsyncIterator[dict[str, Any]]:
    async for portion in handed.portions():
        for one in portion:
            document = delivery_document(one)
            yield {
                "op": "event",
                "receipt": document.receipt,
                "deliveries": document.deliveries,
                "event": document.event,
            }


class _Answers:
    """Takes a client's answers for what it was handed."""

    def __init__(self, deliveries: Deliveries, name: str, terms: DurableTerms) -> None:
        self._deliveries = deliveries
        self._name = name
        self._terms = terms

    async def hear(self, said: dict[str, Any]) -> dict[str, Any] | None:
        """Take one frame; what it returns is sent back, with the frame's `ref`."""
        op = said.pop("op")
        puller = self._deliveries.puller
        if op == "ack":
            receipts = _converted(said, ReceiptsBody).receipts
            count = await puller.ack(self._name, receipts)
            self._deliveries.settled(self._name, receipts)
            return {"op": "acked", "count": count}
        if op == "nack":
            body = _converted(said, NackBody)
            lost = await puller.nack(
                self._name,
                body.receipts,
                error=body.error,
                delay_s=body.delay,
                terms=self._terms,
            )
            self._deliveries.settled(self._name, body.receipts)
            return {"op": "nacked", "lost": lost}
        raise InvalidArgumentError("op", op, "must be ack or nack")


def _converted(said: dict[str, Any], shape: type) -> Any:
    try:
        return msgspec.convert(said, shape)
    except msgspec.ValidationError as error:
        raise BodyError(shape.__name__, str(error)) from None
