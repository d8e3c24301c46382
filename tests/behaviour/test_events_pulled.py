"""Events taken in portions: all who take them are one consumer, told apart by their receipts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fix_events import EventStore
from fix_state import Raw

from llmspell_dist.client import Spell
from llmspell_dist.events import Event
from llmspell_dist.events.pulling import CONSUMER, Delivery, Puller
from llmspell_dist.events.terms import DurableTerms

pytestmark = pytest.mark.integration

TERMS = DurableTerms(max_deliveries=1)


@pytest.fixture
async def puller(spell: Spell) -> AsyncIterator[Puller]:
    """One who takes events of the queue `q`."""
    puller = Puller(spell.events)
    await puller.open("q", "*")
    yield puller
    await puller.close()


class Taking:
    """Another who takes an event over as soon as the first one has asked the server anything."""

    def __init__(self, spell: Spell, first: Any, raw: Raw, queue: bytes) -> None:
        self.puller = Puller(spell.events)
        self.got: list[Delivery] = []
        self.asked: list[str] = []
        self._raw, self._queue = raw, queue
        self._execute = first._execute
        first._execute = self

    async def __call__(self, call: Any) -> Any:
        """Carry out a call of the first one, then take over what is there still."""
        self.asked.append(call.name)
        reply = await self._execute(call)
        for entry, *_ in self._raw("XPENDING", self._queue, "q", "-", "+", 10, CONSUMER):
            age = ("IDLE", 60_000, "JUSTID")
            self._raw("XCLAIM", self._queue, "q", CONSUMER, 0, entry, *age)
        terms = DurableTerms(max_deliveries=5)
        self.got += await self.puller.pull("q", most=10, terms=terms)
        return reply


@pytest.fixture
def taking(spell: Spell, puller: Puller, raw: Raw, event_store: EventStore) -> Any:
    """Begin to take over what `puller` was given."""
    return lambda: Taking(spell, puller, raw, event_store.space.event_queue("0", "q"))


async def test_an_event_is_buried_or_handed_out_again_and_never_both(
    spell: Spell, puller: Puller, taking: Any, event_store: EventStore
) -> None:
    """Whoever is given it meanwhile can acknowledge it."""
    await spell.events.publish("a")
    (one,) = await puller.pull("q", terms=TERMS)
    other = taking()
    lost = await puller.nack("q", [one.receipt], error="no", terms=TERMS)
    assert event_store.dead("q") + len(other.got) == 1
    assert lost == [one.receipt for _ in other.got]
    assert await other.puller.ack("q", [each.receipt for each in other.got]) == len(other.got)


@pytest.mark.parametrize("handled", [True, False])
async def test_an_event_that_was_handed_out_again_cannot_be_given_back(
    spell: Spell, puller: Puller, taking: Any, handled: bool
) -> None:
    """The receipt of whoever has it now counts."""
    await spell.events.publish("a")
    (one,) = await puller.pull("q", terms=TERMS)
    other = taking()
    await puller.release("q", [one.receipt], handled=handled)
    (again,) = other.got
    assert await other.puller.ack("q", [again.receipt]) == 1


async def test_a_delay_keeps_an_event_from_others(
    spell: Spell, puller: Puller, raw: Raw, event_store: EventStore
) -> None:
    """It was to be claimed at once by others: the claim time begins anew with the answer."""
    await spell.events.publish("a")
    (one,) = await puller.pull("q", terms=TERMS)
    queue = event_store.space.event_queue("0", "q")
    (entry, *_), *_ = raw("XPENDING", queue, "q", "-", "+", 10)
    raw("XCLAIM", queue, "q", CONSUMER, 0, entry, "IDLE", 60_000, "JUSTID")
    terms = DurableTerms(max_deliveries=5)
    assert await puller.nack("q", [one.receipt], delay_s=20.0, terms=terms) == []
    assert await puller.pull("q", terms=terms) == []


async def test_answers_of_a_portion_are_one_call(
    spell: Spell, puller: Puller, taking: Any, event_store: EventStore
) -> None:
    """Hundreds of receipts cost the server as many steps, and the caller one answer."""
    await spell.events.publish_many(Event("a", number) for number in range(300))
    first, second = [await puller.pull("q", most=150, terms=TERMS) for _ in range(2)]
    other = taking()
    receipts = [one.receipt for one in first]
    assert await puller.nack("q", receipts, error="no", terms=TERMS) == []
    await puller.release("q", [one.receipt for one in second])
    assert other.asked == ["event_answer", "event_answer"]
    assert event_store.dead("q") == 150
    letters = await spell.events.dead_letters("q", limit=150)
    assert {(one.reason, one.error, one.deliveries, one.consumer) for one in letters} == {
        ("failed", "no", 1, CONSUMER)
    }
    assert await puller.nack("q", receipts, error="no", terms=TERMS) == receipts


async def test_what_is_given_up_while_it_is_pulled_was_nobody_elses(
    spell: Spell, puller: Puller, raw: Raw, event_store: EventStore
) -> None:
    """Unreadable bytes and events that nobody settled: to the dead letters, with why."""
    event_store.poison("q", b"\x63later")
    await spell.events.publish("a")
    assert len(await puller.pull("q", most=10, terms=TERMS)) == 1
    queue = event_store.space.event_queue("0", "q")
    for entry, *_ in raw("XPENDING", queue, "q", "-", "+", 10):
        age = ("IDLE", 60_000, "RETRYCOUNT", 2)
        raw("XCLAIM", queue, "q", CONSUMER, 0, entry, *age, "JUSTID")
    assert await puller.pull("q", most=10, terms=TERMS) == []
    letters = await spell.events.dead_letters("q")
    assert [one.reason for one in letters] == ["unreadable", "failed"]
    assert event_store.queue("q") == 0


async def test_what_is_dropped_while_a_puller_works_on_it_is_not_lost(
    spell: Spell, puller: Puller
) -> None:
    """It stays theirs as often as it is renewed, and its acknowledgement counts."""
    await puller.open("small", "*", capacity=2, overflow="drop_oldest")
    for number in range(2):
        await spell.events.publish("a", number)
    held = [one.receipt for one in await puller.pull("small", most=2, terms=TERMS)]
    for number in range(2):
        await spell.events.publish("a", number)
    for _ in range(2):
        assert await puller.renew("small", held) == []
    assert await puller.ack("small", held) == 2
    (info,) = [one for one in await spell.events.subscriptions() if one.name == "small"]
    assert info.dropped == 0
