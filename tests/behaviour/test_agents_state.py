"""An agent's state: what is saved is loaded equal, and nothing is overwritten unseen."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from fix_agents import Ticking, agents_of
from fix_state import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmspell_dist import (
    CodecError,
    ConflictError,
    CorruptRecordError,
    InvalidArgumentError,
    LimitError,
)
from llmspell_dist.agents.errors import AgentExistsError, AgentNotFoundError
from llmspell_dist.agents.execution import TRANSITIONS, ExecutionState, ExecutionStatus
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import (
    AgentMetadata,
    AgentState,
    Message,
    Role,
    ToolStats,
    ToolUsage,
)
from llmspell_dist.client import Spell
from llmspell_dist.errors import UnsupportedFormatError
from llmspell_dist.redis.commands import Command
from llmspell_dist.state.manager import StateManager

pytestmark = [pytest.mark.integration, pytest.mark.agent, pytest.mark.both_surfaces]

T0 = datetime(2024, 11, 23, 15, 0, 0, 123456, tzinfo=UTC)
S = "agent:alice"


@pytest.fixture
def agents(spell: Spell) -> Agents:
    """Agents by a clock of their own."""
    return agents_of(spell, now=Ticking(T0))


def full_state(agent_id: str = "alice") -> AgentState:
    """A state in which every field holds something."""
    berlin = ZoneInfo("Europe/Berlin")
    return AgentState(
        agent_id,
        "researcher",
        AgentMetadata(
            "Alice", "finds out", "2.1.0", ["search", "cite"], {"model": "m"}, ["eu", "x"]
        ),
        T0,
        T0.astimezone(berlin) + timedelta(hours=1),
        [
            Message(Role.SYSTEM, "be brief", T0),
            Message(Role.USER, "what is 6 × 7?", T0 + timedelta(microseconds=1), {"lang": "en"}),
            Message(
                Role.ASSISTANT, [{"type": "text", "text": "a"}, b"\xff"], T0.astimezone(berlin)
            ),
            Message(Role.TOOL, None, T0, {}),
        ],
        {"goal": "answer", "depth": 3, "seen": {1, 2}, "when": T0},
        ToolUsage(3, 1, {"web": ToolStats(3, 1, 12.5, T0), "a/b c": ToolStats(1, 0, 7, None)}),
        ExecutionState(ExecutionStatus.SUSPENDED, "night", ExecutionStatus.PROCESSING),
        {"score": Decimal("1.50"), "id": UUID(int=7)},
        [{"hook": "h1", "priority": 5}, "h2"],
        T0 + timedelta(days=1),
        {"correlation_id": "c1", "depth": 0},
        3,
    )


# --- equal


async def test_what_is_saved_is_loaded_equal(agents: Agents) -> None:
    """Every field and every role; the conversation as the list that it was."""
    state = full_state()
    revision = await agents.save(state)
    again = await agents.load("alice")
    assert again == full_state() == state
    assert again.conversation == full_state().conversation
    assert again.revision == state.revision == revision


async def test_a_state_without_anything_is_loaded_equal(agents: Agents, store: Store) -> None:
    """Empty parts take no keys."""
    await agents.save(AgentState.new("alice", "t", now=lambda: T0))
    assert await agents.load("alice") == AgentState.new("alice", "t", now=lambda: T0)
    assert (store.meta(S)).count == 3


aware = st.datetimes(
    datetime(1971, 1, 1),  # noqa: DTZ001
    datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")]),
)
words = st.text(st.characters(codec="utf-8"), max_size=5)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
    | st.binary(max_size=4) | aware,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
dicts = st.dictionaries(words, values, max_size=4)
counts = st.integers(0, 2**63 - 1)
durations = st.integers(0, 2**53 - 1) | st.floats(0, 2**52)
messages = st.builds(Message, st.sampled_from(list(Role)), values, aware, st.none() | dicts)
executions = st.one_of(
    st.builds(
        ExecutionState,
        st.sampled_from([s for s in ExecutionStatus if s is not ExecutionStatus.SUSPENDED]),
        st.none() | words,
    ),
    st.builds(
        ExecutionState,
        st.just(ExecutionStatus.SUSPENDED),
        st.none() | words,
        st.none()
        | st.sampled_from([s for s in TRANSITIONS if ExecutionStatus.SUSPENDED in TRANSITIONS[s]]),
    ),
)
states = st.builds(
    AgentState,
    agent_id=st.just("drawn below"),
    agent_type=names,
    metadata=st.builds(
        AgentMetadata,
        names, st.none() | words, names, st.lists(words, max_size=3), values,
        st.lists(words, max_size=3),
    ),
    creation_time=aware,
    last_modified=aware,
    conversation=st.lists(messages, max_size=5),
    context=dicts,
    tool_usage=st.builds(
        ToolUsage,
        counts, counts,
        st.dictionaries(
            names, st.builds(ToolStats, counts, counts, durations, st.none() | aware), max_size=3
        ),
    ),
    execution=executions,
    custom=dicts,
    hook_registrations=st.lists(values, max_size=3),
    last_hook_execution=st.none() | aware,
    correlation_context=values,
    schema_version=st.integers(1, 65_535),
)  # fmt: skip


@given(state=states, other=states)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_state_is_loaded_equal_also_after_any_change(
    agents: Agents, state: AgentState, other: AgentState
) -> None:
    """Saved, loaded, turned into any other state and saved again: what is loaded is that."""
    state.agent_id = uuid4().hex
    expected = deepcopy(state)
    await agents.save(state)
    loaded = await agents.load(state.agent_id)
    assert loaded == expected
    for field in fields(AgentState):
        if field.name not in ("agent_id", "stored"):
            setattr(loaded, field.name, deepcopy(getattr(other, field.name)))
    await agents.save(loaded)
    again = await agents.load(state.agent_id)
    other.agent_id = state.agent_id
    assert again == loaded == other


async def test_a_changed_state_sends_only_what_differs(agents: Agents, store: Store) -> None:
    """A message and a variable more are one append, one merge and the time, in one commit."""
    await agents.save(full_state())
    state = await agents.load("alice")
    state.add_message("user", "more", at=T0)
    state.context["goal"] = "other"
    del state.context["depth"]
    await agents.save(state)
    ops = {change.key: change.op for change in store.log()[-1].changes}
    assert ops == {"agent.conversation": 6, "agent.context": 7, "agent.modified": 1}
    assert await agents.load("alice") == state


async def test_many_new_messages_go_behind_a_state_loaded_in_part(agents: Agents) -> None:
    """As many as one append carries; more need the whole state."""
    await agents.save(full_state())
    fast = await agents.load_fast("alice", tail=0)
    for number in range(10_001):
        fast.conversation.append(Message(Role.USER, number, T0))
    with pytest.raises(InvalidArgumentError, match="10,000"):
        await agents.save(fast)
    del fast.conversation[-1]
    await agents.save(fast)
    state = await agents.load("alice")
    assert [m.content for m in state.conversation[4:]] == list(range(10_000))
    state.conversation.extend(Message(Role.USER, number, T0) for number in range(10_001))
    await agents.save(state)
    assert (await agents.load("alice")).conversation == state.conversation


async def test_a_message_changed_in_place_is_saved(agents: Agents) -> None:
    """A list inside a loaded message is compared with what is stored."""
    await agents.save(full_state())
    state = await agents.load("alice")
    state.conversation[2].content.append("more")
    await agents.save(state)
    again = await agents.load("alice")
    assert again.conversation[2].content == [{"type": "text", "text": "a"}, b"\xff", "more"]


async def test_parts_can_be_emptied_and_filled_again(agents: Agents, store: Store) -> None:
    """Empty after full, and full after empty, each saved and loaded equal."""
    await agents.save(full_state())
    for target in (AgentState.new("alice", "t", now=lambda: T0), full_state()):
        for _ in range(2):  # the second time nothing differs
            await agents.save(target, force=True)
            assert await agents.load("alice") == target
        store.check()


@pytest.mark.parametrize("size", [3, 1500])
async def test_a_conversation_changed_in_the_middle_is_replaced(agents: Agents, size: int) -> None:
    """Whether it came in one answer or in pages."""
    state = AgentState.new("alice", "t", now=lambda: T0)
    for number in range(size):
        state.add_message("user", f"{number} " + "x" * 400, at=T0)
    await agents.save(state)
    again = await agents.load("alice")
    del again.conversation[1]
    await agents.save(again)
    assert await agents.load("alice") == again
    assert len(again.conversation) == size - 1


def with_messages(agent_id: str, *texts: str) -> AgentState:
    """Return a new agent that has said something."""
    state = AgentState.new(agent_id, "t", now=lambda: T0)
    for text in texts:
        state.add_message("user", text, at=T0)
    return state


@pytest.mark.parametrize("texts", [(), ("b0",), ("b0", "b1"), ("b0", "b1", "b2")])
async def test_the_conversation_of_another_agent_is_stored_when_it_is_given(
    agents: Agents, texts: tuple[str, ...]
) -> None:
    """Shorter, of the same length or longer: what is loaded is what was in memory, for both."""
    await agents.save(with_messages("alice", "a0", "a1"))
    await agents.save(with_messages("bob", *texts))
    alice, bob = await agents.load("alice"), await agents.load("bob")
    alice.conversation = bob.conversation
    await agents.save(alice)
    assert [m.content for m in (await agents.load("alice")).conversation] == [*texts]
    bob.add_message("user", "more", at=T0)  # both share it
    await agents.save(bob)
    await agents.save(alice)
    for agent_id in ("alice", "bob"):
        loaded = await agents.load(agent_id)
        assert [m.content for m in loaded.conversation] == [*texts, "more"]


async def test_a_part_of_another_agents_conversation_is_refused(
    agents: Agents, store: Store
) -> None:
    """The earlier messages are not here, and those that lie there are not its own."""
    await agents.save(with_messages("alice"))
    await agents.save(with_messages("carol", "c0", "c1"))
    await agents.save(with_messages("bob", "b0", "b1", "b2"))
    before = store.dump()
    for agent_id in ("alice", "carol"):
        state = await agents.load(agent_id)
        state.conversation = (await agents.load_fast("bob", tail=1)).conversation
        with pytest.raises(InvalidArgumentError, match="loaded in part"):
            await agents.save(state)
    assert store.dump() == before


async def test_an_edit_is_undone_with_what_was_loaded_before_it(agents: Agents) -> None:
    """An older load of the same agent holds other messages, also where it is as long."""
    await agents.save(with_messages("alice", "a0", "a1"))
    old = await agents.load("alice")
    edited = await agents.load("alice")
    del edited.conversation[0]
    edited.add_message("user", "a2", at=T0)
    await agents.save(edited)
    edited.conversation = old.conversation
    await agents.save(edited)
    assert [m.content for m in (await agents.load("alice")).conversation] == ["a0", "a1"]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("way", ["delete", "insert", "replace", "append"])
async def test_a_conversation_changed_while_it_is_saved_is_not_taken_for_stored(
    agents: Agents, loaded: bool, way: str
) -> None:
    """The first save stores what it was given, the next one what it is by then."""
    state = with_messages("alice", "a0", "a1", "a2")
    if loaded:
        await agents.save(state)
        state = await agents.load("alice")
        state.conversation[1] = Message(Role.USER, "a1", T0)
    saving = asyncio.create_task(agents.save(state))
    await asyncio.sleep(0)  # it has taken what it sends
    if way == "delete":
        del state.conversation[0]
    elif way == "insert":
        state.conversation.insert(1, Message(Role.USER, "new", T0))
    elif way == "replace":
        state.conversation = [Message(Role.USER, "new", T0)]
    else:
        state.add_message("user", "new", at=T0)
    await saving
    stored = await agents.load("alice")
    assert [m.content for m in stored.conversation] == ["a0", "a1", "a2"]
    await agents.save(state)
    assert await agents.load("alice") == state
    assert len(state.conversation) == {"delete": 2, "insert": 4, "replace": 1, "append": 4}[way]


async def test_more_tools_than_a_commit_carries_are_refused(agents: Agents, store: Store) -> None:
    """329 with all their numbers are saved and forked; of more nothing is."""
    state = full_state()
    state.tool_usage = ToolUsage(
        1, 1, {f"tool {number}": ToolStats(2, 1, 3.5, T0) for number in range(329)}
    )
    await agents.save(state)
    assert await agents.load("alice") == state
    await agents.fork("alice", "fork")
    before = store.dump()
    state.agent_id = "many"
    state.tool_usage.tool_performance |= {
        f"more {number}": ToolStats(2, 1, 3.5, T0) for number in range(3)
    }
    with pytest.raises(LimitError, match="three for each tool") as caught:
        await agents.save(state)
    assert (caught.value.actual, caught.value.limit) == (332 * 3 + 5, 994)
    assert store.dump() == before


async def test_large_parts_are_saved_and_loaded(agents: Agents) -> None:
    """Values, dicts and new messages beyond what one request carries."""
    state = AgentState.new("alice", "t", provider_config="p" * 600_000, now=lambda: T0)
    state.context = {"big": "c" * 600_000}
    state.custom = {str(n): n for n in range(12_000)}
    for number in range(12_000):
        state.add_message("user", f"message {number}", at=T0)
    await agents.save(state)
    again = await agents.load("alice")
    assert again == state
    again.context["big"] = "d" * 700_000
    again.custom = {str(n): -n for n in range(11_000)}
    await agents.save(again)
    assert await agents.load("alice") == again
    assert (await agents.metadata("alice")).messages == 12_000


async def test_a_state_goes_on_after_a_pickle(agents: Agents) -> None:
    """Loaded in one process, saved by another: conflicts are still seen, appends are appends."""
    await agents.save(full_state())
    state = pickle.loads(pickle.dumps(await agents.load("alice")))  # noqa: S301 - our own bytes
    state.add_message("user", "more", at=T0)
    await agents.save(state)
    assert await agents.load("alice") == state


async def test_messages_can_be_read_as_plain_state(agents: Agents, state: StateManager) -> None:
    """Who knows nothing of agents sees a list of dicts."""
    await agents.save(full_state())
    stored = await state.get_slice(S, "agent.conversation", 1, 2)
    assert stored == [
        {
            "role": "user",
            "content": "what is 6 × 7?",
            "timestamp": T0 + timedelta(microseconds=1),
            "metadata": {"lang": "en"},
        }
    ]
    assert await state.get(S, "agent.modified") == full_state().last_modified


# --- conflicts


async def test_a_new_agent_must_not_exist(agents: Agents) -> None:
    """Saving another one under an id in use changes nothing, and says what to do."""
    await agents.save(full_state())
    with pytest.raises(AgentExistsError, match="force=True") as caught:
        await agents.save(AgentState.new("alice", "t"))
    assert caught.value.agent_id == "alice"
    assert await agents.load("alice") == full_state()


async def test_a_stale_state_is_refused(agents: Agents) -> None:
    """The second of two that loaded the same state learns which keys had changed."""
    await agents.save(full_state())
    one, two = await agents.load("alice"), await agents.load("alice")
    one.context["goal"] = "one"
    two.context["goal"] = "two"
    await agents.save(one)
    with pytest.raises(ConflictError) as caught:
        await agents.save(two)
    assert {each.key for each in caught.value.keys} == {"agent.modified", "agent.context"}
    assert (await agents.load("alice")).context["goal"] == "one"


async def test_a_change_made_with_plain_state_is_seen(agents: Agents, state: StateManager) -> None:
    """Also a writer that does not know of agents is not overwritten."""
    await agents.save(full_state())
    loaded = await agents.load("alice")
    await state.merge(S, "agent.context", {"goal": "plain"})
    loaded.context["goal"] = "mine"
    with pytest.raises(ConflictError):
        await agents.save(loaded)
    loaded = await agents.load("alice")
    await state.update(S, "agent.profile", lambda profile: {**profile, "name": "plain"})
    loaded.context["goal"] = "mine"
    with pytest.raises(ConflictError) as caught:
        await agents.save(loaded)
    assert [each.key for each in caught.value.keys] == ["agent.profile"]


async def test_force_replaces_whatever_is_there(agents: Agents) -> None:
    """Nothing of the replaced state stays, not even statistics of its tools."""
    await agents.save(full_state())
    state = AgentState.new("alice", "other", now=lambda: T0)
    state.record_tool_usage("shell", 1, True, at=T0)
    await agents.save(state, force=True)
    assert await agents.load("alice") == state
    with pytest.raises(ConflictError):
        await agents.save(full_state())


async def test_force_prevails_among_others(agents: Agents) -> None:
    """It is tried again until it is the last word; what is there is the state of one of them."""
    await agents.save(full_state())
    forced = [AgentState.new("alice", f"t{n}", tags=[f"t{n}"], now=lambda: T0) for n in range(6)]
    for number, state in enumerate(forced):
        state.record_tool_usage(f"tool {number}", 1, True, at=T0)
        state.add_message("user", number, at=T0)
    await asyncio.gather(*(agents.save(state, force=True) for state in forced))
    assert await agents.load("alice") in forced


async def test_of_many_that_save_at_once_one_is_first(agents: Agents) -> None:
    """All loaded the same; one save succeeds, and no change is lost unseen."""
    await agents.save(full_state())
    loaded = [await agents.load("alice") for _ in range(8)]
    for number, state in enumerate(loaded):
        state.context["winner"] = number
    outcomes = await asyncio.gather(*(agents.save(s) for s in loaded), return_exceptions=True)
    won = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert all(isinstance(o, ConflictError) for n, o in enumerate(outcomes) if n not in won)
    assert (await agents.load("alice")).context["winner"] == won[0]


async def test_a_saved_state_can_be_saved_again(agents: Agents) -> None:
    """A save leaves the state as if it had just been loaded."""
    state = full_state()
    for number in range(3):
        state.add_message("user", str(number), at=T0)
        state.record_tool_usage(f"tool {number}", 1.5, number > 1, at=T0)
        await agents.save(state)
        assert await agents.load("alice") == state


async def test_a_state_of_another_namespace_is_a_new_agent(agents: Agents, url: str) -> None:
    """What was loaded here says nothing about an agent of the same id elsewhere."""
    from llmspell_dist import connect

    await agents.save(full_state())
    state = await agents.load("alice")
    async with connect(url, namespace="another") as other:
        elsewhere = agents_of(other)
        await elsewhere.save(state)
        assert await elsewhere.load("alice") == full_state()


# --- bad input


@pytest.mark.parametrize("agent_id", ["", None, 7, "\ud800", "x" * 600])
async def test_an_id_that_is_none_is_refused(agents: Agents, agent_id: Any) -> None:
    """Every operation says so before anything is sent."""
    for call in (agents.load, agents.delete, agents.metadata, agents.pause, agents.fork):
        with pytest.raises(InvalidArgumentError):
            await call(agent_id)


async def test_ids_of_any_text_are_agents_of_their_own(agents: Agents) -> None:
    """No id reaches into another agent or out of the agents."""
    ids = ["a", "a:b", "a/b", "a%2Fb", "*", "{x}", "é", "a b"]
    for agent_id in ids:
        await agents.save(AgentState.new(agent_id, "t", now=lambda: T0))
    for agent_id in ids:
        assert await agents.load(agent_id) == AgentState.new(agent_id, "t", now=lambda: T0)
    assert {s.agent_id for s in (await agents.list()).items} == set(ids)


async def test_what_cannot_be_stored_changes_nothing(agents: Agents, store: Store) -> None:
    """The error names where the value is; the agent stays as it was."""
    await agents.save(full_state())
    before = store.dump()

    async def save_with(change: Callable[[Any], Any]) -> None:
        state = await agents.load("alice")
        change(state)
        await agents.save(state)

    for change, error in (
        (lambda s: s.context.update(f=print), CodecError),
        (lambda s: s.custom.update(big="x" * 20_000_000), LimitError),
        (lambda s: s.conversation.append(Message(Role.USER, object(), T0)), CodecError),
        (lambda s: s.conversation.__setitem__(0, "text"), InvalidArgumentError),
        (lambda s: setattr(s, "agent_type", ""), InvalidArgumentError),
    ):
        with pytest.raises(error):
            await save_with(change)
    with pytest.raises(CodecError, match=r"agent\.context\.f"):
        await save_with(lambda state: state.context.update(f=print))
    with pytest.raises(InvalidArgumentError):
        await agents.save({"agent_id": "alice"})  # type: ignore[arg-type]
    assert store.dump() == before


async def test_a_missing_agent_is_an_error_that_names_it(agents: Agents) -> None:
    """Reading, pausing and forking what is not there."""
    for call in (agents.load, agents.load_fast, agents.metadata, agents.pause, agents.resume,
                 agents.stop, agents.fork):  # fmt: skip
        with pytest.raises(AgentNotFoundError) as caught:
            await call("nobody")
        assert caught.value.agent_id == "nobody"


# --- load_fast


async def test_the_tail_is_loaded_without_the_rest(agents: Agents) -> None:
    """Everything but the earlier messages; those can be read one page at a time."""
    state = full_state()
    for number in range(50):
        state.add_message("user", str(number), at=T0)
    await agents.save(state)
    fast = await agents.load_fast("alice", tail=3)
    assert list(fast.conversation) == list(state.conversation)[-3:]
    assert fast.conversation.missing == 51  # type: ignore[attr-defined]
    assert (fast.context, fast.tool_usage, fast.metadata) == (
        *(state.context, state.tool_usage, state.metadata),
    )
    assert await agents.agent("alice").messages(1, 3) == list(state.conversation)[1:3]
    assert await agents.agent("alice").messages(-2) == list(state.conversation)[-2:]
    assert list((await agents.load_fast("alice", tail=0)).conversation) == []
    assert (await agents.load_fast("alice", tail=99)).conversation == state.conversation
    with pytest.raises(InvalidArgumentError):
        await agents.load_fast("alice", tail=-1)


async def test_a_state_loaded_in_part_can_be_added_to(agents: Agents) -> None:
    """New messages go behind those that are not here; the earlier ones cannot be changed."""
    await agents.save(full_state())
    fast = await agents.load_fast("alice", tail=1)
    fast.add_message("user", "more", at=T0)
    await agents.save(fast)
    fast.conversation[0] = Message(Role.USER, "other", T0)
    with pytest.raises(InvalidArgumentError, match="in part"):
        await agents.save(fast)
    again = await agents.load("alice")
    assert [m.content for m in again.conversation][-2:] == [None, "more"]
    assert len(again.conversation) == 5


@pytest.mark.library_only("it looks at the requests to the server")
async def test_loading_takes_few_round_trips_whatever_there_is(
    agents: Agents, spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and messages of any number cost three requests and a page for each half mebibyte."""
    state = AgentState.new("alice", "t", now=lambda: T0)
    for number in range(300):
        state.record_tool_usage(f"tool {number}", 1, True, at=T0)
        state.context[str(number)] = number
    for _ in range(2000):
        state.add_message("user", "x" * 200, at=T0)
    await agents.save(state)
    sent: list[Any] = []
    execute = spell._driver.execute

    def counting(request: Any) -> Any:
        sent.append(request)
        return execute(request)

    monkeypatch.setattr(spell._driver, "execute", counting)
    assert await agents.load("alice") == state
    pages = [request for request in sent if isinstance(request, Command)]
    assert len(sent) - len(pages) == 2
    assert len(pages) == 1


async def test_a_load_among_writers_is_of_one_moment(agents: Agents) -> None:
    """While others count tool calls in one commit each, a load never sees half of one."""
    await agents.save(AgentState.new("alice", "t"))
    handle = agents.agent("alice")

    async def work(number: int) -> None:
        for n in range(15):
            await handle.record_tool_usage(f"tool {number % 3} {n % 4}", 2, True)

    async def watch() -> None:
        while not all(task.done() for task in tasks):
            usage = (await agents.load("alice")).tool_usage
            calls = [stats.invocation_count for stats in usage.tool_performance.values()]
            spent = [stats.total_duration_ms for stats in usage.tool_performance.values()]
            assert sum(calls) == usage.successful
            assert [2 * count for count in calls] == spent

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.gather(watch(), *tasks)
    assert (await agents.load("alice")).tool_usage.total == 60


# --- stored forms


async def test_parts_that_somebody_set_as_a_whole_are_read_and_replaced(
    agents: Agents, state: StateManager, store: Store
) -> None:
    """A list or dict that was set, not appended to, is the same to agents."""
    await agents.save(full_state())
    expected = await agents.load("alice")
    for key in ("agent.conversation", "agent.context", "agent.custom", "agent.tools"):
        await state.set(S, key, await state.get(S, key))
    loaded = await agents.load("alice")
    assert loaded == expected
    await agents.agent("alice").add_message("user", "more")
    await agents.agent("alice").set_context(more=1)
    loaded = await agents.load("alice")
    assert len(loaded.conversation) == 5
    assert loaded.context["more"] == 1
    await state.set(S, "agent.conversation", await state.get(S, "agent.conversation"))
    loaded = await agents.load("alice")
    loaded.add_message("user", "last", at=T0)
    loaded.custom["x"] = 1
    await agents.save(loaded)
    assert await agents.load("alice") == loaded
    store.check()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("agent.profile", {"layout": 2}, UnsupportedFormatError),
        ("agent.profile", "alice", CorruptRecordError),
        ("agent.profile", {"layout": 1}, CorruptRecordError),
        ("agent.execution", {"status": "asleep"}, CorruptRecordError),
        ("agent.execution", 5, CorruptRecordError),
        ("agent.modified", "yesterday", CorruptRecordError),
        ("agent.hooks", [], CorruptRecordError),
        ("agent.context", {5: 5}, CorruptRecordError),
        ("agent.context", [], CorruptRecordError),
        ("agent.conversation", {}, CorruptRecordError),
        ("agent.tools.failed", "many", CorruptRecordError),
        ("agent.tools", {5: None}, CorruptRecordError),
    ],
)
async def test_what_is_no_agents_part_is_corrupt(
    agents: Agents, state: StateManager, key: str, value: Any, error: type[Exception]
) -> None:
    """The error names the scope and a key; a layout of another release is never guessed at."""
    await agents.save(full_state())
    await state.set(S, key, value)
    with pytest.raises(error):
        await agents.load("alice")


async def test_keys_of_the_user_in_the_scope_are_left_alone(
    agents: Agents, state: StateManager
) -> None:
    """An agent shares its scope with plain state."""
    await state.set(S, "mood", "curious")
    await agents.save(full_state())
    assert await agents.load("alice") == full_state()
    await agents.save(AgentState.new("alice", "t", now=lambda: T0), force=True)
    assert await state.get(S, "mood") == "curious"


# --- delete


async def test_delete_removes_everything_of_an_agent(agents: Agents, store: Store) -> None:
    """State, effects, and what else lay in its scope; the second time there is nothing."""
    await agents.save(full_state())
    await agents.agent("alice").effect("mail").run(lambda: "sent")
    assert await agents.delete("alice") is True
    assert await agents.delete("alice") is False
    assert store.meta(S).count == 0
    with pytest.raises(AgentNotFoundError):
        await agents.load("alice")
    await agents.save(full_state())
    assert await agents.load("alice") == full_state()
    assert await agents.agent("alice").effects() == []


async def test_delete_without_an_agent_leaves_plain_state(
    agents: Agents, state: StateManager
) -> None:
    """Where no agent is, nothing is removed."""
    await state.set(S, "mood", "curious")
    assert await agents.delete("alice") is False
    assert await state.get(S, "mood") == "curious"
