"""What hooks are told of agents whose parts a client reads and commits, and may make of them.

Such a client is the library itself, which sends what differs. A commit that is one update of a
handle is told as that update; any other is told as a save, by the parts that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from llmspell_dist.agents.layout import (
    CONTEXT,
    CONVERSATION,
    CUSTOM,
    EXECUTION,
    MODIFIED,
    TOOLS,
    TOOLS_FAILED,
    TOOLS_SUCCESSFUL,
    tool_keys,
)
from llmspell_dist.agents.messages import as_stored
from llmspell_dist.agents.plain import copied, messages_from, plain_load
from llmspell_dist.agents.points import Passing, wanted
from llmspell_dist.agents.updates import checked_names
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.agent_shape import check_change, operation_of

if TYPE_CHECKING:
    from llmspell_dist.agents.reading import Loaded
    from llmspell_dist.agents.steps import AgentSteps
    from llmspell_dist.revision import Revision
    from llmspell_dist.sidecar.agent_commit import AgentCommit, Committing, PartChange
    from llmspell_dist.state.points import Points
    from llmspell_dist.state.steps import Steps

__all__ = ["committed", "read"]

Changes = dict[str, "PartChange"]
_UPDATES: Final = {
    (CONVERSATION, "append"): "add_messages",
    (CONTEXT, "merge"): "set_context",
    (CUSTOM, "merge"): "set_custom",
    (EXECUTION, "set"): "transition",
}


def read(
    points: Points,
    agents: AgentSteps,
    agent_id: str,
    asked: Mapping[str, Any],
    steps: Callable[[], Steps[Loaded]],
) -> Steps[Loaded]:
    """Read an agent's parts, as a load of it."""
    if not wanted(points, "load"):
        return (yield from steps())

    def behind(found: Loaded) -> dict[str, Any]:
        if not found.snapshot.exists:
            return {"value": None, "missing": 0, "revision": None}
        return plain_load(agents.state_of(agent_id, found))

    told = Passing(points, "load", agent_id, "parts", asked)
    return (yield from told.carry_out(lambda _: steps(), behind))


def committed(
    points: Points, committing: Committing, agent_id: str, body: AgentCommit
) -> Steps[Revision]:
    """Commit parts of an agent, as hooks want it."""
    if not wanted(points, "update") and not wanted(points, "save"):
        return (yield from committing.carry_out(body))
    committing.check(body)
    told = _told(_Commit(committing, body))
    passing = Passing(
        *(points, told.kind, agent_id, told.operation, told.data),
        changeable=told.changeable,
        check=told.made,
    )
    return (
        yield from passing.carry_out(
            lambda data: committing.carry_out(told.made(data)),
            lambda revision: {"revision": revision},
        )
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What hooks are told of a commit, and what makes one of what they leave."""

    kind: str
    operation: str
    data: dict[str, Any]
    changeable: tuple[str, ...]
    made: Callable[[dict[str, Any]], AgentCommit]


class _Commit:
    """A commit, of which parts can be others."""

    def __init__(self, committing: Committing, body: AgentCommit) -> None:
        self._committing = committing
        self._body = body
        self.parts: Changes = {one.key: one for one in body.changes if one.key != MODIFIED}

    def with_parts(self, parts: Mapping[str, PartChange]) -> AgentCommit:
        """Return it with other changes of these parts, each checked as the client's are."""
        for key, one in parts.items():
            check_change(self._committing.scope, one)
            value: Any = getattr(one, "value", None)
            for each in value if key == CONVERSATION else [value]:
                self._committing.encode(each)
        changes = [parts.get(one.key, one) for one in self._body.changes]
        return replace(self._body, changes=changes)


def _told(commit: _Commit) -> _Told:
    found = _as_tool_usage(commit)
    if found is not None:
        return found
    if len(commit.parts) == 1:
        ((key, one),) = commit.parts.items()
        operation = _UPDATES.get((key, operation_of(one)))
        if operation is not None:
            return _as_update(commit, operation, key, one)
    return _as_save(commit)


def _as_update(commit: _Commit, operation: str, key: str, one: Any) -> _Told:
    given = one.value
    data: dict[str, Any] = {"value": copied(given)}
    if key == CONVERSATION:
        data["value"] = [{"metadata": None, **each} for each in data["value"]]
    elif key == EXECUTION:
        data["value"] = {"status": given["status"], "reason": given.get("reason")}
    else:
        data["remove"] = [*one.remove]
    told = copied(data)

    def made(left: dict[str, Any]) -> AgentCommit:
        changed = {name: left[name] for name in told if left[name] != told[name]}
        value = changed.get("value")
        if key == CONVERSATION and value is not None:
            changed["value"] = [as_stored(each) for each in messages_from(value)]
        elif key == EXECUTION and value is not None:
            if type(value) is not dict or value.get("status") != given["status"]:
                rule = "must be a dict of status and reason, with the status as it is"
                raise InvalidArgumentError("value", value, rule)
            changed["value"] = {**given, "reason": value.get("reason")}
        if "remove" in changed:
            changed["remove"] = [*checked_names("remove", changed["remove"])]
        return commit.with_parts({key: replace(one, **changed)} if changed else {})

    return _Told("update", operation, data, ("value", "remove"), made)


def _as_tool_usage(commit: _Commit) -> _Told | None:
    """Return what is told of one call of a tool that is counted; None if it is none."""
    parts: dict[str, Any] = commit.parts
    tools = parts.get(TOOLS)
    named = list(getattr(tools, "value", ()))
    if tools is None or operation_of(tools) != "merge" or tools.remove or len(named) != 1:
        return None
    keys = tool_keys(named[0])
    success = TOOLS_FAILED not in parts
    counted = [TOOLS_SUCCESSFUL] if success else [TOOLS_FAILED, keys.failed]
    increments = dict.fromkeys((*counted, keys.calls), 1)
    if parts.keys() != {TOOLS, keys.milliseconds, *increments}:
        return None
    if any(operation_of(one) != "increment" for key, one in parts.items() if key != TOOLS):
        return None
    if any(parts[key].value != by for key, by in increments.items()):
        return None
    duration = parts[keys.milliseconds].value
    value = {"tool": named[0], "duration_ms": duration, "success": success}
    return _Told(
        "update", "record_tool_usage", {"value": value}, (), lambda _: commit.with_parts({})
    )


def _as_save(commit: _Commit) -> _Told:
    parts: dict[str, Any] = commit.parts
    values = {key: one.value for key, one in parts.items() if operation_of(one) != "delete"}
    removed = {key: [*one.remove] for key, one in parts.items() if getattr(one, "remove", None)}
    deleted = [key for key in parts if key not in values]
    data = {"value": copied(values), "remove": removed, "delete": deleted}

    def made(left: dict[str, Any]) -> AgentCommit:
        value = left["value"]
        if type(value) is not dict or value.keys() != values.keys():
            rule = f"must be a dict of {', '.join(values)}"
            raise InvalidArgumentError("value", value, rule)
        changed = {
            key: replace(parts[key], value=value[key])
            for key, one in values.items()
            if value[key] != one
        }
        return commit.with_parts(changed)

    return _Told("save", "commit", data, ("value",), made)
