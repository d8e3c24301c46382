"""Acknowledgements that the server refuses: who waits for them is told, and they are kept."""

from __future__ import annotations

import pytest
from fix_events import EventStore, Refusing, data_of, soon, take

from llmspell_dist import blocking
from llmspell_dist.client import Spell
from llmspell_dist.errors import StorePermissionError

pytestmark = pytest.mark.integration


async def published(spell: Spell, count: int) -> None:
    """Make the durable subscription of these tests, and put events into it."""
    async with spell.events.subscribe(durable="q"):
        pass
    for number in range(count):
        await spell.events.publish("a", number)


async def test_whoever_flushes_is_told_of_acknowledgements_that_were_refused(
    spell: Spell, event_store: EventStore
) -> None:
    """As often as it asks; they are kept, and taken once the server does so again."""
    await published(spell, 2)
    async with spell.events.subscribe(durable="q") as sub:
        first, second = await take(sub, 2, ack=False)
        refusing = Refusing(sub._settler)
        await sub.ack(first)
        for _ in "ab":
            with pytest.raises(StorePermissionError):
                await soon(sub.flush())
        assert event_store.pending("q") == 2
        refusing.on = False
        await sub.ack(second)
        await soon(sub.flush())
        assert event_store.queue("q") == 0


async def test_a_refused_acknowledgement_hides_no_error_of_the_block(
    spell: Spell, event_store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of a block it is in the log, and the event comes again."""
    await published(spell, 1)

    async def handled() -> None:
        async with spell.events.subscribe(durable="q", consumer="me") as sub:
            (event,) = await take(sub, 1, ack=False)
            Refusing(sub._settler)
            await sub.ack(event)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handled()
    assert "acknowledgements were not taken" in caplog.text
    async with spell.events.subscribe(durable="q", consumer="me") as again:
        assert await data_of(again, 1) == [0]
    assert event_store.queue("q") == 0


def test_a_thread_that_flushes_is_told_too(
    url: str, namespace: str, event_store: EventStore
) -> None:
    """And its acknowledgements are taken once the server does so again."""
    with (
        blocking.connect(url, namespace=namespace) as client,
        client.events.subscribe("a", durable="q") as sub,
    ):
        client.events.publish("a", 1)
        event = sub.next(timeout=10)
        refusing = Refusing(sub._inner._settler)
        sub.ack(event)
        with pytest.raises(StorePermissionError):
            sub.flush()
        assert event_store.pending("q") == 1
        refusing.on = False
        sub.flush()
        assert event_store.queue("q") == 0
