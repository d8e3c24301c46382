"""Agents through a sidecar: what a copy knows, what is lost on the way, and what is let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_remote import Grants
from fix_sidecar import Sidecar, StartSidecar, running_sidecar
from fix_state import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmspell_dist import (
    ClassRules,
    ConflictError,
    LimitError,
    Options,
    StaleFencingTokenError,
    StateClass,
    connect,
)
from llmspell_dist.agents import (
    Agent,
    AgentExistsError,
    AgentState,
    EffectStatus,
    EffectUnknownError,
    Message,
    Role,
)
from llmspell_dist.codec import encode
from llmspell_dist.sidecar.auth.errors import ForbiddenError

pytestmark = [pytest.mark.integration, pytest.mark.agent]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
AGENT = "/v1/agents/alice"
SET_MODIFIED = {"op": "set", "key": "agent.modified", "value": {"$datetime": T0.isoformat()}}
StartRelay = Callable[[str], Any]


def alice() -> AgentState:
    """The state of an agent."""
    state = AgentState.new("alice", "planner", now=lambda: T0)
    state.add_message("user", ["hi"], at=T0)
    state.context["topic"] = "tea"
    return state


@pytest.fixture
async def remote(sidecar: Sidecar) -> AsyncIterator[Any]:
    """A client of the sidecar, with an agent that is stored."""
    async with connect(sidecar.url) as spell:
        await spell.agents.save(alice())
        yield spell


def requests_of(spell: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what the client sends from now on: method and the last part of the path."""
    sent: list[tuple[str, str]] = []
    request = spell._transport.request

    async def noting(method: str, path: tuple[str, ...], **more: Any) -> Any:
        sent.append((method, path[-1]))
        return await request(method, path, **more)

    monkeypatch.setattr(spell._transport, "request", noting)
    return sent


async def opened(spell: Any) -> Agent:
    """A handle that has loaded the agent."""
    agent: Agent = spell.agents.agent("alice")
    await agent.refresh()
    return agent


# --- what a copy knows ----------------------------------------------------------------------------


async def test_each_operation_is_one_request(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads, updates, transitions and saves of one who writes alone; an effect is two."""
    sent = requests_of(remote, monkeypatch)
    agent = await opened(remote)
    await agent.add_message("user", "more")
    await agent.record_tool_usage("web", 1.5, True)
    await agent.set_context(a=1)
    await agent.transition("processing")
    agent.state.custom["by hand"] = 1
    await agent.save()
    assert sent == [("GET", "parts"), *[("POST", "commit")] * 5]
    sent.clear()
    await agent.effect("mail").run(lambda: "sent")
    assert sent == [("POST", "claim"), ("POST", "complete")]


async def test_updates_at_once_keep_their_order_however_long_each_takes_on_its_way(
    remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the library's do: the state is what is stored, and a save succeeds."""
    request, left = remote._transport.request, 8

    async def overtaken(method: str, path: tuple[str, ...], **more: Any) -> Any:
        nonlocal left
        left -= method == "POST"
        await asyncio.sleep(0.005 * left)  # the later it was sent, the sooner it is there
        return await request(method, path, **more)

    agent = await opened(remote)
    with monkeypatch.context() as slow:
        slow.setattr(remote._transport, "request", overtaken)
        await asyncio.gather(*(agent.add_message("user", number) for number in range(8)))
    assert [one.content for one in await agent.messages(1)] == list(range(8))
    assert agent.state == await remote.agents.load("alice")
    agent.state.context["a"] = 1
    await agent.save()
    assert agent.state == await remote.agents.load("alice")


async def test_only_what_is_new_travels(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is added to a long conversation, and saved, by itself."""
    state = await remote.agents.load("alice")
    for number in range(2000):
        state.add_message("user", f"{number} {'x' * 500}", at=T0)
    await remote.agents.save(state)
    sent: list[int] = []
    submit = remote._driver.submit

    async def weighing(ask: Any) -> Any:
        sent.append(len(ask.packed or b""))
        return await submit(ask)

    monkeypatch.setattr(remote._driver, "submit", weighing)
    agent = remote.agents.agent("alice")
    await agent.refresh(tail=1)
    await agent.add_message("user", "one more")
    agent.state.add_message("user", "and another", at=T0)
    await agent.save()
    assert all(size < 2000 for size in sent), sent
    assert len((await remote.agents.load("alice")).conversation) == 2003


@pytest.mark.parametrize("changed_by", ["add_message", "set_context", "save"])
@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_a_save_over_what_another_wrote_is_refused(
    sidecar: Sidecar, remote: Any, changed_by: str, pieces: int
) -> None:
    """Whether that was before, between or after updates of one's own; never a silent overwrite."""
    agents = sidecar.services.spell.agents
    for place in range(pieces + 1):
        await agents.save(alice(), force=True)
        agent = await opened(remote)
        for number in range(pieces + 1):
            if number == place:
                other = await agents.load("alice")
                if changed_by == "save":
                    other.context["other"] = 1
                    await agents.save(other)
                elif changed_by == "set_context":
                    await agents.agent("alice").set_context(other=1)
                else:
                    await agents.agent("alice").add_message("user", "other")
            if number < pieces:
                await agent.add_message("user", number)
        before = await agents.load("alice")
        agent.state.custom["mine"] = 1
        with pytest.raises(ConflictError):
            await agent.save()
        assert await agents.load("alice") == before
        await agent.refresh()
        agent.state.custom["mine"] = 1
        await agent.save()
        assert await agents.load("alice") == agent.state


class Both:
    """One agent through the sidecar and another by the library, treated alike."""

    def __init__(self, one: Agent, other: Agent) -> None:
        self.handles = one, other

    async def do(self, operation: tuple[str, Any]) -> None:
        """Do something to both; they end alike."""
        name, value = operation
        outcomes: list[type[ConflictError] | None] = []
        for handle in self.handles:
            try:
                await self._one(handle, name, value)
            except ConflictError as error:
                outcomes.append(type(error))
                await handle.refresh()
            else:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1], operation

    @staticmethod
    async def _one(handle: Agent, name: str, value: Any) -> None:
        if name == "message":
            await handle.add_messages(Message(Role.USER, value, T0))
        elif name == "context":
            await handle.set_context({"k": value}, remove=["topic"])
        elif name == "tool":
            await handle.record_tool_usage("web", value, value > 1)
        elif name == "edit":
            del handle.state.conversation[value:]
            await handle.save()
        elif name == "tail":
            await handle.refresh(tail=value)
        else:
            handle.state.custom["k"] = value
            handle.state.context.clear()
            await handle.save()


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["message", "context", "save"]), st.sampled_from([1, "a", [2]])),
    st.tuples(st.just("tool"), st.sampled_from([1, 2.5])),
    st.tuples(st.just("edit"), st.integers(0, 2)),
)


@given(operations=st.lists(OPERATIONS, max_size=8))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_operations_end_as_by_the_library(
    sidecar: Sidecar, remote: Any, operations: list[tuple[str, Any]]
) -> None:
    """The same states, the same refusals, the same kinds and places of records."""
    library = sidecar.services.spell.agents
    for name in ("alice", "bob"):
        state = alice()
        state.agent_id = name
        await library.save(state, force=True)
    both = Both(await opened(remote), library.agent("bob"))
    await both.handles[1].refresh()
    for operation in operations:
        await both.do(operation)
    one, other = await library.load("alice"), await library.load("bob")
    mine = both.handles[0].state
    assert one.stored is not None
    assert other.stored is not None
    assert mine.stored is not None
    assert mine.stored.revisions == one.stored.revisions
    assert mine.stored.conversation == one.stored.conversation
    assert one.stored.kinds == other.stored.kinds
    for state in (one, mine, other):
        state.agent_id, state.last_modified = "x", T0
        for stats in state.tool_usage.tool_performance.values():
            stats.last_used = T0
    assert one == mine == other


# --- lost on the way ------------------------------------------------------------------------------


async def test_what_is_lost_on_the_way_happens_once(
    sidecar: Sidecar, remote: Any, relay: StartRelay
) -> None:
    """An answer that is lost: the update, the save and the claim are those of the first request."""
    wire = await relay(sidecar.url)
    async with connect(f"http://127.0.0.1:{wire.port}") as spell:
        agent = await opened(spell)
        wire.lose_answer(b"/alice/commit")
        await agent.add_message("user", "once")
        wire.lose_answer(b"/alice/commit")
        agent.state.custom["n"] = 1
        await agent.save()
        wire.lose_answer(b"/effects/mail/claim")
        calls: list[int] = []
        await agent.effect("mail").run(calls.append, 1)
        assert (wire.lost, calls) == (3, [1])
        await agent.save()
        found = await remote.agents.load("alice")
        assert found == agent.state
        assert [one.content for one in found.conversation] == [["hi"], "once"]
        (record,) = await agent.effects()
        assert (record.status, record.attempts) == (EffectStatus.COMMITTED, 1)


# --- what the sidecar decides ---------------------------------------------------------------------


class _Seal:
    """A cipher that shows what went through it."""

    def encrypt(self, value: bytes, *, associated_data: bytes) -> bytes:
        return b"sealed:" + associated_data + value[::-1]

    def decrypt(self, payload: bytes, *, associated_data: bytes) -> bytes:
        seal = b"sealed:" + associated_data
        assert payload.startswith(seal)
        return payload[len(seal) :][::-1]


@pytest.mark.parametrize("state_class", [StateClass.SENSITIVE, StateClass.CRITICAL], ids=str)
@pytest.mark.one_server
async def test_classes_are_the_sidecars(
    url: str,
    namespace: str,
    sidecar_port: Callable[[], int],
    store: Store,
    state_class: StateClass,
) -> None:
    """A client that knows no rules stores nothing in the clear, and what is stored stays so."""
    rules = ClassRules(scopes={"agent": state_class})
    options = Options(classes=rules, cipher=_Seal())
    async with (
        running_sidecar(url, namespace, sidecar_port(), options=options) as sidecar,
        connect(sidecar.url) as spell,
    ):
        state = alice()
        state.context["word"] = "a secret word"
        state.custom["large"] = "a secret word" * 100_000
        await spell.agents.save(state)
        state.add_message("user", "a secret word", at=T0)
        await spell.agents.save(state)
        agent = await opened(spell)
        await agent.add_message("user", "a secret word")
        await agent.record_tool_usage("web", 2, True)
        await agent.transition("processing", "a secret word")
        agent.state.custom["word"] = "a secret word"
        del agent.state.conversation[0]
        await agent.save()
        assert await agent.effect("mail").run(lambda: "a secret word") == "a secret word"
        assert await sidecar.services.spell.agents.load("alice") == agent.state
        if state_class is StateClass.SENSITIVE:
            assert b"a secret word" not in store.everything()
        for key in agent.state.stored.revisions:  # type: ignore[union-attr]
            assert store.record("agent:alice", key).state_class == state_class, key
    store.check()


HOSTILE: list[tuple[str, Any]] = [
    ("no profile", {"expected": {}, "changes": [SET_MODIFIED]}),
    ("no modified", {"changes": []}),
    ("of the user", {"changes": [{"op": "set", "key": "mine", "value": 1}]}),
    ("an effect", {"changes": [{"op": "set", "key": "agent.effect.mail", "value": {}}]}),
    ("reserved", {"changes": [{"op": "set", "key": "$$", "value": 1}]}),
    ("twice", {"changes": [SET_MODIFIED]}),
    ("no profile left", {"changes": [{"op": "delete", "key": "agent.profile"}]}),
    ("no agent", {"changes": [{"op": "set", "key": "agent.profile", "value": {"layout": 1}}]}),
    (
        "a later layout",
        {"changes": [{"op": "set", "key": "agent.profile", "value": {"layout": 9}}]},
    ),
    ("no message", {"changes": [{"op": "append", "key": "agent.conversation", "value": [1]}]}),
    ("no messages", {"changes": [{"op": "append", "key": "agent.conversation", "value": []}]}),
    (
        "messages as a map",
        {"changes": [{"op": "replace", "key": "agent.conversation", "value": {"a": 1}}]},
    ),
    ("a map as a list", {"changes": [{"op": "replace", "key": "agent.context", "value": [1]}]}),
    ("nothing to merge", {"changes": [{"op": "merge", "key": "agent.context", "value": {}}]}),
    ("a map set whole", {"changes": [{"op": "set", "key": "agent.context", "value": {"a": 1}}]}),
    ("no status", {"changes": [{"op": "set", "key": "agent.execution", "value": {"status": "x"}}]}),
    ("less calls", {"changes": [{"op": "increment", "key": "agent.tools.failed", "value": -1}]}),
    ("half a call", {"changes": [{"op": "increment", "key": "agent.tool.t.calls", "value": 0.5}]}),
    ("a tool of no time", {"changes": [{"op": "merge", "key": "agent.tools", "value": {"t": 1}}]}),
    (
        "a class of nothing",
        {"changes": [{"op": "delete", "key": "agent.hooks", "state_class": "sensitive"}]},
    ),
    (
        "a place of its own",
        {
            "changes": [
                {"op": "append", "key": "agent.conversation", "value": [1], "generation": "x"}
            ]
        },
    ),
    ("another operation", {"changes": [{"op": "adopt", "key": "agent.hooks", "value": "x"}]}),
    ("a revision that is none", {"expected": {"agent.profile": "soon"}, "changes": []}),
    ("too many", {"changes": [{"op": "delete", "key": f"agent.tool.{n}.ms"} for n in range(1001)]}),
]


@pytest.mark.parametrize(("what", "body"), HOSTILE, ids=[what for what, _ in HOSTILE])
async def test_a_commit_that_is_none_changes_nothing(
    sidecar: Sidecar, remote: Any, store: Store, what: str, body: dict[str, Any]
) -> None:
    """Only parts of an agent change, to what they can hold; where they lie nobody can say."""
    changes = body["changes"]
    if what != "no modified":
        changes = [SET_MODIFIED, *changes]
    before = store.dump()
    sent = {"expected": body.get("expected", {"agent.profile": "present"}), "changes": changes}
    if what == "no profile":
        sent["expected"] = {}
    answer = await sidecar.ask("POST", f"{AGENT}/commit", sent)
    assert answer.status_code == 400, answer.text
    assert store.dump() == before
    assert await remote.agents.load("alice") == alice()


KEYS = [
    *("agent.profile", "agent.modified", "agent.execution", "agent.hooks", "agent.correlation"),
    *("agent.conversation", "agent.context", "agent.custom", "agent.tools"),
    *("agent.tools.failed", "agent.tool.web.calls", "agent.tool.web.ms", "agent.effect.mail", "k"),
]
LEAVES: list[Any] = [None, True, 0, 1, -1, 2.5, 2**70, "", "idle", "suspended", T0, b"x"]
MESSAGE = {"role": "user", "content": 1, "timestamp": T0}
EXECUTION = {"status": "suspended", "reason": None, "suspended_from": "idle"}
WHOLE = [*LEAVES, MESSAGE, [MESSAGE], EXECUTION, {"web": T0}, {"web": None}, {"": None}]
VALUES = st.one_of(
    st.sampled_from(WHOLE),
    st.lists(st.sampled_from(WHOLE), max_size=2),
    st.dictionaries(
        st.sampled_from(["a", "web", "status", "registrations", "last_execution", "layout"]),
        st.sampled_from(WHOLE),
        max_size=3,
    ),
)
PROFILE = {
    "layout": 1,
    "type": "t",
    "created": T0,
    "schema_version": 1,
    "name": "n",
    "version": "1",
    "description": None,
    "capabilities": [],
    "provider_config": None,
    "tags": [],
}
FITTING: list[tuple[str, str, Any]] = [
    ("set", "agent.profile", PROFILE),
    ("set", "agent.execution", EXECUTION),
    ("set", "agent.hooks", {"registrations": [1], "last_execution": T0}),
    ("set", "agent.correlation", "x" * 600_000),
    ("append", "agent.conversation", [MESSAGE]),
    ("replace", "agent.conversation", [MESSAGE] * 3),
    *(("merge", f"agent.{name}", {"a": 1}) for name in ("context", "custom")),
    *(("replace", f"agent.{name}", {"b": [1]}) for name in ("context", "custom")),
    ("merge", "agent.tools", {"web": T0}),
    ("replace", "agent.tools", {"web": None}),
    *((op, "agent.tools.failed", 1) for op in ("increment", "set")),
    *((op, "agent.tool.web.ms", 2.5) for op in ("increment", "set")),
]
_PLAIN = [None, None, None, None, "standard", "trusted"]
_CLASSES = [*_PLAIN, "ephemeral", "external", "sensitive", "none"]


def _change(one: tuple[str, str, Any], state_class: str | None, more: dict[str, Any]) -> Any:
    op, key, value = one
    if op == "delete":
        return {"op": op, "key": key} | more
    kept = {} if state_class is None else {"state_class": state_class}
    return {"op": op, "key": key, "value": value} | kept | more


CHANGES = st.one_of(
    st.builds(_change, st.sampled_from(FITTING), st.sampled_from(_PLAIN), st.just({})),
    st.builds(
        _change,
        st.tuples(
            st.sampled_from(["set", "increment", "append", "merge", "replace", "delete"]),
            st.sampled_from(KEYS),
            VALUES,
        ),
        st.sampled_from(_CLASSES),
        st.sampled_from([{}, {}, {"remove": ["a"]}, {"schema_version": 0}]),
    ),
)
EXPECTED = st.dictionaries(
    st.sampled_from(KEYS), st.sampled_from([None, "present", "1-1", "x"]), max_size=1
)


@given(changes=st.lists(CHANGES, min_size=1, max_size=2), expected=EXPECTED)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_whatever_is_committed_an_agent_stays_one(
    sidecar: Sidecar,
    remote: Any,
    store: Store,
    changes: list[dict[str, Any]],
    expected: dict[str, str | None],
) -> None:
    """It is refused, or what lies there then is an agent that both surfaces load alike."""
    library = sidecar.services.spell.agents
    body = {
        "expected": {"agent.profile": "present"} | expected,
        "changes": [{"op": "set", "key": "agent.modified", "value": T0}, *changes],
    }
    headers = {"content-type": "application/msgpack"}
    answer = await sidecar.http.post(f"{AGENT}/commit", content=encode(body), headers=headers)
    assert answer.status_code in {200, 400, 409}, answer.text
    assert await library.load("alice") == await remote.agents.load("alice")
    store.check()


async def test_a_commit_makes_no_agent_of_nothing(sidecar: Sidecar, store: Store) -> None:
    """Parts are changed of an agent that is there; a new one must not be."""
    body = {"expected": {"agent.profile": "present"}, "changes": [SET_MODIFIED]}
    answer = await sidecar.ask("POST", f"{AGENT}/commit", body)
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    assert store.all_keys() == [key for key in store.all_keys() if b"agent:alice" not in key]


async def test_rights_are_those_of_the_agents_scope(
    start_sidecar: StartSidecar, granted: Grants, sidecar: Sidecar, remote: Any
) -> None:
    """Who may read loads; who may write too changes; to remove is a right of its own."""
    access, token = granted(("agent:alice", "read"), ("agent:bob", "read write"))
    closed = await start_sidecar(access)
    async with connect(closed.url, token=token) as spell:
        agent = await opened(spell)
        agent.state.custom["a"] = 1
        for forbidden in (
            agent.save(),
            agent.set_context(a=1),
            agent.transition("processing"),
            agent.effect("mail").run(print),
            spell.agents.delete("bob"),
            spell.agents.fork("alice", "carol"),
            spell.agents.load("carol"),
        ):
            with pytest.raises(ForbiddenError):
                await forbidden
        bob = await spell.agents.fork("alice", "bob")
        bob.context.clear()
        await spell.agents.save(bob)
        with pytest.raises(AgentExistsError):
            await spell.agents.fork("alice", "bob")
    assert (await remote.agents.load("alice")) == alice()


# --- processes and effects ------------------------------------------------------------------------


async def test_who_was_replaced_writes_no_more(remote: Any) -> None:
    """Messages, saves, transitions and effects carry the lease; the next one's are let in."""
    async with remote.agents.run("alice", ttl=30) as first:
        await first.add_message("user", 1)
        await first.lease.release()
        async with remote.agents.run("alice", ttl=30) as second:
            assert second.token > first.token
            first.state.custom["late"] = 1
            for late in (
                first.add_message("user", "late"),
                first.save(),
                first.transition("processing"),
                first.effect("mail").run(print),
            ):
                with pytest.raises(StaleFencingTokenError):
                    await late
            await second.add_message("user", 2)
            await second.save()
            assert [one.content for one in second.state.conversation] == [["hi"], 1, 2]


async def test_a_result_that_the_sidecar_does_not_take_is_an_unknown_outcome(
    start_sidecar: StartSidecar,
) -> None:
    """It happened, and nobody else may do it again; the limit says why its result is not there."""
    from llmspell_dist.sidecar.settings import Limits

    small = await start_sidecar(limits=Limits(body_bytes=100_000))
    async with connect(small.url) as spell:
        await spell.agents.save(alice())
        agent = spell.agents.agent("alice")
        with pytest.raises(LimitError):
            await agent.effect("mail").run(lambda: "x" * 200_000)
        with pytest.raises(EffectUnknownError):
            await agent.effect("mail").run(print)
        await agent.effect("mail").resolve("found out")
        assert await agent.effect("mail").run(print) == "found out"
