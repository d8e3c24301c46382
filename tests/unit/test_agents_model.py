from __future__ import annotations

import itertools
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmspell_dist.agents import errors
from llmspell_dist.agents.effects import check_limit
from llmspell_dist.agents.execution import TRANSITIONS, ExecutionState, ExecutionStatus
from llmspell_dist.agents.layout import quoted, tool_keys
from llmspell_dist.agents.model import AgentMetadata, AgentState, Message, Role, ToolStats
from llmspell_dist.errors import InvalidArgumentError, SpellError

pytestmark = [pytest.mark.unit, pytest.mark.agent]

NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001 - that is what is refused
MESSAGE: Any = Message  # to be given what its types forbid
STATE: Any = AgentState
EXECUTION: Any = ExecutionState
T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
S = ExecutionStatus


def a_state() -> Any:
    """Return the state of an agent that has done nothing."""
    return AgentState.new("alice", "researcher", now=lambda: T0)


def test_a_new_agent_is_idle_and_named_by_its_id():
    """Without a name the id is one; both times are the clock's, and nothing has happened yet."""
    state = a_state()
    assert (state.metadata.name, state.metadata.version) == ("alice", "1.0.0")
    assert state.creation_time == state.last_modified == T0
    assert (state.status, state.schema_version) == (S.IDLE, 1)
    assert (list(state.conversation), state.context, state.tool_usage.total) == ([], {}, 0)
    assert state.revision is None


def test_a_message_touches_the_agent():
    """Adding a message appends it and moves last_modified to its time."""
    state = a_state()
    message = state.add_message("user", "hello", at=T0 + timedelta(seconds=1))
    assert list(state.conversation) == [message]
    assert message.role is Role.USER
    assert state.last_modified == T0 + timedelta(seconds=1)


def test_tool_calls_are_counted_by_tool_and_together():
    """Counts, failures, durations and the last use; the average is derived."""
    state = a_state()
    state.record_tool_usage("web", 10, True, at=T0)
    state.record_tool_usage("web", 30, False, at=T0 + timedelta(seconds=1))
    state.record_tool_usage("shell", 5, True, at=T0 + timedelta(seconds=2))
    usage = state.tool_usage
    assert (usage.total, usage.successful, usage.failed) == (3, 2, 1)
    web = usage.tool_performance["web"]
    assert web == ToolStats(2, 1, 40, T0 + timedelta(seconds=1))
    assert web.average_duration_ms == 20.0
    assert ToolStats().average_duration_ms == 0.0
    assert state.last_modified == T0 + timedelta(seconds=2)


@pytest.mark.parametrize("role", list(Role))
def test_a_role_is_given_as_itself_or_by_its_value(role):
    """Texts become roles; the values are those of the models' interfaces."""
    assert MESSAGE(role.value, "x", T0).role is role
    assert Message(role, "x", T0).role is role


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: MESSAGE("robot", "x", T0), "role"),
        (lambda: MESSAGE(Role.USER, "x", NAIVE), "timestamp"),
        (lambda: MESSAGE(Role.USER, "x", None), "timestamp"),
        (lambda: MESSAGE(Role.USER, "x", T0, {1: "x"}), "metadata"),
        (lambda: STATE.new("", "t"), "agent_id"),
        (lambda: STATE.new("a", ""), "agent_type"),
        (lambda: STATE.new("a", "t", now=lambda: NAIVE), "creation_time"),
        (lambda: STATE.new("a", "t", tags=[1]), "tags"),
        (lambda: STATE.new("a", "t", capabilities=[None]), "capabilities"),
        (lambda: STATE.new("a", "t", description=7), "description"),
        (lambda: a_state().record_tool_usage("", 1, True), "tool"),
        (lambda: a_state().record_tool_usage("x", -1, True), "duration_ms"),
        (lambda: a_state().record_tool_usage("x", float("nan"), True), "duration_ms"),
        (lambda: a_state().record_tool_usage("x", 1, 1), "success"),
        (lambda: a_state().touch(NAIVE), "at"),
        (lambda: a_state().transition("asleep"), "status"),
        (lambda: EXECUTION("idle", 5), "reason"),
        (lambda: EXECUTION("idle", None, "processing"), "suspended_from"),
        (lambda: EXECUTION("suspended", None, "completed"), "suspended_from"),
        (lambda: tool_keys("x" * 201), "tool"),
        (lambda: quoted("effect", "\ud800"), "effect"),
        (lambda: quoted("effect", ""), "effect"),
        (lambda: check_limit(0), "limit"),
        (lambda: check_limit(True), "limit"),
        (lambda: check_limit(timedelta(days=2)), "limit"),
    ],
)
def test_what_no_agent_can_be_is_refused(build: Any, argument):
    """The error names the argument and its rule."""
    with pytest.raises(InvalidArgumentError) as caught:
        build()
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_type", 3),
        ("context", {1: 2}),
        ("custom", []),
        ("metadata", {"name": "x"}),
        ("metadata", AgentMetadata("")),
        ("execution", "idle"),
        ("hook_registrations", ()),
        ("last_hook_execution", NAIVE),
        ("last_modified", None),
        ("schema_version", 0),
        ("schema_version", True),
    ],
)
def test_a_state_with_a_wrong_part_is_refused(field, value):
    """Checked before anything is encoded, by the field's name."""
    state = a_state()
    setattr(state, field, value)
    with pytest.raises(InvalidArgumentError):
        state.check()


@pytest.mark.parametrize(
    "stats",
    [
        ToolStats(-1),
        ToolStats(1, True),
        ToolStats(1, 0, -2),
        ToolStats(last_used=NAIVE),
        5,
    ],
)
def test_statistics_that_cannot_be_are_refused(stats):
    """Counts are whole numbers from zero on, durations numbers, times aware."""
    state = a_state()
    state.tool_usage.tool_performance["web"] = stats
    with pytest.raises(InvalidArgumentError):
        state.check()


# --- transitions


def test_every_status_has_a_row_in_the_table():
    """No status is forgotten, none leads to itself, and each can be left."""
    assert set(TRANSITIONS) == set(ExecutionStatus)
    assert all(row and status not in row for status, row in TRANSITIONS.items())


def test_what_ended_can_only_begin_anew():
    """A completed or failed agent becomes idle and nothing else."""
    assert TRANSITIONS[S.COMPLETED] == TRANSITIONS[S.FAILED] == {S.IDLE}


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(S, S)))
def test_the_table_decides_every_pair(current: ExecutionStatus, wanted: ExecutionStatus):
    """What the table has happens; anything else is an error that says what would be possible."""
    before = ExecutionState(current)
    if wanted in TRANSITIONS[current]:
        after = before.to(wanted, "because")
        assert (after.status, after.reason) == (wanted, "because")
        return
    with pytest.raises(errors.IllegalTransitionError) as caught:
        before.to(wanted, agent_id="alice")
    assert (caught.value.current, caught.value.wanted) == (current, wanted)
    assert caught.value.allowed == sorted(TRANSITIONS[current])
    assert caught.value.agent_id == "alice"


@pytest.mark.parametrize("status", [s for s in S if S.SUSPENDED in TRANSITIONS[s]])
def test_a_resumed_agent_does_what_it_did_before(status):
    """Suspending remembers the status; resuming goes back to it."""
    suspended = ExecutionState(status).to(S.SUSPENDED, "night")
    assert suspended.suspended_from is status
    assert suspended.resumed() == EXECUTION(status)


def test_only_a_suspended_agent_can_be_resumed():
    """Anything else is an illegal transition, not a silent change."""
    with pytest.raises(errors.IllegalTransitionError) as caught:
        ExecutionState(S.COMPLETED).resumed(agent_id="alice")
    assert (caught.value.action, caught.value.wanted) == ("resume", "idle")
    assert "is completed: resume is only for one that is suspended" in str(caught.value)
    assert "can become idle" in str(caught.value)
    assert ExecutionState(S.SUSPENDED).resumed().status is S.IDLE


def test_a_failure_carries_its_message():
    """The message is the reason of the state."""
    assert ExecutionState.failed("boom") == ExecutionState(S.FAILED, "boom")


# --- errors and names


FACTS: dict[str, Any] = {"status": "claimed", "claimed_by": "w1", "token": 7, "since": T0}


@pytest.mark.parametrize(
    "error",
    [
        errors.AgentNotFoundError("alice", T0),
        errors.AgentExistsError("alice"),
        errors.IllegalTransitionError("idle", "failed", ["x"]),
        errors.IllegalTransitionError("idle", "idle", ["x"], "alice", action="resume"),
        errors.EffectInProgressError("alice", "mail", **FACTS),
        errors.EffectUnknownError("alice", "mail", **FACTS, reason="lost"),
        errors.EffectFailedError("alice", "mail", **FACTS),
        errors.EffectCommittedError("alice", "mail", **FACTS),
        errors.EffectTakenOverError("alice", "mail", **FACTS),
    ],
)
def test_errors_carry_their_facts_through_pickle(error):
    """Between processes neither the message nor an attribute is lost."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is type(error)
    assert (str(again), again.facts) == (str(error), error.facts)
    assert again.agent_id in ("alice", None)


def test_error_codes_are_stable_and_unique():
    """Every class of the tree has a code of its own."""
    codes = {name: getattr(errors, name).code for name in errors.__all__}
    assert len(set(codes.values())) == len(codes)
    assert all(issubclass(getattr(errors, name), SpellError) for name in codes)
    assert codes["EffectUnknownError"] == "EFFECT_UNKNOWN"


def test_an_error_names_who_and_since_when():
    """An unknown outcome shows what is known about it."""
    text = str(errors.EffectUnknownError("alice", "mail:42", **FACTS, reason="the process died"))
    assert "mail:42" in text
    assert "w1" in text
    assert "token 7" in text
    assert "2024-11-23T15:00:00.000+00:00" in text


def test_an_error_says_what_to_do():
    """Where only the caller knows how it ended, and where a retry must be asked for."""
    unknown = str(errors.EffectUnknownError("alice", "mail", **FACTS))
    assert "resolve(result)" in unknown
    assert "retry()" in unknown
    assert "retry_failed=True" in str(errors.EffectFailedError("alice", "mail", **FACTS))


def test_names_of_tools_never_run_into_one_another():
    """Whatever a tool is called, its keys are its own."""
    names = ["web", "web.calls", "a/b", "a%2Fb", "é", "e\u0301", "x y", "\n"]
    keys = [key for name in names for key in tool_keys(name)]
    assert len(set(keys)) == 3 * len(names)
    assert tool_keys("web").calls == "agent.tool.web.calls"
