"""One agent by pieces, as steps: add a message, count a tool call, set variables, change status.

The state that a handle holds follows what it writes. Updates carry no condition on what was
loaded, so several writers can add messages at once; the snapshot then is no longer exact, and a
`save` looks first whether anything else has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmspell_dist.agents.conversation import Conversation, MessageCodec, as_stored
from llmspell_dist.agents.errors import AgentNotFoundError
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
    tool_keys,
)
from llmspell_dist.agents.model import AgentState, Message, ToolStats, check_tool_call
from llmspell_dist.agents.steps import AgentSteps, agent_scope
from llmspell_dist.agents.updates import Update, Updates
from llmspell_dist.changes import Op
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
    from llmspell_dist.state.steps import Steps

__all__ = ["HandleSteps"]


class HandleSteps:
    """The operations on one agent, and the state that it was loaded with."""

    def __init__(self, agents: AgentSteps, agent_id: str) -> None:
        self.agents = agents
        self.agent_id = agent_id
        self.scope = agent_scope(agent_id)
        self.updates = Updates(agents.core, agents.reads, agents.writes, agents.partial)
        self.loaded: AgentState | None = None

    @property
    def state(self) -> AgentState:
        """What was loaded, with what this handle did since."""
        if self.loaded is None:
            raise InvalidArgumentError("state", None, "must be loaded first: call refresh()")
        return self.loaded

    def refresh(self, tail: int | None) -> Steps[AgentState]:
        """Load the state anew."""
        self.loaded = yield from self.agents.load(self.agent_id, tail)
        return self.loaded

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
        self.loaded = create
        return create

    def save(self, force: bool) -> Steps[Revision]:
        """Save what was changed in the state itself."""
        return (yield from self.agents.save(self.state, force))

    # --- messages

    def add_messages(
        self, messages: Sequence[Message], at: datetime | None = None
    ) -> Steps[Revision]:
        """Add messages to the end of the conversation, all in one commit made at a moment."""
        stored = [as_stored(message) for message in messages]
        if not stored:
            raise InvalidArgumentError("messages", messages, "must be at least one")
        if at is None:
            at = self.agents.now()
        updates = [Update(Op.APPEND, CONVERSATION, stored), Update(Op.SET, MODIFIED, at)]
        revision = yield from self.updates.apply(self.agent_id, self.scope, updates)
        if self.loaded is not None:
            self._follow_messages(self.loaded, messages, at)
        return revision

    def _follow_messages(
        self, state: AgentState, messages: Sequence[Message], at: datetime
    ) -> None:
        codec = MessageCodec(self.agents.core.values.codec, self.scope.text, CONVERSATION)
        conversation = state.conversation
        # Decoded from what was sent: an object of its own, whatever the caller does with the other.
        raws = [codec.encode(message) for message in messages]
        place = len(conversation)
        conversation.extend(codec.decode_many(raws))
        stored = state.stored
        if stored is not None:
            before = stored.conversation
            if isinstance(conversation, Conversation) and (
                place + conversation.missing == before.count
            ):
                conversation.settle(raws, place)
            size = before.size + sum(map(len, raws))
            stored.conversation = before._replace(count=before.count + len(raws), size=size)
        self._follow(state, at)

    def messages(self, start: int, stop: int | None) -> Steps[list[Message]]:
        """Return some messages as they are stored now, without reading the others."""
        found = yield from self.agents.reads.get_slice(self.scope, CONVERSATION, start, stop)
        codec = MessageCodec(self.agents.core.values.codec, self.scope.text, CONVERSATION)
        return [codec.message(each) for each in found]

    # --- tools

    def record_tool_usage(self, tool: str, duration_ms: float, success: bool) -> Steps[Revision]:
        """Count one call of a tool: increments and one merge, in one commit."""
        check_tool_call(tool, duration_ms, success)
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
        revision = yield from self.updates.apply(self.agent_id, self.scope, updates)
        state = self.loaded
        if state is not None:
            state.tool_usage.record(tool, duration_ms, success, at)
            self._follow_tool(state, tool, state.tool_usage.tool_performance[tool])
            self._follow(state, at)
        return revision

    def _follow_tool(self, state: AgentState, tool: str, stats: ToolStats) -> None:
        if state.stored is None:
            return
        keys, usage, encode = (
            tool_keys(tool),
            state.tool_usage,
            self.agents.core.values.codec.encode,
        )
        numbers = {
            TOOLS_SUCCESSFUL: usage.successful,
            TOOLS_FAILED: usage.failed,
            keys.calls: stats.invocation_count,
            keys.failed: stats.failed_count,
            keys.milliseconds: stats.total_duration_ms,
        }
        for key, number in numbers.items():
            if number or key in state.stored.values or key == keys.milliseconds:
                state.stored.values[key] = encode(number)
        state.stored.maps.setdefault(TOOLS, {})[encode(tool)] = encode(stats.last_used)

    # --- variables

    def merge(
        self, key: str, mapping: Mapping[str, Any], removed: Iterable[str]
    ) -> Steps[Revision]:
        """Set and remove context variables or custom data."""
        gone = _names("remove", removed)
        if not isinstance(mapping, Mapping) or any(type(name) is not str for name in mapping):
            raise InvalidArgumentError("mapping", mapping, "must be a mapping whose keys are str")
        if not mapping and not gone:
            raise InvalidArgumentError("mapping", mapping, "must set or remove at least one name")
        at = self.agents.now()
        updates = [Update(Op.MERGE, key, mapping, gone), Update(Op.SET, MODIFIED, at)]
        revision = yield from self.updates.apply(self.agent_id, self.scope, updates)
        state, values = self.loaded, self.agents.core.values
        if state is None:
            return revision
        variables = state.context if key == CONTEXT else state.custom
        stored = {} if state.stored is None else state.stored.maps.setdefault(key, {})
        encode, decode = values.codec.encode, values.codec.decode
        for name, value in mapping.items():
            raw = stored[encode(name)] = encode(value)
            variables[name] = decode(raw)
        for name in gone:
            variables.pop(name, None)
            stored.pop(encode(name), None)
        self._follow(state, at)
        return revision

    def set_context(self, mapping: Mapping[str, Any], removed: Iterable[str]) -> Steps[Revision]:
        """Set and remove context variables."""
        return self.merge(CONTEXT, mapping, removed)

    def set_custom(self, mapping: Mapping[str, Any], removed: Iterable[str]) -> Steps[Revision]:
        """Set and remove custom data."""
        return self.merge(CUSTOM, mapping, removed)

    # --- execution

    def transition(
        self, status: ExecutionStatus | str, reason: str | None
    ) -> Steps[ExecutionState]:
        """Let the execution go to another status, if the stored one allows it."""

        def change_to(execution: ExecutionState) -> ExecutionState:
            return execution.to(status, reason, agent_id=self.agent_id)

        execution, at = yield from self.agents.transition(self.agent_id, change_to)
        state = self.loaded
        if state is not None:
            state.execution = execution
            if state.stored is not None:
                encode = self.agents.core.values.codec.encode
                state.stored.values[EXECUTION] = encode(execution_as_stored(execution))
            self._follow(state, at)
        return execution

    def _follow(self, state: AgentState, at: datetime) -> None:
        """Note that the stored state was changed without a look at the rest of it."""
        state.last_modified = at
        if state.stored is not None:
            state.stored.values[MODIFIED] = self.agents.core.values.codec.encode(at)
            state.stored.exact = False


def _names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InvalidArgumentError(argument, names, "must be several names, not one text")
    found = tuple(names)
    for name in found:
        if type(name) is not str:
            raise InvalidArgumentError(argument, name, "must hold names that are str")
    return found
