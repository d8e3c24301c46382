"""Single keys over HTTP: values, entity tags, conditions, partial updates, the past."""

from __future__ import annotations

from fix_sidecar import Sidecar

KEY = "/v1/state/agent:alice/note"


async def test_what_was_set_comes_back_with_its_revision_as_entity_tag(sidecar: Sidecar) -> None:
    """The tag of the write is that of the read."""
    put = await sidecar.ask("PUT", KEY, {"text": "hi"})
    assert put.status_code == 200
    got = await sidecar.ask("GET", KEY)
    assert got.json() == {"text": "hi"}
    assert got.headers["etag"] == put.headers["etag"] == f'"{put.json()["revision"]}"'


async def test_a_write_on_an_old_revision_is_refused_and_changes_nothing(sidecar: Sidecar) -> None:
    """412 with the library's code; the value stays."""
    first = (await sidecar.ask("PUT", KEY, 1)).headers["etag"]
    await sidecar.ask("PUT", KEY, 2, headers={"if-match": first})
    again = await sidecar.ask("PUT", KEY, 3, headers={"if-match": first})
    assert (again.status_code, again.json()["code"]) == (412, "CONFLICT")
    assert again.headers["content-type"] == "application/problem+json"
    assert (await sidecar.ask("GET", KEY)).json() == 2


async def test_if_none_match_star_creates_once(sidecar: Sidecar) -> None:
    """The second one is refused."""
    headers = {"if-none-match": "*"}
    assert (await sidecar.ask("PUT", KEY, 1, headers=headers)).status_code == 200
    assert (await sidecar.ask("PUT", KEY, 2, headers=headers)).status_code == 412
    assert (await sidecar.ask("GET", KEY)).json() == 1


async def test_an_unchanged_value_is_not_sent_again(sidecar: Sidecar) -> None:
    """304 without a body, as long as the revision is the one that the client has."""
    tag = (await sidecar.ask("PUT", KEY, [1])).headers["etag"]
    answer = await sidecar.ask("GET", KEY, headers={"if-none-match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_a_condition_that_a_route_does_not_keep_is_refused(sidecar: Sidecar) -> None:
    """Not made as if there were none: nothing is changed."""
    stale = {"if-match": '"1-1"'}
    for path, body in (
        ("/v1/state/agent:alice/n/increment", {}),
        ("/v1/state/agent:alice/l/append", {"items": [1]}),
        ("/v1/scopes/agent:alice/set-many", {"values": {"a": 1}}),
    ):
        answer = await sidecar.ask("POST", path, body, headers=stale)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PRECONDITION")
    unmodified = {"if-unmodified-since": "Thu, 26 Nov 2026 09:00:00 GMT"}
    assert (await sidecar.ask("PUT", KEY, 1, headers=unmodified)).status_code == 400
    assert (await sidecar.ask("GET", "/v1/scopes/agent:alice/count")).json()["count"] == 0


async def test_a_conflict_is_not_called_retryable(sidecar: Sidecar) -> None:
    """The same request would meet it again for ever: a client has to read first."""
    answer = await sidecar.ask("PUT", KEY, 1, headers={"if-match": '"1-1"'})
    assert (answer.status_code, answer.json()["retryable"]) == (412, False)
