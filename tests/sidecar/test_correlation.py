"""Correlations over HTTP: the whole timeline, or what the caller may see of it."""

from __future__ import annotations

import json
from typing import Any

from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.correlation.documents import timeline_document
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.grants import Grant, Principal, Verb

ONE = "/v1/correlations/c-1"
HEADERS = {"x-correlation-id": "c-1"}


async def happen(sidecar: Sidecar) -> None:
    """Let something happen in a correlation: two commits and an event."""
    spell = sidecar.services.spell
    for path, body in (("agent:alice/a", 1), ("agent:bob/b", 2)):
        await sidecar.ask("PUT", f"/v1/state/{path}", body, headers=HEADERS)
    await spell.events.publish("job.done", 1, correlation_id="c-1")


async def test_a_timeline_is_the_document_that_the_command_prints(sidecar: Sidecar) -> None:
    """Entries, links and figures."""
    await happen(sidecar)
    found = await sidecar.ask("GET", ONE)
    assert found.status_code == 200, found.text
    expected = timeline_document(await sidecar.services.spell.correlation.timeline("c-1"))
    assert found.json() == json.loads(json.dumps(expected))
    assert [one["kind"] for one in found.json()["entries"]] == ["change", "change", "event"]


async def test_what_is_not_known_is_an_empty_timeline(sidecar: Sidecar) -> None:
    """As with the library."""
    answer = await sidecar.ask("GET", "/v1/correlations/none")
    assert (answer.status_code, answer.json()["entries"]) == (200, [])


class _As:
    """Everybody is this one."""

    def __init__(self, *patterns: str) -> None:
        held = [Grant(pattern, frozenset({Verb.READ, Verb.WRITE})) for pattern in patterns]
        self.principal = Principal("some", "token", held)

    is_open = False
    check_bind = Access.open_on_loopback().check_bind

    def cached(self, *_: Any) -> Principal:
        return self.principal


async def test_what_the_caller_may_not_read_is_left_out_and_counted(
    start_sidecar: StartSidecar,
) -> None:
    """Of scopes and of event types; the figures tell nothing of it either."""
    access = _As("*")
    sidecar = await start_sidecar(access)
    await happen(sidecar)
    access.principal = _As("correlation:c-1", "agent:alice").principal
    shown = (await sidecar.ask("GET", ONE)).json()
    assert [(one["kind"], one["target"]) for one in shown["entries"]] == [("change", "agent:alice")]
    assert shown["statistics"]["left_out"] == {"not_allowed": 2}
    assert shown["statistics"]["by_kind"] == {"change": 1}
    assert "bob" not in json.dumps(shown)
    found = (
        await sidecar.ask("POST", "/v1/correlations/query", {"correlation_ids": ["c-1"]})
    ).json()
    assert (len(found["matches"]), found["not_allowed"]) == (1, 2)
    assert (await sidecar.ask("GET", "/v1/correlations/c-2")).status_code == 403
    assert (await sidecar.ask("POST", "/v1/correlations/query", {})).status_code == 403
    assert (await sidecar.ask("GET", "/v1/correlations")).status_code == 403
    assert (await sidecar.ask("DELETE", ONE)).status_code == 403


async def test_a_query_tells_nothing_of_what_the_caller_may_not_read(
    start_sidecar: StartSidecar,
) -> None:
    """No filter, order or limit changes how much is hidden, or lets it take the place of others."""
    access = _As("*")
    sidecar = await start_sidecar(access)
    await happen(sidecar)
    access.principal = _As("correlation:c-1", "agent:bob").principal

    async def found(**filters: Any) -> tuple[list[str], int]:
        body = {"correlation_ids": ["c-1"], **filters}
        answer = (await sidecar.ask("POST", "/v1/correlations/query", body)).json()
        return [one["entry"]["target"] for one in answer["matches"]], answer["not_allowed"]

    ours = (["agent:bob"], 2)
    assert await found() == ours
    assert await found(limit=1) == ours  # what is hidden came before
    assert await found(limit=1, sort="time_descending") == ours  # and after
    assert await found(max_events=1, root_causes_only=True) == ours
    nothing: tuple[list[str], int] = ([], 2)
    for target in ("agent:alice", "agent:nobody"):
        assert await found(targets=[target]) == nothing
    for kind in ("job.*", "no.*"):
        assert await found(types=[kind]) == nothing
    assert await found(min_events=2) == nothing


async def test_entries_are_found_by_their_type(sidecar: Sidecar) -> None:
    """With how well they match and why."""
    await happen(sidecar)
    answer = await sidecar.ask("POST", "/v1/correlations/query", {"types": ["job.*"]})
    (match,) = answer.json()["matches"]
    assert (match["correlation_id"], match["entry"]["type"]) == ("c-1", "job.done")
    assert match["reasons"] == ["type job.*"]


async def test_a_link_counts_in_the_timeline(sidecar: Sidecar) -> None:
    """An unknown relationship is refused by name."""
    await happen(sidecar)
    first, _, event = (one["id"] for one in (await sidecar.ask("GET", ONE)).json()["entries"])
    link = {"from_id": event, "to_id": first, "relationship": "caused_by"}
    made = await sidecar.ask("POST", f"{ONE}/links", link)
    assert made.status_code == 200, made.text
    shown = (await sidecar.ask("GET", ONE)).json()
    assert shown["entries"][2]["causes"] == [0]
    assert shown["links"] == [made.json()]
    bad = await sidecar.ask("POST", f"{ONE}/links", {**link, "relationship": "likes"})
    assert bad.status_code == 400


async def test_the_recent_ones_are_listed_and_can_be_forgotten(sidecar: Sidecar) -> None:
    """What is forgotten is not there."""
    await happen(sidecar)
    listed = (await sidecar.ask("GET", "/v1/correlations")).json()["correlations"]
    assert [one["correlation_id"] for one in listed] == ["c-1"]
    assert (await sidecar.ask("DELETE", ONE)).status_code == 204
    assert (await sidecar.ask("DELETE", ONE)).status_code == 404
