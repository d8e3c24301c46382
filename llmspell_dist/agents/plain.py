"""Agents as plain data, as hooks are told of them, and back into the library's values.

What is returned shares no dict or list with what it was made of, so a hook may change it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.agents.execution import ExecutionState
from llmspell_dist.agents.layout import execution_as_stored
from llmspell_dist.agents.model import AgentMetadata, Message, Role, ToolStats, ToolUsage
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.agents.model import AgentState

__all__ = [
    "copied",
    "differing",
    "messages_from",
    "plain_load",
    "plain_messages",
    "plain_state",
    "rebuilt",
]

_DEPTH: Final = 128
_MESSAGE: Final = ("role", "content", "timestamp", "metadata")
_METADATA: Final = tuple(AgentMetadata.__dataclass_fields__)
_STATS: Final = tuple(ToolStats.__dataclass_fields__)


def copied(value: Any, depth: int = 0) -> Any:
    """Return a value whose dicts and lists are its own; what is no value of these is shared."""
    cls = type(value)
    if depth >= _DEPTH:
        return value  # it cannot be stored: who encodes it says so
    if cls is dict:
        return {name: copied(part, depth + 1) for name, part in value.items()}
    if cls is list or cls is tuple:
        return cls([copied(part, depth + 1) for part in value])
    return value


def plain_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages as dicts of ``role``, ``content``, ``timestamp`` and ``metadata``."""
    return [
        {
            "role": one.role.value,
            "content": copied(one.content),
            "timestamp": one.timestamp,
            "metadata": copied(one.metadata),
        }
        for one in messages
    ]


def messages_from(value: Any) -> list[Message]:
    """Return the messages of such dicts; `InvalidArgumentError` says what is none."""
    if type(value) is not list:
        raise InvalidArgumentError("messages", value, "must be a list of dicts")
    found = []
    for one in value:
        named = type(one) is dict and set(_MESSAGE) >= one.keys() >= set(_MESSAGE[:3])
        if not named:
            rule = f"must be a dict of {', '.join(_MESSAGE)}; metadata may be missing"
            raise InvalidArgumentError("message", one, rule)
        role = Role.coerce(one["role"])
        found.append(Message(role, one["content"], one["timestamp"], one.get("metadata")))
    return found


def plain_state(state: AgentState) -> dict[str, Any]:
    """Return all of a state but its id, by the names of its fields."""
    meta, usage = state.metadata, state.tool_usage
    return {
        "agent_type": state.agent_type,
        "metadata": {name: copied(getattr(meta, name)) for name in _METADATA},
        "creation_time": state.creation_time,
        "last_modified": state.last_modified,
        "conversation": plain_messages(state.conversation),
        "context": copied(state.context),
        "tool_usage": {
            "successful": usage.successful,
            "failed": usage.failed,
            "tool_performance": {
                tool: {name: getattr(stats, name) for name in _STATS}
                for tool, stats in usage.tool_performance.items()
            },
        },
        "execution": execution_as_stored(state.execution),
        "custom": copied(state.custom),
        "hook_registrations": copied(state.hook_registrations),
        "last_hook_execution": state.last_hook_execution,
        "correlation_context": copied(state.correlation_context),
        "schema_version": state.schema_version,
    }


def plain_load(state: AgentState) -> dict[str, Any]:
    """Return what hooks behind a load are told of the state that it gave."""
    missing = getattr(state.conversation, "missing", 0)
    return {"value": plain_state(state), "missing": missing, "revision": state.revision}


def differing(was: Mapping[str, Any], value: Any) -> list[str]:
    """Return the fields that are others in `value`; `InvalidArgumentError` if they are no state."""
    if type(value) is not dict or value.keys() != was.keys():
        rule = f"must be a dict of {', '.join(was)}"
        raise InvalidArgumentError("value", value, rule)
    return [name for name, one in was.items() if value[name] != one]


def rebuilt(name: str, value: Any) -> Any:
    """Return a field of a state as the library has it; its `check` judges what is in it."""
    build = _BUILD.get(name)
    if build is None:
        return value
    try:
        return build(value)
    except (TypeError, AttributeError, KeyError):
        rule = "must be what plain data of a state has there"
        raise InvalidArgumentError(name, value, rule) from None


def _usage(value: Any) -> ToolUsage:
    tools = {tool: ToolStats(**stats) for tool, stats in value["tool_performance"].items()}
    return ToolUsage(**{**value, "tool_performance": tools})


_BUILD: Final[dict[str, Callable[[Any], Any]]] = {
    "metadata": lambda value: AgentMetadata(**value),
    "tool_usage": _usage,
    "execution": lambda value: ExecutionState(**value),
    "conversation": messages_from,
}
