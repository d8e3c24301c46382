"""One agent by pieces, as steps: add a message, count a tool call, set variables, change status.

The state that a handle holds follows what it writes. An update asks first that what it changes is
as the handle knows it; while nobody else writes, the handle so knows every revision, and a `save`
needs no look. Where others did write, the update is made all the same, since appends and increments
of several get along; the snapshot then is no longer exact, and a `save` first looks what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmspell_dist.agents.errors import AgentNotFoundError, IllegalTransitionError
from llmspell_dist.agents.following import Own
from llmspell_dist.agents.layout import (
    CONTEXT,
    CONVERSATION,
    CUSTOM,
    EXECUTION,
    MODIFIED,
    TOOLS,
    TOOLS_FAILED,
    TOOLS_SUCCESSFUL,
    execution_as_stored,
    execution_from,
    tool_keys,
)
from llmspell_dist.agents.messages import MessageCodec, as_stored
from llmspell_dist.agents.model import AgentState, Message, check_tool_call
from llmspell_dist.agents.plain import copied, messages_from, plain_messages
from llmspell_dist.agents.points import Passing, wanted
from llmspell_dist.agents.steps import AgentSteps, Transited, agent_scope
from llmspell_dist.agents.updates import Applied, Update, checked_names
from llmspell_dist.changes import Op
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.agents.execution import ExecutionState, Transition
    from llmspell_dist.agents.snapshot import Snapshot
    from llmspell_dist.state.steps import Steps

__all__ = ["HandleSteps"]


@dataclass(slots=True)
class _Begun:
    """An update that is on its way."""

    state: AgentState | None
    """What was loaded when it began."""
    known: Snapshot | None
    """What it asks to be unchanged; None: nothing."""
    own: Own | None


class HandleSteps:
    """The operations on one agent, and the state that it was loaded with."""

    def __init__(self, agents: AgentSteps, agent_id: str) -> None:
        self.agents = agents
        self.agent_id = agent_id
        self.scope = agent_scope(agent_id)
        self.updates = agents.updates()
        self.loaded: AgentState | None = None
        self._loaded_at: Revision | None = None
        self._last: Revision | None = None
        self._in_flight = 0

    @property
    def state(self) -> AgentState:
        """What was loaded, with what this handle did since."""
        if self.loaded is None:
            raise InvalidArgumentError("state", None, "must be loaded first: call refresh()")
        return self.loaded

    @property
    def revision(self) -> Revision | None:
        """The last commit of the agent that this handle has loaded or made."""
        loaded = None if self.loaded is None else self.loaded.revision
        return max((one for one in (loaded, self._last) if one is not None), default=None)

    def _hold(self, state: AgentState) -> AgentState:
        self.loaded = state
        self._loaded_at = None if state.stored is None else state.stored.scope_revision
        return state

    def refresh(self, tail: int | None) -> Steps[AgentState]:
        """Load the state anew."""
        return self._hold((yield from self.agents.load(self.agent_id, tail)))

    def open(self, create: AgentState | None) -> Steps[AgentState]:
        """Load the state; without an agent save the one given, if there is one."""
        try:
            return (yield from self.refresh(None))
        except AgentNotFoundError:
            if create is None:
                raise
        if type(create) is not AgentState or create.agent_id != self.agent_id:
            rule = f"must be an AgentState of {self.agent_id!r}, or a function that returns one"
            raise InvalidArgumentError("create", create, rule)
        yield from self.agents.save(create, force=False)
        return self._hold(create)

    def save(self, force: bool) -> Steps[Revision]:
        """Save what was changed in the state itself."""
        return (yield from self.agents.save(self.state, force))

    # --- updates

    def _update(
        self, updates: Sequence[Update], follow: Callable[[AgentState], None] | None = None
    ) -> Steps[Revision]:
        """Carry updates out in one commit, and let the state follow."""
        begun = self._begin(updates)
        self._in_flight += 1
        try:
            applied = None
            if begun.known is not None:
                applied = yield from self.updates.apply_known(self.scope, updates, begun.known)
            if applied is None:
                revision = yield from self.updates.apply(self.agent_id, self.scope, updates)
            else:
                revision = applied.revision
        finally:
            self._in_flight -= 1
        self._follow(begun, revision, applied, updates, follow)
        return revision

    def _passing(
        self,
        operation: str,
        data: Mapping[str, Any],
        check: Callable[[dict[str, Any]], None],
        carry_out: Callable[[dict[str, Any]], Steps[Revision]],
    ) -> Steps[Revision]:
        """Carry an update out as hooks want it."""
        told = Passing(
            *(self.agents.points, "update", self.agent_id, operation, data),
            changeable=("value", "remove"),
            check=check,
        )
        return (yield from told.carry_out(carry_out, lambda revision: {"revision": revision}))

    def _begin(self, updates: Sequence[Update]) -> _Begun:
        if self.loaded is None:
            return _Begun(None, None, None)
        own = Own.of(self.agents.core.values.codec, updates)
        return _Begun(self.loaded, self._known(), own)

    def _known(self) -> Snapshot | None:
        """Return what lies there, if all of it is known.

        It is not while another update of this handle is on its way. That one also keeps its place
        before this one: neither can be refused and sent again.
        """
        stored = None if self.loaded is None else self.loaded.stored
        namespace = self.agents.core.keyspace.namespace
        if (
            stored is None
            or self._in_flight
            or not stored.exact
            or not stored.is_of(namespace, self.scope.text)
        ):
            return None
        return stored

    def _follow(
        self,
        begun: _Begun,
        revision: Revision,
        applied: Applied | None,
        updates: Sequence[Update],
        follow: Callable[[AgentState], None] | None,
    ) -> None:
        """Let the state follow a commit of this handle's."""
        self._last = revision if self._last is None else max(revision, self._last)
        state = self.loaded
        if state is None:
            return
        if state is not begun.state and self._loaded_at and revision <= self._loaded_at:
            return  # it was loaded meanwhile, with this commit in it
        own, stored = begun.own, state.stored
        if own is None:
            # Loaded meanwhile, and just before this commit: it does not have it.
            if stored is not None:
                stored.exact = False
            return
        exact = applied is not None and stored is begun.known
        generations = applied.generations if applied is not None and exact else {}
        own.follow(state, self.scope.text, generations)
        state.last_modified = next(each.value for each in updates if each.key == MODIFIED)
        if follow is not None:
            follow(state)
        if stored is not None:
            stored.note(revision, own.keys, exact)

    # --- messages

    def add_messages(
        self, messages: Sequence[Message], at: datetime | None = None
    ) -> Steps[Revision]:
        """Add messages to the end of the conversation, all in one commit made at a moment."""
        return (yield from self._add(messages, at))[0]

    def add_message(self, message: Message) -> Steps[Message]:
        """Add a message to the end of the conversation; as it is stored."""
        added = (yield from self._add((message,), message.timestamp))[1]
        return added[-1]

    def _add(
        self, messages: Sequence[Message], at: datetime | None
    ) -> Steps[tuple[Revision, Sequence[Message]]]:
        stored = [as_stored(message) for message in messages]
        if not wanted(self.agents.points, "update"):
            return (yield from self._append(stored, at)), messages
        if not stored:
            raise _no_messages(messages)
        added = messages

        def check(data: dict[str, Any]) -> None:
            nonlocal added, stored
            added = messages_from(data["value"])
            stored = [as_stored(one) for one in added]
            self._check_append(stored)

        revision = yield from self._passing(
            "add_messages",
            {"value": plain_messages(messages)},
            check,
            lambda _: self._append(stored, at),
        )
        return revision, added

    def _append(self, stored: list[dict[str, Any]], at: datetime | None) -> Steps[Revision]:
        if not stored:
            raise _no_messages(stored)
        if at is None:
            at = self.agents.now()
        updates = [Update(Op.APPEND, CONVERSATION, stored), Update(Op.SET, MODIFIED, at)]
        return (yield from self._update(updates))

    def _check_append(self, stored: list[dict[str, Any]]) -> None:
        if not stored:
            raise _no_messages(stored)
        for each in stored:
            self.agents.core.values.codec.encode(each)

    def messages(self, start: int, stop: int | None) -> Steps[list[Message]]:
        """Return some messages as they are stored now, without reading the others."""
        if not wanted(self.agents.points, "load"):
            return (yield from self._messages(start, stop))
        data = {"start": start, "stop": stop}
        told = Passing(self.agents.points, "load", self.agent_id, "messages", data)
        return (
            yield from told.carry_out(
                lambda _: self._messages(start, stop),
                lambda found: {"value": plain_messages(found), "revision": None},
            )
        )

    def _messages(self, start: int, stop: int | None) -> Steps[list[Message]]:
        found = yield from self.agents.reads.get_slice(self.scope, CONVERSATION, start, stop)
        codec = MessageCodec(self.agents.core.values.codec, self.scope.text, CONVERSATION)
        return [codec.message(each) for each in found]

    # --- tools

    def record_tool_usage(self, tool: str, duration_ms: float, success: bool) -> Steps[Revision]:
        """Count one call of a tool: increments and one merge, in one commit."""
        check_tool_call(tool, duration_ms, success)
        if not wanted(self.agents.points, "update"):
            return (yield from self._count(tool, duration_ms, success))
        value = {"tool": tool, "duration_ms": duration_ms, "success": success}

        def check(data: dict[str, Any]) -> None:
            found = data["value"]
            if type(found) is not dict or found.keys() != value.keys():
                rule = f"must be a dict of {', '.join(value)}"
                raise InvalidArgumentError("value", found, rule)
            check_tool_call(**found)
            tool_keys(found["tool"])

        return (
            yield from self._passing(
                "record_tool_usage",
                {"value": dict(value)},
                check,
                lambda data: self._count(**data["value"]),
            )
        )

    def _count(self, tool: str, duration_ms: float, success: bool) -> Steps[Revision]:
        keys = tool_keys(tool)
        at = self.agents.now()
        total = TOOLS_SUCCESSFUL if success else TOOLS_FAILED
        updates = [
            Update(Op.INCREMENT, total, 1),
            Update(Op.INCREMENT, keys.calls, 1),
            Update(Op.INCREMENT, keys.milliseconds, duration_ms),
            Update(Op.MERGE, TOOLS, {tool: at}),
            Update(Op.SET, MODIFIED, at),
        ]
        if not success:
            updates.append(Update(Op.INCREMENT, keys.failed, 1))
        return (
            yield from self._update(
                updates, lambda state: state.tool_usage.record(tool, duration_ms, success, at)
            )
        )

    # --- variables

    def merge(
        self, key: str, mapping: Mapping[str, Any], removed: Iterable[str]
    ) -> Steps[Revision]:
        """Set and remove context variables or custom data."""
        gone = _merged(mapping, removed)
        if not wanted(self.agents.points, "update"):
            return (yield from self._merge(key, mapping, gone))

        def check(data: dict[str, Any]) -> None:
            _merged(data["value"], data["remove"])
            for one in data["value"].values():
                self.agents.core.values.codec.encode(one)

        return (
            yield from self._passing(
                "set_context" if key == CONTEXT else "set_custom",
                {"value": copied(dict(mapping)), "remove": [*gone]},
                check,
                lambda data: self._merge(key, data["value"], tuple(data["remove"])),
            )
        )

    def _merge(
        self, key: str, mapping: Mapping[str, Any], gone: tuple[str, ...]
    ) -> Steps[Revision]:
        at = self.agents.now()
        updates = [Update(Op.MERGE, key, mapping, gone), Update(Op.SET, MODIFIED, at)]
        return (yield from self._update(updates))

    def set_context(self, mapping: Mapping[str, Any], removed: Iterable[str]) -> Steps[Revision]:
        """Set and remove context variables."""
        return self.merge(CONTEXT, mapping, removed)

    def set_custom(self, mapping: Mapping[str, Any], removed: Iterable[str]) -> Steps[Revision]:
        """Set and remove custom data."""
        return self.merge(CUSTOM, mapping, removed)

    # --- execution

    def transition(self, change_to: Transition) -> Steps[ExecutionState]:
        """Let the execution change, judged by what is stored.

        If that is known it is not read: the commit asks whether it still is so.
        """
        return (yield from self.agents.moved(change_to, self._transit)).execution

    def _transit(self, change_to: Transition) -> Steps[Transited]:
        before, known = self.loaded, self._known()
        planned = None if known is None else self._next(known, change_to)
        applied = None
        self._in_flight += 1
        try:
            done = None
            if known is not None and planned is not None:
                updates = _executed(*planned)
                applied = yield from self.updates.apply_known(self.scope, updates, known)
                if applied is not None:
                    done = Transited(*planned, applied.revision)
            if done is None:
                done = yield from self.agents.transit(self.agent_id, change_to)
        finally:
            self._in_flight -= 1
        updates = _executed(done.execution, done.at)
        own = None if before is None else Own.of(self.agents.core.values.codec, updates)

        execution = done.execution

        def follow(state: AgentState) -> None:
            state.execution = execution

        self._follow(_Begun(before, known, own), done.revision, applied, updates, follow)
        return done

    def _next(
        self, known: Snapshot, change_to: Transition
    ) -> tuple[ExecutionState, datetime] | None:
        """Return the execution that follows the known one, and the time; None if none may."""
        raw = known.values.get(EXECUTION)
        stored = None if raw is None else self.agents.core.values.codec.decode(raw)
        try:
            return change_to(execution_from(stored)), self.agents.now()
        except IllegalTransitionError:
            return None  # another may have changed it: what is stored decides


def _no_messages(messages: Any) -> InvalidArgumentError:
    return InvalidArgumentError("messages", messages, "must be at least one")


def _merged(mapping: Any, removed: Iterable[str]) -> tuple[str, ...]:
    """Return the names to remove; what cannot be set or removed is refused."""
    gone = checked_names("remove", removed)
    if not isinstance(mapping, Mapping) or any(type(name) is not str for name in mapping):
        raise InvalidArgumentError("mapping", mapping, "must be a mapping whose keys are str")
    if not mapping and not gone:
        raise InvalidArgumentError("mapping", mapping, "must set or remove at least one name")
    return gone


def _executed(execution: ExecutionState, at: datetime) -> list[Update]:
    return [
        Update(Op.SET, EXECUTION, execution_as_stored(execution)),
        Update(Op.SET, MODIFIED, at),
    ]
