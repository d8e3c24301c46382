"""Events over HTTP: published, heard live, taken from queues and answered for."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fix_sidecar import Sidecar, StartSidecar
from fix_streams import listening, until

from llmspell_dist.events import Event
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.grants import Grant, Principal, Verb

QUEUE = "/v1/subscriptions/work"


async def make(sidecar: Sidecar, pattern: str = "job.*", **more: Any) -> dict[str, Any]:
    """Make the durable subscription of these tests."""
    answer = await sidecar.ask("PUT", QUEUE, {"pattern": pattern, **more})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def fetch(sidecar: Sidecar, **body: Any) -> list[dict[str, Any]]:
    """Take events out of the queue."""
    answer = await sidecar.ask("POST", f"{QUEUE}/fetch", body)
    assert answer.status_code == 200, answer.text
    deliveries: list[dict[str, Any]] = answer.json()["deliveries"]
    return deliveries


async def settle(sidecar: Sidecar, how: str, *receipts: str, **more: Any) -> Any:
    """Answer for deliveries."""
    answer = await sidecar.ask("POST", f"{QUEUE}/{how}", {"receipts": list(receipts), **more})
    assert answer.status_code in {200, 204}, answer.text
    return answer.json() if answer.content else None


# --- publishing -----------------------------------------------------------------------------------


async def test_a_published_event_comes_to_the_library_and_to_a_stream_alike(
    sidecar: Sidecar,
) -> None:
    """With everything that was said about it; the causes come from the request's headers."""
    spell = sidecar.services.spell
    async with spell.events.subscribe("job.*") as heard:
        async with listening(sidecar, "/v1/events", pattern="job.done") as events:
            answer = await sidecar.ask(
                "POST",
                "/v1/events",
                {"type": "job.done", "data": {"$bytes": "aGk="}, "tags": ["a"], "priority": -3},
                headers={"x-correlation-id": "c-1", "x-actor": "me"},
            )
            assert answer.status_code == 200, answer.text
            said = await events.next()
        event = await anext(heard)
    assert said.data == answer.json()
    assert (event.data, event.tags, event.priority) == (b"hi", ("a",), -3)
    assert (event.correlation_id, event.source, event.id) == ("c-1", "me", said.data["id"])
    assert event.language == "unknown"


async def test_many_are_published_in_their_order(sidecar: Sidecar) -> None:
    """In one request."""
    events = [{"type": "job.n", "data": number} for number in range(50)]
    async with sidecar.services.spell.events.subscribe("job.*") as heard:
        answer = await sidecar.ask("POST", "/v1/events/batch", {"events": events})
        assert answer.json() == {"count": 50}
        assert [(await anext(heard)).data for _ in range(50)] == list(range(50))


async def test_a_cloudevent_comes_as_our_event_and_goes_out_as_one(sidecar: Sidecar) -> None:
    """Structured mode in; `form=cloudevent` out. What looks like our tag is the sender's data."""
    sent = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shop",
        "type": "job.paid",
        "datacontenttype": "application/json",
        "data": {"$bytes": "aGk="},
    }
    async with listening(sidecar, "/v1/events", form="cloudevent") as events:
        headers = {"content-type": "application/cloudevents+json"}
        answer = await sidecar.ask("POST", "/v1/cloudevents", sent, headers=headers)
        assert answer.status_code == 200, answer.text
        came = (await events.next()).data
    assert {name: came[name] for name in sent} == sent
    bad = await sidecar.ask("POST", "/v1/cloudevents", {**sent, "specversion": "2"})
    assert (bad.status_code, bad.json()["facts"]["argument"]) == (400, "specversion")


async def test_a_full_queue_that_rejects_refuses_the_event(sidecar: Sidecar) -> None:
    """503 with the library's code: it can be tried again."""
    await make(sidecar, capacity=1, overflow="reject")
    assert (await sidecar.ask("POST", "/v1/events", {"type": "job.a"})).status_code == 200
    answer = await sidecar.ask("POST", "/v1/events", {"type": "job.a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "PUBLISH_REJECTED")


async def test_an_idempotency_key_publishes_once(sidecar: Sidecar) -> None:
    """The second request is answered as the first."""
    await make(sidecar)
    headers = {"idempotency-key": "k"}
    first = await sidecar.ask("POST", "/v1/events", {"type": "job.a"}, headers=headers)
    again = await sidecar.ask("POST", "/v1/events", {"type": "job.a"}, headers=headers)
    assert first.json() == again.json()
    assert len(await fetch(sidecar, most=5)) == 1


async def test_a_stream_that_was_too_slow_says_what_it_missed(sidecar: Sidecar) -> None:
    """The counters of the subscription, before the next event."""
    async with listening(sidecar, "/v1/events", buffer="2") as events:
        fill = "x" * 100_000  # more than the sockets between hold
        for number in range(200):
            await sidecar.services.spell.events.publish("job.n", {"n": number, "fill": fill})
        seen = [await events.next()]
        while not (seen[-1].event == "message" and seen[-1].data["data"]["n"] == 199):
            seen.append(await events.next())
    missed = [one.data["dropped"] for one in seen if one.event == "missed"]
    assert missed
    assert len([one for one in seen if one.event == "message"]) + missed[-1] == 200


# --- queues ---------------------------------------------------------------------------------------


async def test_a_subscription_is_made_found_listed_and_removed(sidecar: Sidecar) -> None:
    """Another pattern under its name is refused."""
    made = await make(sidecar, capacity=7)
    assert made == {"name": "work", "pattern": "job.*", "capacity": 7, "overflow": "block"}
    assert await make(sidecar) == made
    other = await sidecar.ask("PUT", QUEUE, {"pattern": "other.*"})
    assert (other.status_code, other.json()["code"]) == (409, "SUBSCRIPTION_EXISTS")
    await sidecar.services.spell.events.publish("job.a", 1)
    listed = (await sidecar.ask("GET", "/v1/subscriptions")).json()["subscriptions"]
    assert [(one["name"], one["lag"]) for one in listed] == [("work", 1)]
    assert (await sidecar.ask("GET", QUEUE)).json() == listed[0]
    assert (await sidecar.ask("DELETE", QUEUE)).status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fetch")):
        gone = await sidecar.ask(method, QUEUE + path, {} if path else None)
        assert (gone.status_code, gone.json()["code"]) == (404, "SUBSCRIPTION_NOT_FOUND")


async def test_what_was_fetched_and_acknowledged_is_gone(sidecar: Sidecar) -> None:
    """And what was not is still the caller's."""
    await make(sidecar)
    await sidecar.services.spell.events.publish_many(Event("job.n", n) for n in range(3))
    one, two = await fetch(sidecar, most=2)
    assert [one["event"]["data"], two["event"]["data"]] == [0, 1]
    assert await settle(sidecar, "ack", one["receipt"]) == {"count": 1}
    assert await settle(sidecar, "ack", one["receipt"]) == {"count": 0}
    assert [each["event"]["data"] for each in await fetch(sidecar, most=9)] == [2]
    assert (await sidecar.ask("GET", QUEUE)).json()["pending"] == 2


async def test_a_fetch_waits_for_an_event(sidecar: Sidecar) -> None:
    """It comes at once when something is published."""
    await make(sidecar)
    waiting = asyncio.create_task(fetch(sidecar, wait=20))
    await until(lambda: sidecar.services.spell.events._bells._heard)
    await sidecar.services.spell.events.publish("job.a", 7)
    async with asyncio.timeout(5):
        assert [one["event"]["data"] for one in await waiting] == [7]


async def test_a_waiting_fetch_ends_with_the_sidecar(sidecar: Sidecar) -> None:
    """And says that another one may be asked."""
    await make(sidecar)
    waiting = asyncio.create_task(sidecar.ask("POST", f"{QUEUE}/fetch", {"wait": 20}))
    await until(lambda: sidecar.services.spell.events._bells._heard)
    sidecar.services.drain()
    async with asyncio.timeout(5):
        assert (await waiting).json()["code"] == "DRAINING"


async def test_what_nobody_answered_for_comes_again_and_dies_in_the_end(sidecar: Sidecar) -> None:
    """After the claim time, to whoever asks; each time counts."""
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    terms = {"claim_idle": 0.05, "max_deliveries": 2, "wait": 10}
    assert [one["deliveries"] for one in await fetch(sidecar, **terms)] == [1]
    (again,) = await fetch(sidecar, **terms)
    assert (again["deliveries"], again["event"]["data"]) == (2, 1)
    await until_async(lambda: _dead(sidecar, terms))
    (letter,) = (await sidecar.ask("GET", f"{QUEUE}/dead")).json()["letters"]
    assert (letter["reason"], letter["deliveries"]) == ("failed", 2)


async def _dead(sidecar: Sidecar, terms: dict[str, Any]) -> bool:
    assert await fetch(sidecar, **{**terms, "wait": 0}) == []
    return bool((await sidecar.ask("GET", QUEUE)).json()["dead"])


async def until_async(condition: Any) -> None:
    """Wait until something holds that has to be asked for."""
    async with asyncio.timeout(10):
        while not await condition():
            pass


async def test_an_event_that_failed_comes_again_and_then_goes_to_the_dead_letters(
    sidecar: Sidecar,
) -> None:
    """With what went wrong; from there it can be replayed or deleted."""
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    (first,) = await fetch(sidecar)
    assert await settle(sidecar, "nack", first["receipt"], delay=0) == {"lost": []}
    (second,) = await fetch(sidecar, wait=10)
    assert second["deliveries"] == 2
    assert await settle(sidecar, "nack", first["receipt"]) == {"lost": [first["receipt"]]}
    await settle(sidecar, "nack", second["receipt"], error="boom", max_deliveries=2)
    (letter,) = (await sidecar.ask("GET", f"{QUEUE}/dead")).json()["letters"]
    assert (letter["error"], letter["event"]["data"]) == ("boom", 1)
    replayed = await sidecar.ask("POST", f"{QUEUE}/dead/replay", {"ids": [letter["id"]]})
    assert replayed.json() == {"count": 1}
    (third,) = await fetch(sidecar)
    await settle(sidecar, "nack", third["receipt"], max_deliveries=1)
    (letter,) = (await sidecar.ask("GET", f"{QUEUE}/dead")).json()["letters"]
    deleted = await sidecar.ask("DELETE", f"{QUEUE}/dead", id=letter["id"])
    assert deleted.json() == {"count": 1}


@pytest.mark.parametrize(
    "wrong",
    [f"{2**64}-0", f"{2**48}-0", f"0-{2**64}", f"{2**64 - 1}-{2**64 - 1}", "1", "a-b"],
)
async def test_an_id_that_no_dead_letter_has_is_refused_by_name(
    sidecar: Sidecar, wrong: str
) -> None:
    """Before the server is asked, which would not understand it."""
    await make(sidecar)
    asked = {
        "after": await sidecar.ask("GET", f"{QUEUE}/dead", after=wrong),
        "ids": await sidecar.ask("POST", f"{QUEUE}/dead/replay", {"ids": [wrong]}),
    }
    for argument, answer in asked.items():
        assert (answer.status_code, answer.json()["facts"]["argument"]) == (400, argument)
    last = f"{2**48 - 1}-{2**64 - 1}"
    assert (await sidecar.ask("GET", f"{QUEUE}/dead", after=last)).json() == {"letters": []}


async def test_a_delayed_failure_comes_after_its_delay(sidecar: Sidecar) -> None:
    """Not before: nothing is there when it was just given back."""
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    (first,) = await fetch(sidecar)
    await settle(sidecar, "nack", first["receipt"], delay=0.2)
    assert await fetch(sidecar) == []
    assert [one["deliveries"] for one in await fetch(sidecar, wait=10)] == [2]


async def test_what_is_renewed_stays_and_what_is_released_does_not_count(sidecar: Sidecar) -> None:
    """A renewal of what another has is told so."""
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    (one,) = await fetch(sidecar)
    assert await settle(sidecar, "renew", one["receipt"]) == {"lost": []}
    await settle(sidecar, "release", one["receipt"])
    (again,) = await fetch(sidecar)
    assert (again["deliveries"], again["receipt"]) == (1, one["receipt"])
    await settle(sidecar, "ack", again["receipt"])
    assert await settle(sidecar, "renew", one["receipt"]) == {"lost": [one["receipt"]]}


async def test_a_receipt_counts_no_more_once_the_event_was_handed_out_again(
    sidecar: Sidecar,
) -> None:
    """Whoever was too slow neither keeps the event nor takes it out: the one who has it does."""
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    terms = {"claim_idle": 0.05, "wait": 10}
    old, new = [(await fetch(sidecar, **terms))[0]["receipt"] for _ in range(2)]
    assert await settle(sidecar, "renew", old, new) == {"lost": [old]}
    assert await settle(sidecar, "ack", old) == {"count": 0}
    assert (await sidecar.ask("GET", QUEUE)).json()["pending"] == 1
    assert await settle(sidecar, "ack", new, old, new) == {"count": 1}
    assert (await sidecar.ask("GET", QUEUE)).json()["lag"] == 0


async def test_a_receipt_is_good_at_every_sidecar(
    sidecar: Sidecar, start_sidecar: StartSidecar, url: str
) -> None:
    """So a load balancer may stand before them."""
    if url.startswith("memory"):
        pytest.skip("the server lives in this process's client")
    other = await start_sidecar()
    await make(sidecar)
    await sidecar.services.spell.events.publish("job.a", 1)
    (one,) = await fetch(sidecar)
    assert await settle(other, "nack", one["receipt"], delay=0) == {"lost": []}
    (again,) = await fetch(other, wait=10)
    assert await settle(sidecar, "ack", again["receipt"]) == {"count": 1}


# --- a queue as a stream --------------------------------------------------------------------------


async def test_a_stream_hands_out_no_more_than_may_be_unanswered(sidecar: Sidecar) -> None:
    """An answer makes room; at its end what is left goes to others at once."""
    await sidecar.services.spell.events.publish("job.n", 0)  # nobody is subscribed yet
    async with listening(sidecar, f"{QUEUE}/events", pattern="job.*", max_unacked="2") as events:
        await sidecar.services.spell.events.publish_many(Event("job.n", n) for n in range(4))
        one, two = await events.take(2)
        assert [one.data["event"]["data"], two.data["event"]["data"]] == [0, 1]
        assert (await sidecar.ask("GET", QUEUE)).json()["pending"] == 2
        await settle(sidecar, "ack", one.data["receipt"])
        assert (await events.next()).data["event"]["data"] == 2
    left = [await fetch(sidecar, most=1, wait=10) for _ in range(3)]
    assert sorted(one["event"]["data"] for (one,) in left) == [1, 2, 3]


@pytest.mark.needs("process")
async def test_an_answer_in_one_queue_means_nothing_in_another(sidecar: Sidecar) -> None:
    """One event lies in both under one id: the stream of the other has it still, and no more."""
    for attempt in range(100):  # each queue makes its id, of the server's time: mostly the same
        one, two = (f"/v1/subscriptions/{name}-{attempt}" for name in ("one", "two"))
        for path in (one, two):
            await sidecar.ask("PUT", path, {"pattern": f"job.{attempt}"})
        events = [Event(f"job.{attempt}", n) for n in range(2)]
        await sidecar.services.spell.events.publish_many(events)
        async with (
            listening(sidecar, f"{one}/events", max_unacked="1") as ours,
            listening(sidecar, f"{two}/events", max_unacked="1") as theirs,
        ):
            receipt = (await ours.next()).data["receipt"]
            if (await theirs.next()).data["receipt"] != receipt:
                continue
            for listener, path in ((ours, one), (theirs, two)):
                assert (await sidecar.ask("GET", path)).json()["pending"] == 1
                await sidecar.ask("POST", f"{path}/ack", {"receipts": [receipt]})
                assert (await listener.next()).data["event"]["data"] == 1
            return
    raise AssertionError("the ids of one event in two queues were never equal")


async def test_a_stream_learns_of_answers_that_another_sidecar_took(
    sidecar: Sidecar, start_sidecar: StartSidecar, url: str
) -> None:
    """When it renews what is out."""
    if url.startswith("memory"):
        pytest.skip("the server lives in this process's client")
    other = await start_sidecar()
    path = f"{QUEUE}/events"
    async with listening(
        sidecar, path, pattern="job.*", max_unacked="1", claim_idle="0.3"
    ) as events:
        await sidecar.services.spell.events.publish_many(Event("job.n", n) for n in range(2))
        first = await events.next()
        await settle(other, "ack", first.data["receipt"])
        assert (await events.next()).data["event"]["data"] == 1


async def test_a_stream_of_a_queue_that_is_removed_ends_with_the_problem(sidecar: Sidecar) -> None:
    """As a subscription of the library does."""
    async with listening(sidecar, f"{QUEUE}/events", pattern="job.*") as events:
        await sidecar.ask("DELETE", QUEUE)
        said = await events.ended()
    assert [(one.event, one.data["code"]) for one in said] == [
        ("problem", "SUBSCRIPTION_NOT_FOUND")
    ]


# --- who may --------------------------------------------------------------------------------------


class _As:
    """Everybody is this one."""

    def __init__(self, *grants: tuple[str, Verb]) -> None:
        held = [Grant(pattern, frozenset({verb})) for pattern, verb in grants]
        self.principal = Principal("some", "token", held)

    is_open = False
    check_bind = Access.open_on_loopback().check_bind

    def cached(self, *_: Any) -> Principal:
        return self.principal


async def test_each_type_and_pattern_takes_a_right_of_its_own(start_sidecar: StartSidecar) -> None:
    """Writing one type is not writing another; a pattern must be covered as a whole."""
    access = _As(("event:job.*", Verb.WRITE), ("event:job.*", Verb.READ))
    sidecar = await start_sidecar(access)
    await make(sidecar)

    async def status(method: str, path: str, body: Any = None, **query: Any) -> int:
        answer: httpx.Response = await sidecar.ask(method, path, body, **query)
        return answer.status_code

    event, other = {"type": "job.a"}, {"type": "audit.a"}
    assert await status("POST", "/v1/events", event) == 200
    assert await status("POST", "/v1/events", other) == 403
    assert await status("POST", "/v1/events/batch", {"events": [event, other]}) == 403
    assert await status("GET", "/v1/events", pattern="*") == 403
    assert await status("GET", "/v1/events", pattern="audit.a") == 403
    assert await status("PUT", "/v1/subscriptions/x", {"pattern": "*"}) == 403
    assert await status("GET", "/v1/subscriptions") == 403
    assert await status("DELETE", QUEUE) == 403
    assert await status("POST", "/v1/subscriptions/unknown/fetch", {}) == 403
    assert await status("POST", f"{QUEUE}/fetch", {}) == 200


async def test_whose_a_queue_is_and_what_it_means_is_told_to_nobody_else(
    start_sidecar: StartSidecar,
) -> None:
    """One that is there and one that is not: the same answer, on every route of theirs."""
    access = _As(("event:*", Verb.READ))
    sidecar = await start_sidecar(access)
    await make(sidecar, "secret.plan")
    access.principal = _As(*(("event:job.*", verb) for verb in Verb)).principal
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/fetch", {}),
        ("GET", "/events", None),
        ("POST", "/ack", {"receipts": []}),
        ("GET", "/dead", None),
        ("POST", "/dead/replay", {"ids": []}),
    ):
        there = await sidecar.ask(method, QUEUE + path, body)
        nowhere = await sidecar.ask(method, f"/v1/subscriptions/none{path}", body)
        assert there.status_code == nowhere.status_code == 403
        assert there.json()["facts"] == nowhere.json()["facts"]
        assert "secret" not in there.text
    for taken in (
        await sidecar.ask("PUT", QUEUE, {"pattern": "job.*"}),
        await sidecar.ask("GET", f"{QUEUE}/events", pattern="job.*"),
    ):
        assert (taken.status_code, taken.json()["code"]) == (403, "FORBIDDEN")
        assert "secret" not in taken.text
