"""Many events at once, of which the server takes some: what the error says of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Any

import pytest
from fix_events import EventStore, refuse_calls, soon
from fix_state import until

from llmspell_dist import blocking
from llmspell_dist.client import Spell
from llmspell_dist.errors import StoreBusyError
from llmspell_dist.events import Event
from llmspell_dist.events.errors import PublishBlockedError, PublishError, PublishRejectedError
from llmspell_dist.events.rate import RateLimit

pytestmark = pytest.mark.integration

LARGE = "x" * 30_000
"""Two of these are no batch."""


async def registered(spell: Spell, **terms: Any) -> None:
    """Make a durable subscription and leave it."""
    async with spell.events.subscribe(durable="q", **terms):
        pass


def told(error: BaseException) -> tuple[bool, bool]:
    """Whether it may have happened, and whether it can be tried again."""
    assert isinstance(error, StoreBusyError)
    return error.may_have_happened, error.retryable


@pytest.mark.parametrize(
    ("data", "refused", "stored"),
    [(0, {2}, 256), (0, {3}, 512), (LARGE, {1}, 3), (LARGE, {4}, 3)],
    ids=["second of three", "last of three", "first of those sent together", "last of those"],
)
async def test_once_a_part_is_stored_an_error_says_so(
    spell: Spell, event_store: EventStore, data: Any, refused: Container[int], stored: int
) -> None:
    """Whoever published them all again would have the part twice."""
    await registered(spell)
    refuse_calls(spell.events, refused)
    count = 4 if data else 600
    with pytest.raises(StoreBusyError, match="the write may have happened") as caught:
        await soon(spell.events.publish_many(Event("a", data) for _ in range(count)))
    assert told(caught.value) == (True, False)
    assert event_store.queue("q") == stored


@pytest.mark.parametrize("data", [0, LARGE])
async def test_while_nothing_is_stored_all_can_be_published_again(
    spell: Spell, event_store: EventStore, data: Any
) -> None:
    """Also if several batches were under way: each of them was refused."""
    await registered(spell)
    refuse_calls(spell.events, range(100))
    with pytest.raises(StoreBusyError) as caught:
        await soon(spell.events.publish_many(Event("a", data) for _ in range(4)))
    assert told(caught.value) == (False, True)
    assert event_store.queue("q") == 0


async def test_what_was_stored_before_the_others_had_to_wait_counts(
    spell: Spell, event_store: EventStore
) -> None:
    """A full queue took some of a batch; the server is too busy for the rest."""
    await registered(spell, capacity=2)
    refuse_calls(spell.events, range(2, 100))
    publishing = asyncio.create_task(spell.events.publish_many([Event("a", n) for n in range(4)]))
    await until(publishing.done)
    assert told(publishing.exception() or AssertionError()) == (True, False)
    assert event_store.queue("q") == 2


def test_a_generator_of_a_thread_is_one_operation_too(
    url: str, namespace: str, event_store: EventStore
) -> None:
    """Though it is handed to the background in portions."""
    with blocking.connect(url, namespace=namespace) as client:
        with client.events.subscribe(durable="q"):
            pass
        refuse_calls(client.events._inner, {5})
        with pytest.raises(StoreBusyError) as caught:
            client.events.publish_many(Event("a", n) for n in range(1100))
        assert told(caught.value) == (True, False)
        assert event_store.queue("q") == 1024


@pytest.mark.parametrize("room", [0, 1, 256, 300])
@pytest.mark.parametrize(
    ("overflow", "error"), [("reject", PublishRejectedError), ("block", PublishBlockedError)]
)
async def test_a_refusal_can_be_tried_again_only_if_nothing_is_stored(
    spell: Spell, event_store: EventStore, room: int, overflow: str, error: type[PublishError]
) -> None:
    """A queue has room for some of the events: those would be in it twice."""
    await registered(spell, capacity=400, overflow=overflow)
    await spell.events.publish_many([Event("a", n) for n in range(400 - room)])
    with pytest.raises(error) as caught:
        await spell.events.publish_many([Event("a", n) for n in range(600)], timeout=0.01)
    assert caught.value.retryable is (room == 0)
    assert event_store.queue("q") == 400


async def test_a_limit_of_ones_own_behind_events_that_are_stored_says_so(
    spell: Spell, event_store: EventStore
) -> None:
    """The first 256 have left by then."""
    await registered(spell)
    spell.events.limit_rate(RateLimit(0.001, burst=300, overflow="reject"))
    with pytest.raises(PublishError) as caught:
        await spell.events.publish_many([Event("a", n) for n in range(600)])
    assert caught.value.retryable is (event_store.queue("q") == 0)
