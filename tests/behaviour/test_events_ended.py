"""Consumers that cannot go on: whoever iterates is told, and is not left waiting."""

from __future__ import annotations

import asyncio

import pytest
from fix_events import EventStore, Refusing, data_of, everything_of, soon, take
from fix_state import Raw, until

from llmspell_dist.client import Spell
from llmspell_dist.errors import StoreProtocolError
from llmspell_dist.events import Event

pytestmark = pytest.mark.integration

NO_ANSWER = StoreProtocolError("redis://test", "WRONGTYPE")


async def test_a_key_that_is_no_queue_ends_its_consumer(
    spell: Spell, event_store: EventStore
) -> None:
    """No waiting heals that."""
    queue = event_store.space.event_queue("0", "q")
    async with spell.events.subscribe(durable="q") as sub:
        await until(lambda: event_store.idle("q"))
        event_store.raw("DEL", queue)
        event_store.raw("SET", queue, "not a queue")
        event_store.raw("PUBLISH", event_store.space.event_bell("0", "q"), "n")
        with pytest.raises(StoreProtocolError):
            await soon(anext(sub))
        event_store.raw("DEL", queue)


@pytest.mark.parametrize("error", [NO_ANSWER, ZeroDivisionError()])
@pytest.mark.parametrize("script", ["event_fetch", "event_renew"])
async def test_whatever_stops_the_feed_is_raised_to_who_iterates(
    spell: Spell, script: str, error: Exception
) -> None:
    """Fetching and renewing: without either, a consumer is none."""
    async with spell.events.subscribe(durable="q", claim_idle=0.05) as sub:
        Refusing(sub._feed, error, script)
        await spell.events.publish("a")
        with pytest.raises(type(error)):
            await soon(everything_of(sub))


async def test_acknowledgements_that_nobody_can_take_are_no_endless_wait(
    spell: Spell, event_store: EventStore
) -> None:
    """`flush` raises, as it does where the server refuses them."""
    async with spell.events.subscribe(durable="q") as sub:
        await spell.events.publish("a", 1)
        (event,) = await take(sub, 1, ack=False)
        refusing = Refusing(sub._settler, NO_ANSWER)
        await sub.ack(event)
        with pytest.raises(StoreProtocolError):
            await soon(sub.flush())
        refusing.on = False
        await soon(sub.flush())
        assert event_store.queue("q") == 0


async def test_a_dead_letter_that_cannot_be_written_keeps_no_other(
    spell: Spell, event_store: EventStore
) -> None:
    """It is left for the next consumer, and those behind it are written."""
    async with spell.events.subscribe(durable="q") as sub:
        refused = Refusing(sub._settler, NO_ANSWER)
        event_store.poison("q", b"one")
        event_store.poison("q", b"two")
        await spell.events.publish("a", "good")
        assert await data_of(sub, 1) == ["good"]
        await until(lambda: sub._settler._burying is None and not sub._settler.burying)
        refused.on = False
        event_store.poison("q", b"three")
        await until(lambda: event_store.dead("q") == 1)


async def test_what_is_to_be_buried_and_cannot_be_is_raised(spell: Spell) -> None:
    """To whoever gave it up."""
    async with spell.events.subscribe(durable="q", max_deliveries=1) as sub:
        await spell.events.publish("a", 1)
        (event,) = await take(sub, 1, ack=False)
        Refusing(sub._settler, NO_ANSWER)
        with pytest.raises(StoreProtocolError):
            await soon(sub.nack(event, "no"))


# --- what is logged -------------------------------------------------------------------------------


SECRET = "cannot charge 4111-1111"


def failing(event: Event) -> None:
    """A handler whose error tells what it was given."""
    raise ValueError(SECRET)


async def test_the_message_of_a_handlers_error_is_in_no_log(
    spell: Spell, event_store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Its type is; the message stands in the dead letter."""
    caplog.set_level("DEBUG", "llmspell_dist")
    async with spell.events.subscribe(durable="q"):
        pass
    await spell.events.publish("a")
    consuming = asyncio.create_task(spell.events.consume("q", "*", failing, max_deliveries=1))
    await until(lambda: event_store.dead("q") == 1)
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
    (letter,) = await spell.events.dead_letters("q")
    assert letter.error == f"ValueError: {SECRET}"
    assert SECRET not in caplog.text
    assert "ValueError" in caplog.text


async def test_the_log_names_the_event_that_went_to_the_dead_letters(
    spell: Spell, event_store: EventStore, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    """By the id that its publisher knows: where a handler failed, and where processes died."""
    async with spell.events.subscribe(durable="q"):
        pass
    deadly = await spell.events.publish("a")
    queue = event_store.space.event_queue("0", "q")
    ((_, ((entry, _),)),) = raw("XREADGROUP", "GROUP", "q", "x", "STREAMS", queue, ">")
    raw("XCLAIM", queue, "q", "x", 0, entry, "IDLE", 60_000, "RETRYCOUNT", 3, "JUSTID")
    failed = await spell.events.publish("a")
    async with spell.events.subscribe(durable="q", max_deliveries=1) as sub:
        (event,) = await take(sub, 1, ack=False)
        await sub.nack(event, ValueError())
        await until(lambda: caplog.text.count("went to the dead letters") == 2)
    for one in (deadly, failed):
        assert f"event {one.id} of 'q' went to the dead letters" in caplog.text
