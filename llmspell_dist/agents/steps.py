"""Agents as a whole, as steps: save, load, metadata, pause and resume, delete, fork."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.agents.conversation import Conversation
from llmspell_dist.agents.errors import AgentExistsError, AgentNotFoundError
from llmspell_dist.agents.layout import (
    CONVERSATION,
    EXECUTION,
    FIXED_KEYS,
    MAPS,
    MODIFIED,
    PROFILE,
    TOOLS,
    Parts,
    assembled,
    execution_as_stored,
    execution_from,
    tool_keys,
)
from llmspell_dist.agents.model import AgentState, Clock
from llmspell_dist.agents.plain import plain_load
from llmspell_dist.agents.points import Passing, wanted
from llmspell_dist.agents.reading import AgentReads, Loaded, check_count
from llmspell_dist.agents.retrying import again_on_conflict
from llmspell_dist.agents.saving import Saving
from llmspell_dist.agents.shown import ShownState
from llmspell_dist.agents.snapshot import Snapshot
from llmspell_dist.agents.updates import Updates
from llmspell_dist.changes import Op
from llmspell_dist.errors import ConflictError, InvalidArgumentError
from llmspell_dist.redis.commits import ConditionMode, change, condition
from llmspell_dist.revision import Revision, from_ms
from llmspell_dist.scope import Scope
from llmspell_dist.state.core import field_of
from llmspell_dist.state.history import History, moment_of
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.points import NO_POINTS, Points
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.state.writes import Writes
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.agents.execution import ExecutionState, Transition
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["AgentSteps", "Transited", "agent_scope"]

_ABSENT: Final = object()


def agent_scope(agent_id: str) -> Scope:
    """Return the scope that an agent lies in."""
    if type(agent_id) is not str or not agent_id:
        raise InvalidArgumentError("agent_id", agent_id, "must be a str that is not empty")
    return Scope.agent(agent_id)


def _moment(at: Revision | datetime | str) -> Revision:
    """Return the last revision that a moment includes, which may be given as text."""
    try:
        return Revision.parse(at) if isinstance(at, str) else moment_of(at)
    except InvalidArgumentError:
        if isinstance(at, datetime):
            raise  # it says what is wrong with the time
        rule = "must be a Revision, its text as Revision.parse reads it, or an aware datetime"
        raise InvalidArgumentError("at", at, rule) from None


class Transited(NamedTuple):
    """A transition that was stored."""

    execution: ExecutionState
    at: datetime
    revision: Revision


class AgentSteps:
    """The operations on agents; built over a fenced core, everything they write is fenced."""

    points: Points = NO_POINTS
    """Where hooks are let in."""

    def __init__(self, core: Core, now: Clock, points: Points = NO_POINTS) -> None:
        self.core = core
        self.now = now
        self.points = points
        self.reads = Reads(core)
        self.writes = Writes(core, self.reads)
        self.partial = Partial(core, self.reads)
        self.agents = AgentReads(core, self.reads)

    def transaction(self) -> TransactionSteps:
        """Return a transaction that has done nothing yet."""
        return TransactionSteps(self.core, self.reads, self.writes, self.partial)

    def updates(self) -> Updates:
        """Return what changes an agent by pieces."""
        return Updates(self.core, self.reads, self.writes, self.partial)

    # --- load

    def load(self, agent_id: str, tail: int | None) -> Steps[AgentState]:
        """Return an agent's state, with all messages or the last `tail`."""
        if not wanted(self.points, "load"):
            return (yield from self.found(agent_id, tail))
        scope = agent_scope(agent_id)
        if tail is not None:
            check_count("tail", tail)
        name = "load" if tail is None else "load_fast"
        told = Passing(self.points, "load", scope.id, name, {"tail": tail})
        return (yield from told.carry_out(lambda _: self.found(agent_id, tail), plain_load))

    def found(self, agent_id: str, tail: int | None) -> Steps[AgentState]:
        """Return an agent's state past all hooks."""
        scope = agent_scope(agent_id)
        if tail is not None:
            check_count("tail", tail)
        loaded = yield from self.agents.everything(scope, tail)
        if loaded is None:
            raise AgentNotFoundError(agent_id)
        return self.state_of(agent_id, loaded)

    def state_of(self, agent_id: str, loaded: Loaded) -> AgentState:
        """Return the state that was read."""
        snapshot = loaded.snapshot
        state = assembled(agent_id, snapshot.scope, loaded.parts)
        raws = loaded.inline or []
        missing = snapshot.conversation.count - len(raws)
        state.conversation = self.agents.conversation(raws, snapshot.scope, missing, snapshot.home)
        state.stored = snapshot
        return state

    # --- save

    def save(self, state: AgentState, force: bool, operation: str = "save") -> Steps[Revision]:
        """Save a state in one commit; refuse to overwrite what it does not know, unless forced."""
        if type(state) is not AgentState:
            raise InvalidArgumentError("state", state, "must be an AgentState")
        state.check()
        if not wanted(self.points, "save"):
            return (yield from self._save(state, force))
        shown = ShownState(state, self.core.values.codec)
        told = Passing(
            *(self.points, "save", agent_scope(state.agent_id).id, operation),
            {"value": shown.value, "missing": shown.missing, "force": force},
            changeable=("value",),
            check=lambda data: shown.check(data["value"]),
        )
        return (
            yield from told.carry_out(
                lambda _: shown.save(lambda one: self._save(one, force)),
                lambda revision: {"revision": revision},
            )
        )

    def _save(self, state: AgentState, force: bool) -> Steps[Revision]:
        scope = agent_scope(state.agent_id)
        if not force:
            return (yield from self._save_known(scope, state))

        def over_all() -> Steps[Revision]:
            there = (yield from self.agents.parts(scope)).snapshot
            return (yield from self._saving(scope, state, there).carry_out())

        return (yield from again_on_conflict(over_all))

    def _save_known(self, scope: Scope, state: AgentState) -> Steps[Revision]:
        namespace = self.core.keyspace.namespace
        there = state.stored
        if there is None or not there.is_of(namespace, scope.text):
            there = Snapshot(namespace, scope.text)
            try:
                return (yield from self._saving(scope, state, there).carry_out())
            except ConflictError as conflict:
                if any(each.key == PROFILE for each in conflict.keys):
                    raise AgentExistsError(state.agent_id, conflict.keys, conflict.actual) from None
                raise
        if not there.exact:
            there = yield from self._verified(scope, state, there)
        return (yield from self._saving(scope, state, there).carry_out())

    def _verified(self, scope: Scope, state: AgentState, known: Snapshot) -> Steps[Snapshot]:
        """Return what lies there, if that is what updates without conditions should have left."""
        there = (yield from self.agents.parts(scope)).snapshot
        changed = [
            (scope.text, key, known.revisions.get(key), there.revisions.get(key))
            for key in known.differences(there)
        ]
        if changed:
            raise ConflictError(changed[0][2], changed[0][3], changed)
        messages, before = state.conversation, known.home
        known.conversation = there.conversation  # under the name that it has
        if isinstance(messages, Conversation) and messages.home == before:
            messages.home = known.home
        return there

    def _saving(self, scope: Scope, state: AgentState, there: Snapshot) -> Saving:
        return Saving(self.core, self.writes, self.partial, scope=scope, state=state, there=there)

    # --- execution

    def transition(self, agent_id: str, change_to: Transition) -> Steps[Transited]:
        """Let the execution change, judged by what is stored."""
        agent_scope(agent_id)
        return (yield from self.moved(change_to, lambda one: self.transit(agent_id, one)))

    def moved(
        self, change_to: Transition, carry_out: Callable[[Transition], Steps[Transited]]
    ) -> Steps[Transited]:
        """Carry a transition out, as hooks want it."""
        if not wanted(self.points, "update"):
            return (yield from carry_out(change_to))
        told = Passing(
            *(self.points, "update", change_to.agent_id, change_to.operation),
            {"value": change_to.value},
            changeable=("value",),
            check=lambda data: change_to.given(data["value"]),
        )
        return (
            yield from told.carry_out(
                lambda data: carry_out(change_to.given(data["value"])),
                lambda done: {"revision": done.revision},
            )
        )

    def transit(self, agent_id: str, change_to: Transition) -> Steps[Transited]:
        """Let the execution change, past all hooks."""
        scope = agent_scope(agent_id)

        def judged() -> Steps[Transited]:
            transaction = self.transaction()
            found = yield from transaction.get_many(scope, (PROFILE, EXECUTION))
            if PROFILE not in found:
                raise AgentNotFoundError(agent_id)
            execution = change_to(execution_from(found.get(EXECUTION)))
            at = self.now()
            transaction.set(scope, EXECUTION, execution_as_stored(execution), KEEP, None, 1)
            transaction.set(scope, MODIFIED, at, KEEP, None, 1)
            revision = yield from transaction.commit()
            assert revision is not None  # noqa: S101 - something is always set
            return Transited(execution, at, revision)

        return (yield from again_on_conflict(judged))

    # --- delete

    def delete(self, agent_id: str) -> Steps[bool]:
        """Remove everything in the agent's scope in one commit; whether there was an agent."""
        if not wanted(self.points, "delete"):
            return (yield from self._delete(agent_id))
        told = Passing(self.points, "delete", agent_scope(agent_id).id, "delete", {})
        return (
            yield from told.carry_out(
                lambda _: self._delete(agent_id), lambda there: {"result": there}
            )
        )

    def _delete(self, agent_id: str) -> Steps[bool]:
        scope = self.core.scope_key(agent_scope(agent_id))
        # Without an agent nothing is removed: the scope may hold somebody's plain state.
        there = condition(ConditionMode.PRESENT, field_of(scope, PROFILE))
        commit = self.core.commit((scope,), (change(Op.CLEAR, b"", b""),), (there,))
        try:
            yield from self.core.carry_out(commit)
        except ConflictError:
            return False
        return True

    # --- fork

    def fork(
        self, agent_id: str, into: str, at: Revision | datetime | str | None
    ) -> Steps[AgentState]:
        """Save the state that an agent has, or had at a moment, as a new agent."""
        scope = agent_scope(agent_id)
        if agent_scope(into) == scope:
            raise InvalidArgumentError("into", into, "must be another agent")

        def source() -> Steps[AgentState]:
            if at is None:
                return (yield from self.found(agent_id, None))
            return (yield from self._state_at(agent_id, scope, at))

        if wanted(self.points, "load"):
            said = at.isoformat() if isinstance(at, datetime) else at
            data = {"into": into, "at": None if said is None else str(said)}
            told = Passing(self.points, "load", scope.id, "fork", data)
            state = yield from told.carry_out(lambda _: source(), plain_load)
        else:
            state = yield from source()
        state.agent_id = into
        state.stored = None
        yield from self.save(state, False, "fork")
        return state

    def _state_at(
        self, agent_id: str, scope: Scope, at: Revision | datetime | str
    ) -> Steps[AgentState]:
        moment = _moment(at)
        history = History(self.core, self.reads)
        loaded = yield from self.agents.parts(scope)
        last = loaded.snapshot.scope_revision
        if last is None or last < moment:
            if moment.ms > loaded.now_ms:
                now = from_ms(loaded.now_ms).isoformat(timespec="milliseconds")
                rule = f"must not be in the future: it is {now} by the server's clock"
                raise InvalidArgumentError("at", str(at), rule)
            if last is not None:
                moment = last  # a later one would let in what is committed while we read
        values: dict[str, Any] = {}
        for key in FIXED_KEYS:
            value = yield from history.get_at(scope, key, moment, _ABSENT)
            if value is not _ABSENT:
                values[key] = value
            elif key == PROFILE:
                raise AgentNotFoundError(agent_id, at)
        maps = {key: values.pop(key, {}) for key in MAPS}
        for tool in maps[TOOLS]:
            for key in tool_keys(tool):
                value = yield from history.get_at(scope, key, moment, _ABSENT)
                if value is not _ABSENT:
                    values[key] = value
        encode = self.core.values.codec.encode
        raws = [encode(message) for message in values.pop(CONVERSATION, [])]
        state = assembled(agent_id, scope.text, Parts(values, maps))
        state.conversation = self.agents.conversation(raws, scope.text)
        return state
