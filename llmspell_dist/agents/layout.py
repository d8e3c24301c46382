"""How an agent lies in its scope ``agent:<id>``: which key holds what. This is a stored format.

Layout version 1, written in ``agent.profile``. A reader of another version refuses to guess.

================================= ====== ==========================================================
key                               kind   holds
================================= ====== ==========================================================
``agent.profile``                 value  dict: ``layout`` 1, ``type``, ``created`` (datetime),
                                         ``schema_version``, and of the metadata ``name``,
                                         ``description``, ``version``, ``capabilities``,
                                         ``provider_config``, ``tags``. An agent is there if this
                                         key is
``agent.modified``                value  datetime: last modified. Set by every commit that changes
                                         one of these keys, so its revision is the agent's
``agent.execution``               value  dict: ``status``, ``reason``, ``suspended_from``
``agent.conversation``            list   a dict per message: ``role``, ``content``, ``timestamp``
                                         and perhaps ``metadata``
``agent.context``                 map    the context variables by name
``agent.custom``                  map    the custom data by name
``agent.tools``                   map    name of a tool → datetime of its last call, or None
``agent.tools.successful``        number calls that succeeded, of all tools
``agent.tools.failed``            number calls that failed, of all tools
``agent.tool.<name>.calls``       number calls of one tool
``agent.tool.<name>.failed``      number those that failed
``agent.tool.<name>.ms``          number milliseconds that they took together, int or float
``agent.hooks``                   value  dict: ``registrations`` (list), ``last_execution``
``agent.correlation``             value  the correlation context
``agent.effect.<key>``            value  an effect that runs once (`llmspell_dist.agents.effects`)
================================= ====== ==========================================================

``<name>`` and ``<key>`` are percent-encoded as in a URL, byte by byte, so that any text is exact.
A key that is missing holds an empty list or dict, the number 0, or None. Any of the values may lie
as another kind (somebody set the list as a whole): readers go by the record. Other keys
of the scope are the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from llmspell_dist.agents.execution import ExecutionState
from llmspell_dist.agents.model import AgentMetadata, AgentState, ToolStats, ToolUsage
from llmspell_dist.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    SpellError,
    UnsupportedFormatError,
)

__all__ = ["LAYOUT_VERSION", "Parts", "assembled", "parts_of", "tool_keys"]

LAYOUT_VERSION: Final = 1

PROFILE: Final = "agent.profile"
MODIFIED: Final = "agent.modified"
EXECUTION: Final = "agent.execution"
CONVERSATION: Final = "agent.conversation"
CONTEXT: Final = "agent.context"
CUSTOM: Final = "agent.custom"
TOOLS: Final = "agent.tools"
TOOLS_SUCCESSFUL: Final = "agent.tools.successful"
TOOLS_FAILED: Final = "agent.tools.failed"
HOOKS: Final = "agent.hooks"
CORRELATION: Final = "agent.correlation"
EFFECT_PREFIX: Final = "agent.effect."
_TOOL_PREFIX: Final = "agent.tool."

SUMMARY_KEYS: Final = (PROFILE, MODIFIED, EXECUTION, CONVERSATION)
"""What a summary is made of; of the conversation its length only."""
FIXED_KEYS: Final = (
    *(*SUMMARY_KEYS, CONTEXT, CUSTOM, TOOLS, TOOLS_SUCCESSFUL, TOOLS_FAILED, HOOKS, CORRELATION),
)
"""All keys but those of single tools and effects."""
MAPS: Final = (CONTEXT, CUSTOM, TOOLS)
_MAX_NAME: Final = 200


class ToolKeys(NamedTuple):
    """The numbers of one tool."""

    calls: str
    failed: str
    milliseconds: str


def quoted(argument: str, name: str) -> str:
    """Return a name as it stands in a key; `InvalidArgumentError` if it is none or too long."""
    if type(name) is not str or not name:
        raise InvalidArgumentError(argument, name, "must be a str that is not empty")
    try:
        text = quote(name, safe="@+=,!$&'()*;:/ ")
    except UnicodeEncodeError:
        rule = "must be valid Unicode (no lone surrogates)"
        raise InvalidArgumentError(argument, name, rule) from None
    if len(text) > _MAX_NAME:
        rule = f"must be at most {_MAX_NAME} bytes when percent-encoded"
        raise InvalidArgumentError(argument, name, rule)
    return text


def tool_keys(tool: str) -> ToolKeys:
    """Return the keys that count the calls of a tool."""
    stem = _TOOL_PREFIX + quoted("tool", tool)
    return ToolKeys(f"{stem}.calls", f"{stem}.failed", f"{stem}.ms")


class Parts(NamedTuple):
    """An agent's state without its conversation, by key."""

    values: dict[str, Any]
    """Values and numbers; a key that holds nothing is left out."""
    maps: dict[str, dict[str, Any]]
    """All three, empty or not."""


def parts_of(state: AgentState) -> Parts:
    """Take a state apart."""
    meta, usage = state.metadata, state.tool_usage
    values: dict[str, Any] = {
        PROFILE: {
            "layout": LAYOUT_VERSION,
            "type": state.agent_type,
            "created": state.creation_time,
            "schema_version": state.schema_version,
            "name": meta.name,
            "description": meta.description,
            "version": meta.version,
            "capabilities": meta.capabilities,
            "provider_config": meta.provider_config,
            "tags": meta.tags,
        },
        MODIFIED: state.last_modified,
        EXECUTION: execution_as_stored(state.execution),
    }
    if state.hook_registrations or state.last_hook_execution is not None:
        values[HOOKS] = {
            "registrations": state.hook_registrations,
            "last_execution": state.last_hook_execution,
        }
    if state.correlation_context is not None:
        values[CORRELATION] = state.correlation_context
    numbers: dict[str, float] = {TOOLS_SUCCESSFUL: usage.successful, TOOLS_FAILED: usage.failed}
    for tool, stats in usage.tool_performance.items():
        keys = tool_keys(tool)
        numbers[keys.calls] = stats.invocation_count
        numbers[keys.failed] = stats.failed_count
        numbers[keys.milliseconds] = stats.total_duration_ms
    # A float that is 0 is written, so that it comes back as a float.
    values.update(
        (key, number) for key, number in numbers.items() if number or type(number) is float
    )
    last_used = {tool: stats.last_used for tool, stats in usage.tool_performance.items()}
    return Parts(values, {CONTEXT: state.context, CUSTOM: state.custom, TOOLS: last_used})


def execution_as_stored(execution: ExecutionState) -> dict[str, Any]:
    """Return what stands in the record of an execution."""
    before = execution.suspended_from
    return {
        "status": execution.status.value,
        "reason": execution.reason,
        "suspended_from": None if before is None else before.value,
    }


def assembled(agent_id: str, scope: str, parts: Parts) -> AgentState:
    """Put a state together, with an empty conversation.

    Fields that a later release of this layout may add are left alone.
    """
    values, maps = parts
    profile = checked_profile(scope, values.get(PROFILE))
    hooks = values.get(HOOKS, {})
    try:
        state = AgentState(
            agent_id,
            profile["type"],
            metadata_from(profile),
            profile["created"],
            modified_from(profile, values),
            context=maps[CONTEXT],
            custom=maps[CUSTOM],
            tool_usage=usage_from(values, maps[TOOLS]),
            execution=execution_from(values.get(EXECUTION)),
            hook_registrations=hooks.get("registrations", []),
            last_hook_execution=hooks.get("last_execution"),
            correlation_context=values.get(CORRELATION),
            schema_version=profile["schema_version"],
        )
        state.check()
    except (KeyError, TypeError, AttributeError, InvalidArgumentError) as error:
        raise _no_agent(scope, error) from None
    return state


def usage_from(values: Mapping[str, Any], tools: Mapping[str, Any]) -> ToolUsage:
    """Return the statistics that stand in the numbers of the tools named."""
    usage = ToolUsage(values.get(TOOLS_SUCCESSFUL, 0), values.get(TOOLS_FAILED, 0))
    for tool, last_used in tools.items():
        calls, failed, milliseconds = (values.get(key, 0) for key in tool_keys(tool))
        usage.tool_performance[tool] = ToolStats(calls, failed, milliseconds, last_used)
    return usage


def modified_from(profile: Mapping[str, Any], values: Mapping[str, Any]) -> datetime:
    """Return when the agent was modified last: when it was created, if nobody says."""
    moment: datetime = values.get(MODIFIED, profile["created"])
    return moment


def _no_agent(scope: str, error: Exception) -> SpellError:
    said = str(error) if isinstance(error, SpellError) else f"{type(error).__name__} {error}"
    return CorruptRecordError(scope, PROFILE, f"it is no agent as this release knows it ({said})")


def checked_profile(scope: str, profile: Any) -> dict[str, Any]:
    """Return the profile, if it has the layout that this release reads."""
    if type(profile) is not dict or type(profile.get("layout")) is not int:
        raise CorruptRecordError(scope, PROFILE, "it is no agent's profile")
    if profile["layout"] != LAYOUT_VERSION:
        reason = f"agent layout {profile['layout']}, this reads {LAYOUT_VERSION}"
        raise UnsupportedFormatError(scope, PROFILE, reason)
    return profile


def metadata_from(profile: Mapping[str, Any]) -> AgentMetadata:
    """Return the metadata that stands in a profile."""
    return AgentMetadata(
        profile["name"],
        profile["description"],
        profile["version"],
        profile["capabilities"],
        profile["provider_config"],
        profile["tags"],
    )


def execution_from(stored: Any) -> ExecutionState:
    """Return the execution that stands in its record; without one the agent is idle."""
    if stored is None:
        return ExecutionState()
    return ExecutionState(stored["status"], stored.get("reason"), stored.get("suspended_from"))
