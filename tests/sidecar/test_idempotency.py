"""``Idempotency-Key``: whatever is lost on the way, a request is carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_auth import token_entry
from fix_events import EventStore, refuse_calls
from fix_faults import stopped
from fix_raw_http import Dial, request
from fix_sidecar import Sidecar, StartSidecar, running_sidecar
from fix_sidecar_process import StartProcess

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.minting import new_token

KEY = "/v1/state/agent:once/count"
ADD = f"{KEY}/increment"
ONCE = {"idempotency-key": "first"}


async def count(sidecar: Sidecar) -> Any:
    """Return the number that every request here adds to."""
    answer = await sidecar.ask("GET", KEY)
    return answer.json() if answer.status_code == 200 else None


async def test_the_same_request_again_gets_the_first_answer(sidecar: Sidecar) -> None:
    """Body, status and headers; only that it is a repetition is said besides."""
    first = await sidecar.ask("POST", ADD, {"by": 2}, headers=ONCE)
    again = await sidecar.ask("POST", ADD, {"by": 2}, headers=ONCE)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (
        None,
        "true",
    )
    put = [
        await sidecar.ask("PUT", f"{KEY}2", 1, headers=ONCE | {"idempotency-key": "p"})
        for _ in "ab"
    ]
    assert put[0].headers["etag"] == put[1].headers["etag"]
    assert await count(sidecar) == 2


async def test_the_same_answer_comes_in_the_form_that_is_asked_for(sidecar: Sidecar) -> None:
    """Who repeats a request may want MessagePack now."""
    from llmspell_dist.codec import decode

    await sidecar.ask("POST", ADD, {"by": 2}, headers=ONCE)
    wants = ONCE | {"accept": "application/msgpack"}
    again = await sidecar.ask("POST", ADD, {"by": 2}, headers=wants)
    assert decode(again.content) == {"value": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"body": {"by": 3}},
        {"path": f"{KEY}2/increment"},
        {"path": f"{KEY}/expire", "body": {"ttl": 60}},
    ],
)
async def test_the_key_with_another_request_is_refused(
    sidecar: Sidecar, change: dict[str, Any]
) -> None:
    """422, and nothing is done."""
    await sidecar.ask("POST", ADD, {"by": 2}, headers=ONCE)
    asked = {"path": ADD, "body": {"by": 2}} | change
    answer = await sidecar.ask("POST", asked["path"], asked["body"], headers=ONCE)
    assert (answer.status_code, answer.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert await count(sidecar) == 2


@pytest.fixture
def two(access_path: Path) -> tuple[Access, list[dict[str, str]]]:
    """An access with two callers, and their headers with the same key."""
    headers, entries = [], []
    for name in ("one", "two"):
        secret, digest = new_token()
        entries.append(token_entry(digest, name))
        headers.append(ONCE | {"authorization": f"Bearer {secret}"})
    access_path.write_text("".join(entries))
    return Access.load(access_path), headers


async def test_another_caller_has_keys_of_its_own(
    start_sidecar: StartSidecar, two: tuple[Access, list[dict[str, str]]]
) -> None:
    """The same key of two tokens are two keys: nobody sees another's answer."""
    access, headers = two
    sidecar = await start_sidecar(access)
    told = [(await sidecar.ask("POST", ADD, {"by": 1}, headers=one)).json() for one in headers]
    assert told == [{"value": 1}, {"value": 2}]


async def test_what_was_answered_is_read_by_nobody_else(sidecar: Sidecar) -> None:
    """Not by who may everything: an answer is for whoever asked. No list shows the scope."""
    await sidecar.ask("POST", ADD, {"by": 2}, headers=ONCE)
    scope = "custom:llmspell.idempotency"
    for path in ("", "/items", "/keys", "/count"):
        assert (await sidecar.ask("GET", f"/v1/scopes/{scope}{path}")).status_code == 403
    copied = await sidecar.ask("POST", f"/v1/scopes/{scope}/copy", {"target": "agent:mine"})
    assert copied.status_code == 403
    assert (await sidecar.ask("GET", f"/v1/watch/{scope}")).status_code == 403
    assert scope not in (await sidecar.ask("GET", "/v1/scopes")).text


async def test_a_refusal_is_repeated_too(sidecar: Sidecar) -> None:
    """What was wrong then is told again, though it would be right now."""
    await sidecar.ask("PUT", KEY, "text")
    first = await sidecar.ask("POST", ADD, {}, headers=ONCE)
    await sidecar.ask("PUT", KEY, 5)
    again = await sidecar.ask("POST", ADD, {}, headers=ONCE)
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert first.headers["content-type"] == again.headers["content-type"]
    assert (first.status_code, await count(sidecar)) == (409, 5)


async def test_a_condition_that_failed_fails_again(sidecar: Sidecar) -> None:
    """A 412 is an answer as any other."""
    await sidecar.ask("PUT", KEY, 1)
    headers = ONCE | {"if-none-match": "*"}
    first = await sidecar.ask("PUT", KEY, 2, headers=headers)
    await sidecar.ask("DELETE", KEY)
    again = await sidecar.ask("PUT", KEY, 2, headers=headers)
    assert (first.status_code, again.status_code) == (412, 412)
    assert await count(sidecar) is None


async def test_a_removal_is_repeated_without_a_body(sidecar: Sidecar) -> None:
    """204 again, though there is nothing to remove any more."""
    await sidecar.ask("PUT", KEY, 1)
    told = [(await sidecar.ask("DELETE", KEY, headers=ONCE)).status_code for _ in "ab"]
    assert told == [204, 204]


async def test_many_at_once_are_carried_out_once(sidecar: Sidecar) -> None:
    """One succeeds; the others hear that it is under way, or its answer."""
    told = await asyncio.gather(
        *(sidecar.ask("POST", ADD, {"by": 1}, headers=ONCE) for _ in range(30))
    )
    statuses = {one.status_code for one in told}
    assert statuses <= {200, 409}
    assert all(one.json()["value"] == 1 for one in told if one.status_code == 200)
    assert all(
        one.json()["code"] == "IDEMPOTENCY_KEY_PENDING" for one in told if one.status_code == 409
    )
    assert await count(sidecar) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, b"a\\tb".decode("unicode_escape"), '""'])
async def test_a_key_that_is_none_is_refused(sidecar: Sidecar, key: str) -> None:
    """400, before anything is done."""
    answer = await sidecar.ask("POST", ADD, {}, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert await count(sidecar) is None


async def test_an_answer_that_was_lost_is_had_by_asking_again(sidecar: Sidecar, dial: Dial) -> None:
    """The connection is cut once the sidecar has the request; the repetition adds nothing."""
    port = int(sidecar.url.rpartition(":")[2])
    for number in range(20):
        data = request("POST", ADD, b'{"by":1}', {"idempotency-key": f"cut-{number}"})
        line = await dial(port)
        await line.send(data)
        await line.close()
        async with asyncio.timeout(10):
            while True:
                answer = await sidecar.ask(
                    "POST", ADD, {"by": 1}, headers={"idempotency-key": f"cut-{number}"}
                )
                if answer.status_code == 200:
                    break
                assert answer.json()["code"] == "IDEMPOTENCY_KEY_PENDING"
        assert answer.json() == {"value": number + 1}
    assert await count(sidecar) == 20


@pytest.mark.needs("process")
async def test_an_outage_in_the_middle_is_told_and_can_be_tried_again(
    own_server: Callable[..., Any], sidecar_process: StartProcess
) -> None:
    """503 while Redis stands still; then the key carries it out once, or nobody can say."""
    server = own_server()
    sidecar = await sidecar_process(server.url)
    async with sidecar.http() as http:
        await http.put(KEY, json=0)
        with stopped(server.pid):
            lost = await http.post(ADD, json={"by": 1}, headers=ONCE)
        assert lost.status_code in {503, 504}
        answer = await http.post(ADD, json={"by": 1}, headers=ONCE)
        added = (await http.get(KEY)).json()
    if answer.status_code == 200:
        assert added == 1
    else:
        assert answer.json()["code"] == "IDEMPOTENCY_KEY_PENDING"
        assert added in {0, 1}


async def test_a_key_outlives_its_sidecar(
    url: str, namespace: str, sidecar_port: Callable[[], int], start_sidecar: StartSidecar
) -> None:
    """Another sidecar, or the same after a restart, knows what was carried out."""
    await start_sidecar()  # the memory row ends with its last client
    async with running_sidecar(url, namespace, sidecar_port()) as first:
        await first.ask("POST", ADD, {"by": 2}, headers=ONCE)
    async with running_sidecar(url, namespace, sidecar_port()) as second:
        again = await second.ask("POST", ADD, {"by": 2}, headers=ONCE)
        assert again.headers["idempotency-replayed"] == "true"
        assert await count(second) == 2


async def test_an_answer_too_large_to_keep_is_not_answered_wrongly(sidecar: Sidecar) -> None:
    """A large answer comes again whole, or it is said that nobody knows: never another one."""
    await sidecar.ask("PUT", KEY, "y" * 6_000_000)
    path = "/v1/scopes/agent:once/get-many"
    wish = {"keys": ["count"]}
    told = [await sidecar.ask("POST", path, wish, headers=ONCE) for _ in "ab"]
    assert told[0].status_code == 200
    assert told[1].status_code in {200, 409}
    if told[1].status_code == 200:
        assert told[1].content == told[0].content


async def test_a_batch_of_events_that_ended_in_the_middle_is_not_published_again(
    sidecar: Sidecar, event_store: EventStore
) -> None:
    """The answer says that it may have happened, and the key that nobody knows."""
    await sidecar.ask("PUT", "/v1/subscriptions/q", {"pattern": "a"})
    refuse_calls(sidecar.services.spell.events, {2})
    body = {"events": [{"type": "a", "data": number} for number in range(600)]}
    first = await sidecar.ask("POST", "/v1/events/batch", body, headers=ONCE)
    said = first.json()
    assert (first.status_code, said["code"]) == (503, "STORE_BUSY")
    assert (said["may_have_happened"], said["retryable"]) == (True, False)
    again = await sidecar.ask("POST", "/v1/events/batch", body, headers=ONCE)
    assert (again.status_code, again.json()["code"]) == (409, "IDEMPOTENCY_KEY_PENDING")
    assert event_store.queue("q") == 256
