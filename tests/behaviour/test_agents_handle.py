"""A handle of an agent: what changes by pieces costs what is new, and several may do it at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_agents import Ticking, agents_of
from fix_state import Store

from llmspell_dist import (
    ClassRules,
    CodecError,
    ConflictError,
    HistoryUnavailableError,
    InvalidArgumentError,
    Options,
    Retention,
    StateClass,
    connect,
)
from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.errors import (
    AgentExistsError,
    AgentNotFoundError,
    IllegalTransitionError,
)
from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import AgentState, Message, Role
from llmspell_dist.client import Spell
from llmspell_dist.keys import KeySpace
from llmspell_dist.state.history import History
from llmspell_dist.state.manager import StateManager
from llmspell_dist.state.steps import Call

pytestmark = [pytest.mark.integration, pytest.mark.agent, pytest.mark.both_surfaces]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
S = "agent:alice"


@pytest.fixture
def agents(spell: Spell) -> Agents:
    """Agents by a clock of their own."""
    return agents_of(spell, now=Ticking(T0))


async def new_agent(agents: Agents, agent_id: str = "alice", **more: Any) -> AgentState:
    """Save an agent that has done nothing."""
    state = AgentState.new(agent_id, more.pop("agent_type", "t"), now=lambda: T0, **more)
    await agents.save(state)
    return state


# --- by pieces


async def test_a_handle_and_what_is_stored_stay_equal(agents: Agents) -> None:
    """Whatever a handle does, its state is what a load gives, and can be saved."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    part = {"type": "text"}
    message = await agent.add_message("user", [part], metadata={"n": 1})
    part["type"] = "changed by the caller afterwards"
    await agent.add_messages(Message(Role.TOOL, 5, T0), Message(Role.ASSISTANT, "ok", T0))
    await agent.record_tool_usage("web", 10, True)
    await agent.record_tool_usage("web", 2.5, False)
    await agent.record_tool_usage("idle", 0, True)
    await agent.set_context({"goal": [1]}, depth=2)
    await agent.set_context(remove=["depth", "never there"])
    await agent.set_custom(score=1)
    await agent.transition("processing", "asked")
    assert agent.state == await agents.load("alice")
    assert agent.state.context == {"goal": [1]}
    assert agent.state.conversation[0].content == [{"type": "text"}]
    assert message.timestamp == T0 + timedelta(seconds=1)
    assert agent.state.tool_usage.tool_performance["web"].average_duration_ms == 6.25
    assert agent.state.revision == (await agents.load("alice")).revision
    agent.state.metadata.tags.append("saved")
    revision = await agent.save()
    assert agent.state == await agents.load("alice")
    assert agent.state.revision == revision == (await agents.load("alice")).revision


async def test_a_handle_needs_nothing_loaded(agents: Agents) -> None:
    """What is added needs no look at what is there; the state itself must be loaded first."""
    await new_agent(agents)
    agent = agents.agent("alice")
    with pytest.raises(InvalidArgumentError, match="refresh"):
        _ = agent.state
    await agent.add_message(Role.USER, "hello")
    assert [m.content for m in (await agents.load("alice")).conversation] == ["hello"]
    assert "alice" in repr(agent)


async def test_each_piece_is_one_commit_of_what_is_new(agents: Agents, store: Store) -> None:
    """A message: one append and the time. A tool call: numbers, one merge and the time."""
    await new_agent(agents)
    agent = agents.agent("alice")
    before = len(store.log())
    await agent.add_message("user", "x" * 100)
    await agent.record_tool_usage("web", 5, True)
    first, second = store.log()[before:]
    assert [(c.key, c.op) for c in first.changes] == [
        ("agent.conversation", 6),
        ("agent.modified", 1),
    ]
    assert sorted((c.key, c.op) for c in second.changes) == [
        ("agent.modified", 1),
        ("agent.tool.web.calls", 5),
        ("agent.tool.web.ms", 5),
        ("agent.tools", 7),
        ("agent.tools.successful", 5),
    ]
    for _ in range(100):
        await agent.add_message("user", "x" * 100)
        await agent.record_tool_usage("web", 5, True)
    sizes = [sum(len(c.payload or b"") for c in entry.changes) for entry in store.log()[before:]]
    assert max(sizes[0::2]) <= sizes[0] + 4  # a counter of the log's own
    assert max(sizes[1::2]) <= sizes[1] + 8


async def test_every_update_says_its_revision(agents: Agents) -> None:
    """After each of them the handle and its state know the commit, and a fork finds that moment."""
    state = await new_agent(agents)
    agent = agents.agent("alice")
    assert agent.revision is None
    await agent.refresh()
    assert agent.revision == state.revision
    past: list[tuple[Any, AgentState]] = []
    for update in (
        lambda: agent.add_message("user", "hi"),
        lambda: agent.add_messages(Message(Role.USER, 1, T0)),
        lambda: agent.record_tool_usage("web", 1, False),
        lambda: agent.set_context(goal=1),
        lambda: agent.set_custom(goal=1),
        lambda: agent.transition("processing"),
        agent.pause,
        agent.save,
    ):
        before = agent.revision
        await update()
        there = await agents.load("alice")
        assert agent.revision == agent.state.revision == there.revision != before
        past.append((agent.state.revision, there))
    for place, (revision, there) in enumerate(past):
        fork = await agents.fork("alice", f"fork {place}", at=revision)
        there.agent_id = fork.agent_id
        assert fork == there
    unloaded = agents.agent("alice")
    await unloaded.set_context(goal=2)
    assert unloaded.revision == (await agents.load("alice")).revision


async def test_a_handle_alone_knows_all_revisions(
    agents: Agents, spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody else writes, each update is one request, and so is a save after them."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    asked = {"execute": 0, "commit": 0}

    def count(name: str, what: str) -> None:
        original = getattr(spell._driver, name)

        def counting(*arguments: Any) -> Any:
            asked[what] += 1
            return original(*arguments)

        monkeypatch.setattr(spell._driver, name, counting)

    if hasattr(spell._driver, "transport"):
        count("submit", "commit")  # a request to the sidecar
    else:
        count("execute", "execute")
        count("commit", "commit")
    for number in range(3):
        await agent.add_message("user", [number])
        await agent.record_tool_usage("web", 1.5, number > 0)
        await agent.set_context({"goal": number})
        await agent.transition("processing" if number % 2 == 0 else "idle")
    agent.state.context["by hand"] = 1
    await agent.save()
    assert asked == {"execute": 0, "commit": 13}
    snapshot = agent.state.stored
    loaded = await agents.load("alice")
    assert snapshot is not None
    assert loaded.stored is not None
    assert snapshot.revisions == loaded.stored.revisions
    assert snapshot.values == loaded.stored.values
    assert {key: held for key, held in snapshot.maps.items() if held} == loaded.stored.maps
    assert snapshot.conversation == loaded.stored.conversation
    assert agent.state == loaded


async def test_a_first_message_of_a_handle_is_appended_to_by_a_save(
    agents: Agents, store: Store
) -> None:
    """Who began the list knows where it lies, also after others wrote: it is not put anew."""
    await new_agent(agents)
    for others in (False, True):
        await agents.save(AgentState.new("alice", "t", now=lambda: T0), force=True)
        agent = agents.agent("alice")
        await agent.refresh()
        if others:
            await agents.agent("alice").record_tool_usage("web", 1, True)
            await agents.agent("alice").set_custom(a=1)
            await agents.save(AgentState.new("alice", "t", now=lambda: T0), force=True)
        await agent.add_message("user", "first")
        agent.state.add_message("user", "second", at=T0)
        await agent.save()
        ops = {change.key: change.op for change in store.log()[-1].changes}
        assert ops == {"agent.conversation": 6, "agent.modified": 1}


async def test_what_was_changed_by_hand_is_not_taken_for_stored(agents: Agents) -> None:
    """Updates in between do not hide it from the save, whatever they touch."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agent.record_tool_usage("web", 1, True)
    agent.state.record_tool_usage("web", 2, True, at=T0)
    agent.state.context["goal"] = "by hand"
    agent.state.add_message("user", "by hand", at=T0)
    agent.state.execution = ExecutionState(ExecutionStatus.FAILED, "by hand")
    await agent.record_tool_usage("web", 4, False)
    await agent.set_context(other=1)
    await agent.add_message("user", "by the handle")
    await agent.save()
    state = await agents.load("alice")
    assert state == agent.state
    assert state.tool_usage.tool_performance["web"].total_duration_ms == 7
    assert state.context == {"goal": "by hand", "other": 1}
    assert [m.content for m in state.conversation] == ["by hand", "by the handle"]
    assert state.status is ExecutionStatus.FAILED


@pytest.mark.parametrize("duration", [10, 0.1])
async def test_a_tool_call_recorded_by_hand_is_no_conflict_with_oneself(
    agents: Agents, duration: float
) -> None:
    """By hand, then by the handle, then a save, in turns and of one tool: both count."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    for turn in range(1, 4):
        agent.state.tool_usage.record("web", duration, True, T0)
        await agent.record_tool_usage("web", duration / 2, False)
        await agent.save()
        loaded = await agents.load("alice")
        assert loaded == agent.state
        assert loaded.tool_usage.tool_performance["web"].invocation_count == 2 * turn
        assert (loaded.tool_usage.successful, loaded.tool_usage.failed) == (turn, turn)


async def test_one_writer_never_conflicts_with_itself(agents: Agents) -> None:
    """Changes by hand, updates and saves in any order: what is stored is what is in memory."""
    for seed in range(8):
        await new_agent(agents, f"agent {seed}")
        agent = agents.agent(f"agent {seed}")
        await agent.refresh()
        chosen = random.Random(seed)
        for step in range(30):
            await one_change(agent, chosen, step)
            if chosen.random() < 0.25:
                await agent.save(force=chosen.random() < 0.3)
                assert await agents.load(agent.agent_id) == agent.state
        await agent.save()
        assert await agents.load(agent.agent_id) == agent.state


VALUES = ("text", {"a": [1]}, [1, 2], "y" * 70_000, None, 3)


async def one_change(agent: Agent, chosen: random.Random, step: int) -> None:
    """Change something of a state by hand or by its handle."""
    name, value = chosen.choice("abc"), deepcopy(chosen.choice(VALUES))
    if chosen.random() < 0.6:
        change_by_hand(agent.state, chosen, name, value)
        return
    match chosen.randrange(5):
        case 0:
            await agent.add_message("user", value)
        case 1:
            await agent.record_tool_usage(name, chosen.choice([2, 0.2]), chosen.random() < 0.5)
        case 2:
            await agent.set_context({name: value})
        case 3:
            await agent.set_custom({name: step}, remove=["z"])
        case 4:
            await agent.set_context(remove=[name])


def change_by_hand(state: AgentState, chosen: random.Random, name: str, value: Any) -> None:
    """Change something in a state itself."""
    place = chosen.randrange(len(state.conversation) + 1)
    match chosen.randrange(8):
        case 0:
            state.add_message("user", value, at=T0)
        case 1:
            del state.conversation[place : place + 1]
        case 2:
            for message in state.conversation[place:]:
                if isinstance(message.content, list):
                    message.content.append(name)
        case 3:
            state.conversation.insert(place, Message(Role.USER, value, T0))
        case 4:
            state.conversation = list(state.conversation)
        case 5:
            state.tool_usage.record(name, chosen.choice([1, 0.1]), True, T0)
        case 6:
            state.context[name] = value
        case 7:
            state.custom.pop(name, None)


async def test_a_value_changed_while_it_is_sent_is_not_taken_for_stored(agents: Agents) -> None:
    """The handle holds what was sent, and a save does not believe the other is there."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    goal = [1]
    call = asyncio.ensure_future(agent.set_context(goal=goal))
    message = asyncio.ensure_future(agent.add_message("user", goal))
    await asyncio.sleep(0)
    goal.append(2)
    await asyncio.gather(call, message)
    assert agent.state.context == {"goal": [1]}
    assert [m.content for m in agent.state.conversation] == [[1]]
    assert await agents.load("alice") == agent.state


@pytest.mark.parametrize("plain", [False, True])
async def test_a_change_of_others_just_before_an_update_is_seen_by_the_save(
    agents: Agents, state: StateManager, plain: bool
) -> None:
    """Of an agent's handle or of plain state, and to the very key that the update touches."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agent.set_context(mine=1)
    if plain:
        await state.merge(S, "agent.context", {"other": 1})
    else:
        await agents.agent("alice").set_context(other=1)
    await agent.set_context(mine=2)
    agent.state.context["mine"] = 3
    with pytest.raises(ConflictError) as caught:
        await agent.save()
    assert "agent.context" in {each.key for each in caught.value.keys}
    assert (await agents.load("alice")).context == {"mine": 2, "other": 1}


async def test_updates_of_one_handle_at_once_keep_their_order(agents: Agents) -> None:
    """None of them is refused and sent again behind the others; a save then looks, and succeeds."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agents.agent("alice").set_custom(other=1)
    await agent.refresh()
    await asyncio.gather(*(agent.add_message("user", number) for number in range(20)))
    assert [m.content for m in await agent.messages()] == list(range(20))
    assert agent.state == await agents.load("alice")
    await agent.save()

    async def one_after_the_other() -> None:
        await agent.add_message("user", "first")
        await agent.add_message("user", "third")

    await asyncio.gather(one_after_the_other(), agent.add_message("user", "second"))
    assert [m.content for m in await agent.messages(-3)] == ["first", "second", "third"]
    assert agent.state == await agents.load("alice")
    agent.state.context["a"] = 1
    await agent.save()
    assert agent.state == await agents.load("alice")


async def test_a_load_that_overtakes_an_update_counts_it_once(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state that was loaded meanwhile has the message already."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    apply_known = agent._steps.updates.apply_known

    def overtaken(*arguments: Any) -> Any:
        applied = yield from apply_known(*arguments)
        yield Call(agent.refresh, ())
        return applied

    monkeypatch.setattr(agent._steps.updates, "apply_known", overtaken)
    await agent.add_message("user", "once")
    assert [m.content for m in agent.state.conversation] == ["once"]
    agent.state.context["a"] = 1
    await agent.save()
    assert agent.state == await agents.load("alice")


async def test_a_load_that_an_update_overtakes_is_not_taken_for_all(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks the message, so a save of it is refused."""
    await new_agent(agents)
    agent = agents.agent("alice")
    apply = agent._steps.updates.apply

    def overtaking(*arguments: Any) -> Any:
        yield Call(agent.refresh, ())
        return (yield from apply(*arguments))

    monkeypatch.setattr(agent._steps.updates, "apply", overtaking)
    await agent.add_message("user", "unseen")
    agent.state.context["a"] = 1
    with pytest.raises(ConflictError):
        await agent.save()


async def test_many_handles_add_at_once_and_nothing_is_lost(agents: Agents) -> None:
    """Messages, counts and variables of many writers are all there."""
    await new_agent(agents)
    handles = [agents.agent("alice") for _ in range(5)]

    async def work(number: int) -> None:
        for n in range(10):
            await handles[number].add_message("user", [number, n])
            await handles[number].record_tool_usage("web", 1, n % 2 == 0)
            await handles[number].set_context({f"{number}.{n}": n})

    await asyncio.gather(*(work(number) for number in range(5)))
    state = await agents.load("alice")
    said = [message.content for message in state.conversation]
    assert sorted(said) == [[number, n] for number in range(5) for n in range(10)]
    assert all([c for c in said if c[0] == n] == [[n, i] for i in range(10)] for n in range(5))
    assert (state.tool_usage.successful, state.tool_usage.failed) == (25, 25)
    assert len(state.context) == 50


async def test_a_save_after_others_added_is_refused(agents: Agents) -> None:
    """A handle that adds does not thereby know what others did meanwhile."""
    await new_agent(agents)
    one, two = agents.agent("alice"), agents.agent("alice")
    await one.refresh()
    await two.refresh()
    await one.add_message("user", "one")
    await two.set_context(other=1)
    await one.add_message("user", "once more")
    with pytest.raises(ConflictError) as caught:
        await one.save()
    assert "agent.context" in {each.key for each in caught.value.keys}
    await one.refresh()
    await one.save()
    assert (await agents.load("alice")).context == {"other": 1}


async def test_a_save_after_another_changed_the_status_is_refused(agents: Agents) -> None:
    """Also where the handle itself wrote last."""
    await new_agent(agents)
    one = agents.agent("alice")
    await one.refresh()
    await agents.pause("alice")
    await one.add_message("user", "one")
    with pytest.raises(ConflictError) as caught:
        await one.save()
    assert [each.key for each in caught.value.keys] == ["agent.execution"]


async def test_messages_that_another_added_are_not_overwritten(agents: Agents) -> None:
    """Two handles of one agent; the stale one cannot put its conversation in place of the other."""
    await new_agent(agents)
    one, two = agents.agent("alice"), agents.agent("alice")
    await one.refresh()
    await two.refresh()
    await two.add_message("user", "two")
    await one.add_message("user", "one")
    one.state.conversation[0] = Message(Role.USER, "mine alone", T0)
    with pytest.raises(ConflictError):
        await one.save()
    assert [m.content for m in (await agents.load("alice")).conversation] == ["two", "one"]


async def test_nothing_is_added_to_an_agent_that_is_not_there(agents: Agents, store: Store) -> None:
    """No piece of an agent comes to lie where none is."""
    agent = agents.agent("nobody")
    for call in (
        agent.refresh(),
        agent.add_message("user", "x"),
        agent.record_tool_usage("web", 1, True),
        agent.set_context(a=1),
        agent.set_custom(a=1),
        agent.transition("processing"),
    ):
        with pytest.raises(AgentNotFoundError):
            await call
    assert await agent.messages() == []
    assert list(store.dump()) == [store.space.ctl("0")]


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.add_message("robot", "x"),
        lambda a: a.add_messages(),
        lambda a: a.add_messages("text"),
        lambda a: a.record_tool_usage("", 1, True),
        lambda a: a.record_tool_usage("x" * 300, 1, True),
        lambda a: a.record_tool_usage("x", "1", True),
        lambda a: a.set_context(),
        lambda a: a.set_context({1: 2}),
        lambda a: a.set_context(remove="goal"),
        lambda a: a.set_context(remove=[1]),
        lambda a: a.transition("asleep"),
        lambda a: a.messages("1"),
        lambda a: a.refresh(tail=-1),
    ],
)
async def test_bad_input_of_a_handle_changes_nothing(
    agents: Agents, store: Store, call: Callable[[Any], Any]
) -> None:
    """Refused before anything is sent, with the argument's name."""
    await new_agent(agents)
    before = store.dump()
    with pytest.raises(InvalidArgumentError):
        await call(agents.agent("alice"))
    assert store.dump() == before


class _Cipher:
    """Reverses what it is given, and binds it to the key."""

    def encrypt(self, payload: bytes, *, associated_data: bytes) -> bytes:
        return b"sealed:" + associated_data + payload[::-1]

    def decrypt(self, payload: bytes, *, associated_data: bytes) -> bytes:
        seal = b"sealed:" + associated_data
        assert payload.startswith(seal)
        return payload[len(seal) :][::-1]


@pytest.mark.parametrize(
    "state_class", [c for c in StateClass if c is not StateClass.EXTERNAL], ids=str
)
async def test_agents_of_every_class_are_loaded_equal(
    url: str, namespace: str, store: Store, state_class: StateClass
) -> None:
    """Encrypted, compressed, ephemeral, durable: the scope's class decides, for all parts."""
    rules = ClassRules(scopes={"agent": state_class})
    options = Options(classes=rules, cipher=_Cipher())
    async with connect(url, namespace=namespace, options=options) as spell:
        agents = agents_of(spell, now=Ticking(T0))
        state = await new_agent(agents)
        state.add_message("user", "a secret word", at=T0)
        state.record_tool_usage("web", 1.5, True, at=T0)
        state.context["k"] = "a secret word"
        await agents.save(state)
        assert await agents.load("alice") == state
        agent = agents.agent("alice")
        await agent.refresh()
        await agent.add_message("user", "a secret word")
        await agent.record_tool_usage("web", 1.5, False)
        await agent.set_context(k2="a secret word")
        await agent.transition("processing")
        assert await agent.effect("mail").run(lambda: "a secret word") == "a secret word"
        assert agent.state == await agents.load("alice")
        await agent.save()
        del agent.state.conversation[0]
        await agent.save()
        assert agent.state == await agents.load("alice")
        assert (await agents.metadata("alice")).messages == 1
        assert await agent.messages(-1) == list(agent.state.conversation)
    if state_class is StateClass.SENSITIVE:
        assert b"a secret word" not in store.everything()


async def test_records_of_another_class_than_the_rules_say_are_kept(
    url: str, namespace: str, agents: Agents
) -> None:
    """Who has other rules than the writer adds in the class that the records have."""
    await new_agent(agents)
    sealed = Options(classes=ClassRules(default=StateClass.SENSITIVE), cipher=_Cipher())
    async with connect(url, namespace=namespace, options=sealed) as other:
        there = agents_of(other, now=Ticking(T0))
        await new_agent(there, "sealed")
        await there.agent("sealed").add_message("user", "one")
        await there.agent("alice").add_message("user", "one")
        await there.agent("alice").add_message("user", "two")
        assert len((await there.load("alice")).conversation) == 2
    open_ = Options(cipher=_Cipher())
    async with connect(url, namespace=namespace, options=open_) as other:
        there = agents_of(other, now=Ticking(T0))
        await there.agent("sealed").add_message("user", "two")
        state = await there.load("sealed")
        state.add_message("user", "three", at=T0)
        await there.save(state)
        assert await there.load("sealed") == state


async def test_the_class_for_foreign_data_refuses_agents(url: str, namespace: str) -> None:
    """External takes the shape of JSON only, and an agent has times: said at once, by the path."""
    options = Options(classes=ClassRules(scopes={"agent": StateClass.EXTERNAL}))
    async with connect(url, namespace=namespace, options=options) as spell:
        with pytest.raises(CodecError, match="datetime"):
            await new_agent(agents_of(spell))


# --- execution


async def test_pause_resume_and_stop_persist(agents: Agents) -> None:
    """Another process sees the status, the reason, and what was going on before."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.transition(ExecutionStatus.PROCESSING)
    paused = await agents.pause("alice", reason="night")
    assert paused == ExecutionState(ExecutionStatus.SUSPENDED, "night", ExecutionStatus.PROCESSING)
    assert (await agents.load("alice")).execution == paused
    assert (await agents.resume("alice")).status is ExecutionStatus.PROCESSING
    assert (await agents.stop("alice", reason="done")).status is ExecutionStatus.COMPLETED
    assert (await agents.metadata("alice")).execution == ExecutionState(
        ExecutionStatus.COMPLETED, "done"
    )
    assert (await agents.load("alice")).last_modified == T0 + timedelta(seconds=4)


async def test_a_handle_pauses_resumes_and_stops(agents: Agents) -> None:
    """As the methods for an id do, and its state follows."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agent.transition("processing")
    assert (await agent.pause(reason="night")).suspended_from is ExecutionStatus.PROCESSING
    assert agent.state.execution == (await agents.load("alice")).execution
    assert (await agent.resume(reason="day")).status is ExecutionStatus.PROCESSING
    assert (await agent.stop(reason="done")) == ExecutionState(ExecutionStatus.COMPLETED, "done")
    assert agent.state == await agents.load("alice")
    with pytest.raises(IllegalTransitionError):
        await agent.pause()


async def test_a_handle_that_knows_another_status_goes_by_what_is_stored(agents: Agents) -> None:
    """What it has loaded neither allows nor forbids."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agents.pause("alice")
    assert (await agent.resume()).status is ExecutionStatus.IDLE  # it knew of no pause
    await agent.refresh()
    await agents.stop("alice")
    with pytest.raises(IllegalTransitionError):
        await agent.transition("processing")  # it knew of no stop


async def test_an_illegal_transition_changes_nothing(agents: Agents, store: Store) -> None:
    """What is stored decides, not what a handle has loaded."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.refresh()
    await agents.stop("alice")
    before = store.dump()
    for call in (agent.transition("processing"), agents.pause("alice"), agents.resume("alice"),
                 agents.stop("alice")):  # fmt: skip
        with pytest.raises(IllegalTransitionError) as caught:
            await call
        assert (caught.value.current, caught.value.agent_id) == ("completed", "alice")
        assert caught.value.allowed == ["idle"]
    assert store.dump() == before


async def test_of_many_transitions_at_once_each_is_legal(
    agents: Agents, state: StateManager
) -> None:
    """Twenty that want the same leave one that did it."""
    await new_agent(agents)
    calls = [agents.pause("alice", reason=str(n)) for n in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    done = [o for o in outcomes if isinstance(o, ExecutionState)]
    assert len(done) == 1
    assert sum(isinstance(o, IllegalTransitionError) for o in outcomes) == 19
    assert len(await state.history(S, "agent.execution")) == 2


# --- finding


async def test_agents_are_found_by_what_they_are(agents: Agents) -> None:
    """Each filter alone and all together; agents that do not match are not there."""
    await new_agent(agents, "team-a", agent_type="coder", tags=["eu", "x"], capabilities=["py"])
    await new_agent(agents, "team-b", agent_type="coder", tags=["eu"])
    await new_agent(agents, "solo", tags=["x"])
    await agents.agent("solo").add_message("user", "hi")
    await agents.pause("team-b")

    async def ids(**wanted: Any) -> list[str]:
        page = await agents.list(**wanted)
        assert page.cursor is None
        return sorted(summary.agent_id for summary in page.items)

    assert await ids() == ["solo", "team-a", "team-b"]
    assert await ids(agent_type="coder") == ["team-a", "team-b"]
    assert await ids(status="idle") == ["solo", "team-a"]
    assert await ids(status=["suspended", "failed"]) == ["team-b"]
    assert await ids(tags="x") == ["solo", "team-a"]
    assert await ids(tags=["eu", "x"]) == ["team-a"]
    assert await ids(capability="py") == ["team-a"]
    assert await ids(prefix="team-") == ["team-a", "team-b"]
    assert await ids(prefix="*") == []
    assert await ids(updated_since=T0 + timedelta(seconds=2)) == ["team-b"]
    assert await ids(agent_type="coder", tags=["eu"], status="suspended", prefix="t") == ["team-b"]


async def test_a_summary_is_what_the_state_says(agents: Agents) -> None:
    """Everything but conversation, variables and statistics, and how many messages there are."""
    await new_agent(agents, tags=["eu"])
    await agents.agent("alice").add_message("user", "hi")
    state, summary = await agents.load("alice"), await agents.metadata("alice")
    for name in ("agent_id", "agent_type", "metadata", "execution", "creation_time",
                 "last_modified", "schema_version", "status", "revision"):  # fmt: skip
        assert getattr(summary, name) == getattr(state, name)
    assert summary.messages == 1
    assert (await agents.list()).items == [summary]


async def test_all_agents_come_page_by_page(agents: Agents, state: StateManager) -> None:
    """Many pages give every agent, and nothing that is none."""
    wanted = {f"a{number}" for number in range(300)}
    for name in wanted:
        await new_agent(agents, name)
    await state.set("agent:plain", "mood", "no agent")
    await state.set("session:s", "agent.profile", "no agent either")
    found, cursor, pages = set(), None, 0
    while True:
        page = await agents.list(cursor=cursor, limit=50)
        found |= {summary.agent_id for summary in page.items}
        pages += 1
        cursor = page.cursor
        if cursor is None:
            break
    assert found == wanted
    assert pages > 1


async def test_agents_of_every_shard_are_found(url: str, namespace: str, store: Store) -> None:
    """A page stays within a shard, and its cursor leads into the next."""
    store.space = KeySpace(namespace, 3)
    options = Options(shards=3)
    async with connect(url, namespace=namespace, options=options) as spell:
        agents = agents_of(spell)
        wanted = {f"a{number}" for number in range(20)}
        for name in wanted:
            await new_agent(agents, name)
        found: list[str] = []
        cursor, pages = None, 0
        while True:
            page = await agents.list(cursor=cursor)
            found += [summary.agent_id for summary in page.items]
            pages += 1
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(found) == sorted(wanted)
        assert pages == 3
        forked = await agents.fork("a1", "elsewhere")
        assert forked.agent_id == "elsewhere"


async def pages_of(agents: Agents, limit: int, **wanted: Any) -> list[list[str]]:
    """Return the ids of all pages."""
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = await agents.list(cursor=cursor, limit=limit, **wanted)
        pages.append([summary.agent_id for summary in page.items])
        cursor = page.cursor
        if cursor is None:
            return pages


@pytest.mark.parametrize(("count", "limit"), [(0, 2), (1, 1), (8, 1), (8, 2), (300, 2), (300, 50)])
async def test_a_page_has_no_more_than_its_limit(agents: Agents, count: int, limit: int) -> None:
    """In a small namespace, which the server gives all at once, as in a large one; each once."""
    wanted = {f"a.{number}" for number in range(count)}
    await asyncio.gather(*(new_agent(agents, name) for name in wanted))
    pages = await pages_of(agents, limit)
    assert all(len(page) <= limit for page in pages)
    assert sorted(name for page in pages for name in page) == sorted(wanted)
    (one,) = {len(page) for page in await pages_of(agents, 5000)}
    assert one == count


async def test_what_is_there_all_the_time_is_in_one_of_the_pages(agents: Agents) -> None:
    """Whoever comes or goes between the pages: small grows large, and large shrinks."""
    stay = {f"stay {number}" for number in range(40)}
    await asyncio.gather(*(new_agent(agents, name) for name in stay))
    found: list[str] = []
    cursor, page_number = None, 0
    while page_number == 0 or cursor is not None:
        page = await agents.list(cursor=cursor, limit=3)
        assert len(page.items) <= 3
        found += [summary.agent_id for summary in page.items]
        cursor = page.cursor
        page_number += 1
        if page_number < 20:
            for number in range(20):
                await new_agent(agents, f"more {page_number} {number}")
        elif page_number < 39:
            for number in range(20):
                await agents.delete(f"more {page_number - 19} {number}")
        assert page_number < 2000
    assert stay <= set(found)


@pytest.mark.parametrize(
    "wanted",
    [
        {"agent_type": 5},
        {"status": "asleep"},
        {"status": ["idle", "asleep"]},
        {"tags": [5]},
        {"capability": b"x"},
        {"prefix": 5},
        {"updated_since": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"cursor": "nonsense"},
        {"cursor": "7.0"},
        {"cursor": "0.x"},
        {"cursor": "0.0.5.0"},
        {"cursor": "0.0.x.0.agent:a"},
        {"cursor": "0.0.5.x.agent:a"},
        {"cursor": "0.0.0.0.agent:a"},
        {"cursor": 5},
        {"limit": 0},
        {"limit": True},
    ],
)
async def test_a_filter_that_is_none_is_refused(agents: Agents, wanted: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError):
        await agents.list(**wanted)


# --- fork


async def test_a_fork_is_the_state_with_another_id(agents: Agents) -> None:
    """Both go their own ways; effects stay with the agent that they belong to."""
    await new_agent(agents)
    agent = agents.agent("alice")
    await agent.add_message("user", "hi")
    await agent.record_tool_usage("web", 1, True)
    await agent.effect("mail").run(lambda: "sent")
    original = await agents.load("alice")
    fork = await agents.fork("alice", "bob")
    original.agent_id = "bob"
    assert fork == original == await agents.load("bob")
    await agents.agent("bob").add_message("user", "on my own")
    assert len((await agents.load("alice")).conversation) == 1
    assert await agents.agent("bob").effects() == []
    fork = await agents.load("bob")
    fork.context["x"] = 1
    await agents.save(fork)


async def test_a_fork_without_a_name_gets_a_new_one(spell: Spell) -> None:
    """The id is drawn, and begins with that of the agent."""
    agents = agents_of(spell, new_id=lambda: "drawn")
    await new_agent(agents)
    assert (await agents.fork("alice")).agent_id == "alice-drawn"


async def test_a_fork_never_replaces_an_agent(agents: Agents) -> None:
    """Neither another nor itself."""
    await new_agent(agents)
    await new_agent(agents, "bob")
    with pytest.raises(AgentExistsError):
        await agents.fork("alice", "bob")
    with pytest.raises(InvalidArgumentError):
        await agents.fork("alice", "alice")


async def test_a_fork_at_a_moment_is_exactly_the_state_then(agents: Agents) -> None:
    """After each of many changes of every kind, by its revision and by its time."""
    await new_agent(agents, tags=["first"])
    agent = agents.agent("alice")
    await agent.refresh()
    past: list[tuple[Any, AgentState]] = []

    async def note() -> None:
        state = await agents.load("alice")
        past.append((state.revision, state))

    await note()
    for number in range(3):
        await agent.add_message("user", [number], metadata={"n": number})
        await note()
        await agent.record_tool_usage(f"tool {number % 2}", 1.5, number > 0)
        await note()
        await agent.set_context({"goal": number, str(number): 1}, remove=[str(number - 1)])
        await note()
        agent.state.metadata.tags.append(str(number))
        agent.state.custom = {"n": number}
        await agent.save()
        await note()
    await agent.transition("processing")
    await note()
    for place, (revision, state) in enumerate(past):
        fork = await agents.fork("alice", f"fork {place}", at=revision)
        state.agent_id = fork.agent_id
        assert fork == state
        assert await agents.load(fork.agent_id) == state


async def test_a_fork_of_a_moment_that_is_not_yet_is_refused(agents: Agents) -> None:
    """A time or a revision of the future; the error says what time it is."""
    state = await new_agent(agents)
    assert state.revision is not None
    later = datetime.now(UTC) + timedelta(days=1)
    for at in (later, state.revision._replace(ms=state.revision.ms + 86_400_000)):
        with pytest.raises(InvalidArgumentError, match=r"^at must not be in the future: it is 20"):
            await agents.fork("alice", "bob", at=at)
    with pytest.raises(AgentNotFoundError):
        await agents.load("bob")


async def test_a_fork_takes_a_revision_as_text(agents: Agents) -> None:
    """As it is printed; another text is refused, and the error says what it should be."""
    state = await new_agent(agents)
    await agents.agent("alice").add_message("user", "later")
    fork = await agents.fork("alice", "bob", at=str(state.revision))
    assert len(fork.conversation) == 0
    for bad in ("yesterday", 5):
        with pytest.raises(InvalidArgumentError, match=r"at must be .*Revision\.parse"):
            await agents.fork("alice", "carol", at=bad)  # type: ignore[arg-type]


async def test_a_fork_at_a_time_sees_what_was_committed_by_then(
    agents: Agents, store: Store
) -> None:
    """A time of the server's clock."""
    state = await new_agent(agents)
    assert state.revision is not None
    await agents.agent("alice").add_message("user", "later")
    now = datetime.fromtimestamp(store.raw.now_ms() / 1000, UTC)
    fork = await agents.fork("alice", "bob", at=now)
    assert len(fork.conversation) == 1
    with pytest.raises(AgentNotFoundError) as caught:
        await agents.fork("alice", "carol", at=state.revision.time - timedelta(seconds=1))
    assert caught.value.at is not None


async def test_a_fork_is_of_one_moment_whatever_comes_meanwhile(
    agents: Agents, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that is now is the moment at which the fork began."""
    await new_agent(agents)

    class Interrupted(History):
        """Has an agent that works on while its past is read."""

        def get_at(self, scope: Any, key: str, at: Any, default: Any) -> Any:
            if key == "agent.profile":
                yield Call(agents.agent("alice").set_context, ({"late": 1},))
            return (yield from super().get_at(scope, key, at, default))

    monkeypatch.setattr("llmspell_dist.agents.steps.History", Interrupted)
    now = datetime.fromtimestamp(store.raw.now_ms() / 1000, UTC)
    fork = await agents.fork("alice", "bob", at=now)
    assert fork.context == {}
    assert (await agents.load("alice")).context == {"late": 1}


async def test_a_fork_of_a_deleted_agent_is_its_state_before(agents: Agents) -> None:
    """The log remembers an agent that is gone."""
    state = await new_agent(agents)
    await agents.agent("alice").set_context(goal=1)
    last = await agents.load("alice")
    await agents.delete("alice")
    fork = await agents.fork("alice", "bob", at=last.revision)
    last.agent_id = "bob"
    assert fork == last
    assert state.context == {}


async def test_a_fork_before_the_log_begins_is_refused(
    url: str, namespace: str, store: Store
) -> None:
    """Where the past was trimmed nothing is made up."""
    retention = Retention(max_age=None, max_entries=1)
    options = Options(retention=retention, housekeeping=False)
    async with connect(url, namespace=namespace, options=options) as spell:
        agents = agents_of(spell)
        state = await new_agent(agents)
        for number in range(3):
            await agents.agent("alice").set_context(goal=number)
        await spell.log.trim()
        assert len(store.log()) == 1
        with pytest.raises(HistoryUnavailableError):
            await agents.fork("alice", "bob", at=state.revision)
        with pytest.raises(AgentNotFoundError):
            await agents.load("bob")
