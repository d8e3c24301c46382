"""Hook points: the places at which hooks run."""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from llmspell_dist.hooks.errors import UnknownHookPointError

__all__ = ["HookPoint", "is_before", "point_of"]


class HookPoint(StrEnum):
    """The places that have a name; a custom one is text with a colon, as ``session:start``."""

    # agents
    BEFORE_AGENT_INIT = "BeforeAgentInit"
    AFTER_AGENT_INIT = "AfterAgentInit"
    BEFORE_AGENT_EXECUTION = "BeforeAgentExecution"
    AFTER_AGENT_EXECUTION = "AfterAgentExecution"
    AGENT_ERROR = "AgentError"
    BEFORE_AGENT_SHUTDOWN = "BeforeAgentShutdown"
    AFTER_AGENT_SHUTDOWN = "AfterAgentShutdown"
    # tools
    BEFORE_TOOL_DISCOVERY = "BeforeToolDiscovery"
    AFTER_TOOL_DISCOVERY = "AfterToolDiscovery"
    BEFORE_TOOL_EXECUTION = "BeforeToolExecution"
    AFTER_TOOL_EXECUTION = "AfterToolExecution"
    TOOL_VALIDATION = "ToolValidation"
    TOOL_ERROR = "ToolError"
    # workflows
    BEFORE_WORKFLOW_START = "BeforeWorkflowStart"
    WORKFLOW_STAGE_TRANSITION = "WorkflowStageTransition"
    BEFORE_WORKFLOW_STAGE = "BeforeWorkflowStage"
    AFTER_WORKFLOW_STAGE = "AfterWorkflowStage"
    WORKFLOW_CHECKPOINT = "WorkflowCheckpoint"
    WORKFLOW_ROLLBACK = "WorkflowRollback"
    AFTER_WORKFLOW_COMPLETE = "AfterWorkflowComplete"
    WORKFLOW_ERROR = "WorkflowError"
    # state
    BEFORE_STATE_READ = "BeforeStateRead"
    AFTER_STATE_READ = "AfterStateRead"
    BEFORE_STATE_WRITE = "BeforeStateWrite"
    AFTER_STATE_WRITE = "AfterStateWrite"
    STATE_CONFLICT = "StateConflict"
    STATE_MIGRATION = "StateMigration"
    # system
    SYSTEM_STARTUP = "SystemStartup"
    SYSTEM_SHUTDOWN = "SystemShutdown"
    CONFIGURATION_CHANGE = "ConfigurationChange"
    RESOURCE_LIMIT_EXCEEDED = "ResourceLimitExceeded"
    SECURITY_VIOLATION = "SecurityViolation"
    # sessions
    SESSION_START = "SessionStart"
    SESSION_END = "SessionEnd"
    SESSION_CHECKPOINT = "SessionCheckpoint"
    SESSION_RESTORE = "SessionRestore"
    SESSION_SAVE = "SessionSave"
    # events
    BEFORE_EVENT_EMIT = "BeforeEventEmit"
    AFTER_EVENT_EMIT = "AfterEventEmit"
    EVENT_HANDLER_ERROR = "EventHandlerError"
    # performance
    PERFORMANCE_THRESHOLD_EXCEEDED = "PerformanceThresholdExceeded"
    MEMORY_USAGE_HIGH = "MemoryUsageHigh"
    CPU_USAGE_HIGH = "CpuUsageHigh"


_NAMED: Final = {point.value: point for point in HookPoint} | dict(HookPoint.__members__)
"""By value (``BeforeStateWrite``) and by name (``BEFORE_STATE_WRITE``)."""
_LOOSELY: Final = {point.value.lower(): point.value for point in HookPoint}
_CUSTOM: Final = re.compile(r"[\w.-]+(?::[\w.-]+)+", re.ASCII)
MAX_LENGTH: Final = 128


def is_before(point: str) -> bool:
    """Whether a point stands before something: by its name, or ``:before_`` in one of your own."""
    named = _NAMED.get(point)
    return ":before_" in point if named is None else named.startswith("Before")


def point_of(value: object) -> str:
    """Return the point that is meant; `UnknownHookPointError` names what is none."""
    if isinstance(value, HookPoint):
        return value
    if type(value) is str:
        found = _NAMED.get(value)
        if found is not None:
            return found
        if len(value) <= MAX_LENGTH and _CUSTOM.fullmatch(value):
            return value
    near: list[str] = []
    if type(value) is str:
        close = get_close_matches(re.sub(r"[\W_]", "", value).lower(), _LOOSELY, n=1)
        near = [_LOOSELY[one] for one in close]
    raise UnknownHookPointError(value, near[0] if near else None)
