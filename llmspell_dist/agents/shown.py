"""A state that hooks see before it is saved: what they change of it is saved in its place."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.agents.conversation import Conversation
from llmspell_dist.agents.plain import differing, plain_state, rebuilt

if TYPE_CHECKING:
    from llmspell_dist.agents.model import AgentState, Message
    from llmspell_dist.codec import Codec
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.steps import Steps

__all__ = ["ShownState"]

_MAPS: Final = ("context", "custom")
"""Fields that are stored name by name."""


class ShownState:
    """A state, and what hooks make of it.

    The caller's is not touched before what differs is stored. Then it holds what is stored, except
    for a field into which the caller has put another value meanwhile: the next save sends that.
    """

    def __init__(self, state: AgentState, codec: Codec) -> None:
        self._state = state
        self._codec = codec
        messages = state.conversation
        self._before = {name: getattr(state, name) for name in plain_state_names(state)}
        self._stood = _standing(messages)
        self._other = copy(state)
        self._other.conversation = copy(messages)
        # What this handle stores while hooks wait must not pass for what they have seen.
        self._other.stored = deepcopy(state.stored)
        self._was = plain_state(self._other)
        self._changed: list[str] = []
        self.value = plain_state(self._other)
        """What hooks are told."""
        self.missing = getattr(messages, "missing", 0)
        """How many earlier messages are stored and not told."""

    def check(self, value: Any) -> None:
        """Take what hooks made of it; an error says what no agent can be, or cannot be stored."""
        self._changed = differing(self._was, value)
        other = self._other
        for name in self._changed:
            made = rebuilt(name, value[name])
            if name == "conversation":
                for one in value[name]:
                    self._codec.encode(one)
                _replace(other.conversation, self._was[name], value[name], made)
                continue
            for one in value[name].values() if name in _MAPS else [value[name]]:
                self._codec.encode(one)
            setattr(other, name, made)
        other.check()

    def save(self, save: Callable[[AgentState], Steps[Revision]]) -> Steps[Revision]:
        """Save it: the caller's own, or the other one."""
        if not self._changed:
            return (yield from save(self._state))
        revision = yield from save(self._other)
        self._follow()
        return revision

    def _follow(self) -> None:
        state, other = self._state, self._other
        for name in self._changed:
            if name != "conversation" and getattr(state, name) is self._before[name]:
                setattr(state, name, getattr(other, name))
        messages = state.conversation
        if messages is self._before["conversation"] and _standing(messages) == self._stood:
            state.conversation = other.conversation
        state.stored = other.stored


def plain_state_names(state: AgentState) -> list[str]:
    """Return the names of the fields that hooks see."""
    return [name for name in state.__dataclass_fields__ if name not in {"agent_id", "stored"}]


def _standing(messages: MutableSequence[Message]) -> tuple[int, Any]:
    """Return what differs once somebody has changed a conversation."""
    if isinstance(messages, Conversation):
        return len(messages), messages.edits
    return len(messages), [*map(id, messages)]


def _replace(
    messages: MutableSequence[Message],
    was: list[dict[str, Any]],
    value: list[dict[str, Any]],
    made: list[Message],
) -> None:
    """Make a conversation another; the messages before the first that differs stay as they are."""
    same = 0
    for old, new in zip(was, value, strict=False):
        if old != new:
            break
        same += 1
    if same < len(messages):
        del messages[same:]
    messages.extend(made[same:])
