"""Agents and effects over HTTP: states, pieces, leases, and what happens once."""

from __future__ import annotations

from typing import Any

import pytest
from fix_grants import only
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.agents import AgentState
from llmspell_dist.codec import encode

AGENT = "/v1/agents/alice"
EFFECT = f"{AGENT}/effects/mail%2F1"
LEASE = "/v1/leases/agent:alice/main"


@pytest.fixture
async def alice(sidecar: Sidecar) -> dict[str, Any]:
    """An agent that is stored; its document."""
    state = AgentState.new("alice", "planner", tags=["a", "b"])
    state.add_message("user", "hi")
    state.add_message("assistant", [{"text": "hello"}], metadata={"model": "m"})
    state.context["topic"] = "tea"
    await sidecar.services.spell.agents.save(state)
    return await loaded(sidecar)


async def loaded(sidecar: Sidecar, **query: Any) -> dict[str, Any]:
    """Load the agent over HTTP."""
    answer = await sidecar.ask("GET", AGENT, **query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["etag"] == f'"{found["revision"]}"'
    return found


async def test_an_agent_is_created_once(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """A document as it was loaded creates an equal agent; a second one is refused."""
    bob = alice | {"agent_id": "bob"}
    assert (await sidecar.ask("PUT", "/v1/agents/bob", bob)).status_code == 200
    agents = sidecar.services.spell.agents
    state, other = await agents.load("alice"), await agents.load("bob")
    state.agent_id = "bob"
    assert other == state
    again = await sidecar.ask("PUT", "/v1/agents/bob", bob)
    assert (again.status_code, again.json()["code"]) == (409, "AGENT_EXISTS")
    forced = await sidecar.ask("PUT", "/v1/agents/bob", bob | {"custom": {"x": 1}}, force="true")
    assert forced.status_code == 200
    assert (await agents.load("bob")).custom == {"x": 1}


async def test_a_save_on_an_old_state_is_refused(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """412; on the present one only what differs is written."""
    match = {"if-match": f'"{alice["revision"]}"'}
    changed = alice | {"context": {"topic": "coffee"}}
    assert (await sidecar.ask("PUT", AGENT, changed, headers=match)).status_code == 200
    assert (await loaded(sidecar))["context"] == {"topic": "coffee"}
    await sidecar.ask("POST", f"{AGENT}/context", {"set": {"topic": "milk"}})
    answer = await sidecar.ask("PUT", AGENT, changed, headers=match)
    assert (answer.status_code, answer.json()["code"]) == (412, "CONFLICT")
    assert (await loaded(sidecar))["context"] == {"topic": "milk"}


async def test_the_end_of_a_conversation_can_be_saved_alone(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """What was loaded with a tail keeps the messages before it."""
    tail = await loaded(sidecar, tail=1)
    assert (tail["missing"], len(tail["conversation"])) == (1, 1)
    tail["conversation"].append(alice["conversation"][0] | {"content": "more"})
    match = {"if-match": f'"{tail["revision"]}"'}
    assert (await sidecar.ask("PUT", AGENT, tail, headers=match)).status_code == 200
    contents = [one["content"] for one in (await loaded(sidecar))["conversation"]]
    assert contents == ["hi", [{"text": "hello"}], "more"]


async def test_pieces_are_stored_by_themselves(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """Messages, tool calls, variables: each is one commit, and what is beside it stays."""
    for path, body in (
        ("messages", {"messages": [{"role": "tool", "content": 1}]}),
        ("tool-usage", {"tool": "search", "duration_ms": 12.5, "success": False}),
        ("context", {"set": {"a": 1}, "remove": ["topic"]}),
        ("custom", {"set": {"b": 2}}),
    ):
        assert (await sidecar.ask("POST", f"{AGENT}/{path}", body)).status_code == 200, path
    found = await loaded(sidecar)
    assert (found["context"], found["custom"]) == ({"a": 1}, {"b": 2})
    assert found["tool_usage"]["tool_performance"]["search"]["failed_count"] == 1
    assert found["conversation"][:2] == alice["conversation"]
    last = (await sidecar.ask("GET", f"{AGENT}/messages", start=-1)).json()["messages"]
    assert [(one["role"], one["content"]) for one in last] == [("tool", 1)]


async def test_execution_follows_its_table(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """What it does not allow is refused with what it does."""
    moved = await sidecar.ask("POST", f"{AGENT}/transition", {"status": "processing"})
    assert moved.json()["status"] == "processing"
    paused = await sidecar.ask("POST", f"{AGENT}/pause", {"reason": "lunch"})
    assert paused.json() == {
        "status": "suspended",
        "reason": "lunch",
        "suspended_from": "processing",
    }
    assert (await sidecar.ask("POST", f"{AGENT}/resume", {})).json()["status"] == "processing"
    assert (await sidecar.ask("POST", f"{AGENT}/stop", {})).json()["status"] == "completed"
    answer = await sidecar.ask("POST", f"{AGENT}/pause", {})
    assert (answer.status_code, answer.json()["facts"]["allowed"]) == (409, ["idle"])


async def test_agents_are_found_forked_and_removed(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """With filters; the fork has all but the id; what is gone is not found."""
    await sidecar.ask("POST", f"{AGENT}/context", {"set": {"topic": "coffee"}})
    fork = await sidecar.ask("POST", f"{AGENT}/fork", {"into": "bob", "at": alice["revision"]})
    assert (fork.json()["agent_id"], fork.json()["context"]) == ("bob", {"topic": "tea"})
    found = (await sidecar.ask("GET", "/v1/agents", tags="a,b", prefix="b")).json()
    assert [(one["agent_id"], one["messages"]) for one in found["agents"]] == [("bob", 2)]
    summary = (await sidecar.ask("GET", "/v1/agents/bob/summary")).json()
    assert summary == found["agents"][0]
    assert (await sidecar.ask("DELETE", "/v1/agents/bob")).status_code == 204
    assert (await sidecar.ask("DELETE", "/v1/agents/bob")).status_code == 404
    gone = await sidecar.ask("GET", "/v1/agents/bob")
    assert (gone.status_code, gone.json()["code"]) == (404, "AGENT_NOT_FOUND")


async def test_an_agents_writes_carry_its_lease(sidecar: Sidecar, alice: dict[str, Any]) -> None:
    """Once another process has taken over they are refused."""
    lease = (await sidecar.ask("POST", LEASE, {})).json()
    carried = {"llmspell-lease": lease["handle"]}
    body = {"messages": [{"role": "user", "content": 1}]}
    path = f"{AGENT}/messages"
    assert (await sidecar.ask("POST", path, body, headers=carried)).status_code == 200
    await sidecar.ask("POST", f"{LEASE}/release", {"handle": lease["handle"]})
    await sidecar.ask("POST", LEASE, {})
    answer = await sidecar.ask("POST", path, body, headers=carried)
    assert answer.json()["code"] == "STALE_FENCING_TOKEN"
    assert len((await loaded(sidecar))["conversation"]) == 3


# --- effects --------------------------------------------------------------------------------------


async def test_an_effect_that_ran_is_answered_with_its_result(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """The second caller does not carry it out; nobody can while the first is at it."""
    claim = (await sidecar.ask("POST", f"{EFFECT}/claim", {"by": "one"})).json()
    assert (claim["key"], claim["status"], claim["attempts"]) == ("mail/1", "claimed", 1)
    busy = await sidecar.ask("POST", f"{EFFECT}/claim", {})
    assert (busy.status_code, busy.json()["code"]) == (409, "EFFECT_IN_PROGRESS")
    done = {"claim": claim["revision"], "result": {"id": 7}}
    assert (await sidecar.ask("POST", f"{EFFECT}/complete", done)).status_code == 200
    again = (await sidecar.ask("POST", f"{EFFECT}/claim", {})).json()
    assert (again["status"], again["result"]) == ("committed", {"id": 7})
    assert (await sidecar.ask("GET", EFFECT)).json()["result"] == {"id": 7}
    late = await sidecar.ask("POST", f"{EFFECT}/complete", done)
    assert (late.status_code, late.json()["code"]) == (409, "EFFECT_TAKEN_OVER")


async def test_an_effect_that_failed_is_repeated_only_if_that_is_wanted(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """Others hear why it failed."""
    claim = (await sidecar.ask("POST", f"{EFFECT}/claim", {})).json()
    said = {"claim": claim["revision"], "reason": "no such address"}
    assert (await sidecar.ask("POST", f"{EFFECT}/fail", said)).status_code == 200
    refused = await sidecar.ask("POST", f"{EFFECT}/claim", {})
    assert (refused.json()["code"], refused.json()["facts"]["reason"]) == (
        "EFFECT_FAILED",
        "no such address",
    )
    anew = await sidecar.ask("POST", f"{EFFECT}/claim", {"retry_failed": True})
    assert anew.json()["attempts"] == 2


async def test_an_unknown_outcome_is_found_out_and_said(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """It happened (resolve), or it did not (retry); nothing is repeated before that."""
    for key, say in (("one", "resolve"), ("two", "retry")):
        effect = f"{AGENT}/effects/{key}"
        claim = (await sidecar.ask("POST", f"{effect}/claim", {})).json()
        early = await sidecar.ask("POST", f"{effect}/{say}", {})
        assert early.json()["code"] == "EFFECT_IN_PROGRESS"
        said = {"claim": claim["revision"], "reason": "the network broke", "unknown": True}
        await sidecar.ask("POST", f"{effect}/fail", said)
        refused = await sidecar.ask("POST", f"{effect}/claim", {})
        assert refused.json()["code"] == "EFFECT_UNKNOWN"
        assert (await sidecar.ask("POST", f"{effect}/{say}", {})).status_code < 300
    found = (await sidecar.ask("GET", f"{AGENT}/effects")).json()["effects"]
    assert [(one["key"], one["status"]) for one in found] == [
        ("one", "committed"),
        ("two", "claimed"),
    ]


async def test_a_claim_of_an_earlier_holder_is_left_behind(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """Whatever that one says is refused, so its outcome is unknown to the next."""
    lease = (await sidecar.ask("POST", LEASE, {})).json()
    carried = {"llmspell-lease": lease["handle"]}
    claim = (await sidecar.ask("POST", f"{EFFECT}/claim", {}, headers=carried)).json()
    assert claim["token"] == lease["token"]
    await sidecar.ask("POST", f"{LEASE}/release", {"handle": lease["handle"]})
    newer = {"llmspell-lease": (await sidecar.ask("POST", LEASE, {})).json()["handle"]}
    refused = await sidecar.ask("POST", f"{EFFECT}/claim", {}, headers=newer)
    assert refused.json()["code"] == "EFFECT_UNKNOWN"
    done = {"claim": claim["revision"]}
    late = await sidecar.ask("POST", f"{EFFECT}/complete", done, headers=carried)
    assert late.json()["code"] == "STALE_FENCING_TOKEN"


async def test_effects_of_no_agent_are_refused(sidecar: Sidecar) -> None:
    """Whoever claims must be somebody."""
    answer = await sidecar.ask("POST", f"{EFFECT}/claim", {})
    assert (answer.status_code, answer.json()["code"]) == (404, "AGENT_NOT_FOUND")
    assert (await sidecar.ask("GET", EFFECT)).status_code == 404


async def test_rights_are_those_of_the_agents_scope(start_sidecar: StartSidecar) -> None:
    """An id cannot reach into another scope; lists show only what may be listed."""
    sidecar = await start_sidecar(only(("agent:alice", "read write list"), ("agent:a/*", "read")))
    agents = sidecar.services.spell.agents
    for agent_id in ("alice", "bob", "a/b"):
        await agents.save(AgentState.new(agent_id, "planner"))
    assert (await sidecar.ask("GET", AGENT)).status_code == 200
    assert (await sidecar.ask("GET", "/v1/agents/bob")).status_code == 403
    assert (await sidecar.ask("GET", "/v1/agents/a%2Fb")).status_code == 403
    assert (await sidecar.ask("DELETE", AGENT)).status_code == 403
    assert (await sidecar.ask("POST", f"{AGENT}/fork", {"into": "bob"})).status_code == 403
    found = (await sidecar.ask("GET", "/v1/agents")).json()["agents"]
    assert [one["agent_id"] for one in found] == ["alice"]


async def test_messagepack_carries_contents_beyond_json(
    sidecar: Sidecar, alice: dict[str, Any]
) -> None:
    """Bytes and sets arrive as such."""
    body = {"messages": [{"role": "user", "content": {b"raw", 1}}]}
    headers = {"content-type": "application/msgpack"}
    await sidecar.http.post(f"{AGENT}/messages", content=encode(body), headers=headers)
    found = await sidecar.ask_packed("GET", f"{AGENT}/messages?start=-1")
    assert found["messages"][0]["content"] == {b"raw", 1}
